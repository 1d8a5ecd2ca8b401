"""transformers' Trainer with the paper's optimisation: learning-rate rule, weight-decay groups, warm-up in epochs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, Sampler
from transformers import TrainerCallback, TrainingArguments
from transformers.trainer_pt_utils import LengthGroupedSampler

from dehvf_kit.data.encoding import Collator
from dehvf_kit.errors import DataError
from dehvf_kit.model.model import DehvfModel
from dehvf_kit.recipe.sections import TrainingConfig
from dehvf_kit.training.answers import has_answer, no_answer
from dehvf_kit.training.finite_steps import FiniteSteps
from dehvf_kit.training.trackers import trackers
from dehvf_kit.training.whole_checkpoints import WholeCheckpoints

IDS = "sample_ids"


def learning_rate(config: TrainingConfig, processes: int = 1) -> float:
    """base_learning_rate * batch_size * gradient_accumulation * processes / 256 (LaVIN's convention, which DEHVF follows)."""
    return config.base_learning_rate * config.batch_size * config.gradient_accumulation * processes / 256


def num_steps(config: TrainingConfig, samples: int, processes: int = 1) -> tuple[int, int]:
    """Optimiser steps in all, and the warm-up steps among them."""
    per_epoch = math.ceil(samples / (config.batch_size * config.gradient_accumulation * processes))
    total = config.max_steps or max(1, math.ceil(per_epoch * config.epochs))
    return total, min(round(per_epoch * config.warmup_epochs), total)


def training_arguments(config: TrainingConfig, output: Path, samples: int, processes: int = 1) -> TrainingArguments:
    """The recipe's training section in transformers' terms."""
    total, warmup = num_steps(config, samples, processes)
    return TrainingArguments(
        output_dir=str(output),
        max_steps=total,
        warmup_steps=warmup,
        lr_scheduler_type="cosine",
        learning_rate=learning_rate(config, processes),
        per_device_train_batch_size=config.batch_size,
        gradient_accumulation_steps=config.gradient_accumulation,
        weight_decay=config.weight_decay,
        adam_beta1=config.betas[0],
        adam_beta2=config.betas[1],
        max_grad_norm=config.max_grad_norm,
        use_cpu=not torch.cuda.is_available(),
        bf16=config.precision == "bfloat16",
        activation_checkpointing=config.gradient_checkpointing,
        activation_checkpointing_kwargs={"use_reentrant": False} if config.gradient_checkpointing else None,
        train_sampling_strategy="group_by_length" if config.group_by_length else "random",
        dataloader_num_workers=config.num_workers,
        dataloader_pin_memory=torch.cuda.is_available(),
        save_steps=config.save_steps,
        logging_steps=config.logging_steps,
        logging_first_step=True,
        seed=config.seed,
        data_seed=config.seed,
        report_to=trackers(config.report_to),
        remove_unused_columns=False,
        label_names=["labels"],
        ddp_find_unused_parameters=True,  # a batch without pictures leaves fuser and projector without gradients
        accelerator_config={"dispatch_batches": False},  # a batch has tensors that cannot be cut by rows
        disable_tqdm=True,
    )


class DehvfTrainer(WholeCheckpoints):
    """The Trainer, with weight decay on matrices alone, checkpoints that hold the adapter alone, and every step looked at.

    node_rates: factors on the learning rate of single nodes. max_bad_steps: steps in a row with a loss or gradient that is
    not finite, which end the run.
    """

    def __init__(
        self,
        model: DehvfModel,
        args: TrainingArguments,
        samples: Dataset,
        callbacks: list[TrainerCallback],
        node_rates: Mapping[str, float] | None = None,
        max_bad_steps: int = 5,
    ) -> None:
        self.node_rates = dict(node_rates or {})
        self.tokenizer = model.processor.tokenizer
        self.watch = FiniteSteps(max_bad_steps, self._forward, self._in_any_process)
        super().__init__(
            model=model,
            args=args,
            train_dataset=samples,
            data_collator=getattr(samples, "collator", None) or NamingCollator(self.tokenizer.pad_token_id),
            callbacks=[*callbacks, self.watch, EachEpochItsOrder()],
        )

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Matrices and tables, not biases and norms."""
        return [name for name, parameter in model.named_parameters() if parameter.requires_grad and parameter.ndim > 1]

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Groups by weight decay, as the Trainer makes them, taken apart by learning rate."""
        if self.optimizer is not None:
            return self.optimizer
        optimizer = super().create_optimizer(model)
        named = {
            parameter: rate
            for node, rate in self.node_rates.items()
            for parameter in self.model.nodes[node].parameters()
        }
        groups = []
        for group in optimizer.param_groups:
            for rate in dict.fromkeys(named.get(parameter, 1.0) for parameter in group["params"]):
                own = [parameter for parameter in group["params"] if named.get(parameter, 1.0) == rate]
                groups.append({**group, "params": own, "lr": group["lr"] * rate})
        # transformers logs the first group's rate
        optimizer.param_groups[:] = sorted(groups, key=lambda group: group["lr"] != self.args.learning_rate)
        return optimizer

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """Raises: DataError where nothing in the very first batch is to be learned."""
        ids = inputs.pop(IDS, [])
        if self.state.global_step == 0 and not any(has_answer(row) for row in inputs["labels"].tolist()):
            row = inputs["input_ids"][0][inputs["attention_mask"][0].bool()]
            raise DataError(no_answer(ids[0] if ids else "?", row.tolist(), self.tokenizer))
        batch = dict(inputs)
        loss = super().training_step(model, inputs, num_items_in_batch)
        self.watch.saw(batch, ids, loss)
        return loss

    def log(self, logs: dict[str, Any], start_time: float | None = None) -> None:
        super().log(self.watch.clean(logs), start_time)

    def _forward(self, batch: dict[str, Any]) -> Any:
        return self.model(**self._prepare_inputs(batch))

    def _in_any_process(self, found: bool) -> bool:
        if self.accelerator.num_processes == 1:
            return found
        flag = torch.tensor(float(found), device=self.args.device)
        return bool(self.accelerator.reduce(flag, "sum") > 0)

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler | None:
        sampler = super()._get_train_sampler(train_dataset)
        if isinstance(sampler, LengthGroupedSampler):
            return SeededLengthSampler(sampler.batch_size, sampler.lengths, self.args.seed)
        return sampler


class SeededLengthSampler(LengthGroupedSampler):
    """Samples of like length together, in an order that seed and epoch alone decide, so that a resumed run finds it again."""

    def __init__(self, batch_size: int, lengths: list[int], seed: int) -> None:
        super().__init__(batch_size, lengths=lengths, generator=torch.Generator())
        self.seed, self.epoch = seed, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        self.generator.manual_seed(self.seed + self.epoch)
        return super().__iter__()


class NamingCollator(Collator):
    """Batches that say which samples they are made of."""

    def __call__(self, items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        batch = super().__call__(items)
        if all("id" in item for item in items):
            batch[IDS] = [str(item["id"]) for item in items]
        return batch


class EachEpochItsOrder(TrainerCallback):
    """Tells the sampler which epoch begins, also where accelerate's way of skipping batches does not reach it."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        state.save_steps, state.logging_steps = args.save_steps, args.logging_steps

    def on_epoch_begin(self, args: Any, state: Any, control: Any, train_dataloader: Any = None, **_: Any) -> None:
        if hasattr(train_dataloader, "set_epoch"):
            train_dataloader.set_epoch(int(state.epoch or 0))


class StepReport(TrainerCallback):
    """Calls `report(step, steps, loss)` at every step, with the latest logged loss."""

    def __init__(self, report: Callable[[int, int, float | None], None]) -> None:
        self.report, self.loss = report, None

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        self.loss = (logs or {}).get("loss", self.loss)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.report(state.global_step, state.max_steps, self.loss)
