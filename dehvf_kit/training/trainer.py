"""transformers' Trainer with the paper's optimisation: learning-rate rule, weight-decay groups, warm-up in epochs."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, Sampler
from transformers import PrinterCallback, TrainerCallback, TrainingArguments
from transformers.trainer_pt_utils import LengthGroupedSampler, get_length_grouped_indices
from transformers.trainer_utils import EvalLoopOutput

from dehvf_kit.adapter.checkpoint import restore
from dehvf_kit.adapter.files import read_weights
from dehvf_kit.data.encoding import Collator
from dehvf_kit.errors import DataError, DehvfError, ImageError, TrainingError
from dehvf_kit.model.model import DehvfModel
from dehvf_kit.recipe.sections import TrainingConfig, precision_here
from dehvf_kit.training.callbacks import SCORE, SPENT, EpochOrder, FiniteSteps, Report, TimeBudget
from dehvf_kit.training.checkpoints import CheckpointingTrainer, fault
from dehvf_kit.training.training_set import IDS, NOTED, SKIPPED, has_answer, no_answer
from dehvf_kit.training.validation import Questions
from dehvf_kit.utils.atomic import is_folder

log = logging.getLogger(__name__)
MODULES = {"azure_ml": "azureml", "flyte": "flytekit", "kubeflow": ""}
"""Modules of the trackers that are not called like them; Kubeflow's is a part of transformers."""
PACKAGES = {"azure_ml": "azureml-core", "flyte": "flytekit", "tensorboard": "'dehvf-kit[train]'"}

SPAN = 4
"""Batches that samples of like length are sorted within: few, so that each stretch of training has every length."""


def training_arguments(config: TrainingConfig, output: Path, samples: int, processes: int = 1) -> TrainingArguments:
    """The recipe's training section in transformers' terms.

    Args:
        config: the section.
        output: where checkpoints go.
        samples: size of the training set, by which epochs become steps.
        processes: how many processes train together.

    Raises:
        DehvfError: where `report_to` names a tracker that is not installed, or several processes share a `max_minutes`.
    """
    if config.max_minutes and processes > 1:
        raise DehvfError(
            f"training.max_minutes={config.max_minutes:g} with {processes} processes, whose clocks differ and whose learning rates "
            "would, too; set training.max_steps in its place, or train in one process"
        )
    precision = precision_here(config.precision)
    steps, warmup = config.num_steps(samples, processes), config.num_warmup_steps(samples, processes)
    if cut := config.cut_warmup(samples, processes):
        log.warning("%s", cut)
    return TrainingArguments(
        output_dir=str(output),
        max_steps=steps,
        warmup_steps=warmup,
        lr_scheduler_type="cosine",
        learning_rate=config.learning_rate(processes),
        per_device_train_batch_size=config.batch_size,
        gradient_accumulation_steps=config.gradient_accumulation,
        weight_decay=config.weight_decay,
        adam_beta1=config.betas[0],
        adam_beta2=config.betas[1],
        max_grad_norm=config.max_grad_norm,
        use_cpu=not torch.cuda.is_available(),
        bf16=precision == "bfloat16",
        fp16=precision == "float16",
        activation_checkpointing=config.gradient_checkpointing,
        activation_checkpointing_kwargs={"use_reentrant": False} if config.gradient_checkpointing else None,
        train_sampling_strategy="group_by_length" if config.group_by_length else "random",
        dataloader_num_workers=config.num_workers,
        dataloader_pin_memory=torch.cuda.is_available(),
        save_steps=config.save_steps,
        eval_strategy="no" if config.eval_steps is None else "steps",
        eval_steps=config.num_eval_steps(samples, processes),
        per_device_eval_batch_size=config.batch_size,
        metric_for_best_model=config.metric_for_best,
        greater_is_better=config.metric_for_best == "score",
        restore_callback_states_from_checkpoint=config.patience > 0,
        logging_steps=config.logging_steps,
        logging_first_step=True,
        seed=config.seed,
        data_seed=config.seed,
        report_to=trackers(config.report_to),
        remove_unused_columns=False,
        label_names=["labels"],
        accelerator_config={"dispatch_batches": False},  # a batch has tensors that cannot be cut by rows
        disable_tqdm=True,
    )


def trackers(report_to: str | Sequence[str]) -> list[str]:
    """transformers' `report_to`; `auto` is TensorBoard where it is installed. Raises: DehvfError for one that is not."""
    names = [report_to] if isinstance(report_to, str) else list(dict.fromkeys(report_to))
    if names in (["none"], ["auto"]):
        return ["tensorboard"] if names == ["auto"] and importlib.util.find_spec("tensorboard") is not None else []
    for name in names:
        module = MODULES.get(name, name)
        if module and importlib.util.find_spec(module) is None:
            package = PACKAGES.get(name, name.replace("_", "-"))
            raise DehvfError(f"training.report_to: {name} is not installed; pip install {package}, or set training.report_to=none")
    return names


class DehvfTrainer(CheckpointingTrainer):
    """The Trainer with weight decay on matrices alone, checkpoints of the adapter alone, and every step checked.

    Args:
        model: the model, with a processor.
        args: as `training_arguments` makes them.
        samples: the training set; its `collator`, where it has one, makes the batches.
        callbacks: further callbacks.
        node_rates: factors on the learning rate of single nodes, by name.
        max_bad_steps: steps in a row with a loss or gradient that is not finite, which end the run.
        max_minutes: minutes of training that end the run before its last step; 0: as long as the steps take.
        report: called after every step with the step, all steps, and the step's loss.
        questions: the splits that are scored, by the prefix of their figures; `eval` while the run trains.
        keep_best: whether each better score leaves a checkpoint that is kept.
    """

    def __init__(
        self,
        model: DehvfModel,
        args: TrainingArguments,
        samples: Dataset,
        callbacks: list[TrainerCallback],
        node_rates: Mapping[str, float] | None = None,
        max_bad_steps: int = 5,
        max_minutes: float = 0.0,
        report: Report = lambda *_: None,
        questions: Mapping[str, Questions] | None = None,
        keep_best: bool = False,
    ) -> None:
        self.budget = TimeBudget(max_minutes) if max_minutes else None
        self.questions, self.keep_best = dict(questions or {}), keep_best
        self.node_rates = dict(node_rates or {})
        self.tokenizer = model.processor.tokenizer
        self.finite_steps = FiniteSteps(
            max_bad_steps, lambda batch: self.model(**self._prepare_inputs(batch)), self._in_any_process, report
        )
        try:
            super().__init__(
                model=model,
                args=args,
                train_dataset=samples,
                eval_dataset=self.questions["eval"].encoded if "eval" in self.questions else None,
                data_collator=getattr(samples, "collator", None)
                or NamingCollator(self.tokenizer.pad_token_id, samples.max_length if model.compiled else 0),
                callbacks=[
                    self.finite_steps,  # before `callbacks`: it reports a step, and one of them stops at it
                    *callbacks,
                    EpochOrder(),
                    *([self.budget] if self.budget else []),
                ],
            )
        except ValueError as error:  # accelerate's, of the environment
            raise DehvfError(f"the Trainer cannot begin: {error}; look at the environment's ACCELERATE_* variables") from error
        if args.fp16 and self.accelerator.scaler is None and args.device.type == "cpu":  # accelerate would train in float32
            self.accelerator.native_amp, self.accelerator.scaler = True, torch.amp.GradScaler("cpu")
        self.remove_callback(PrinterCallback)  # the kit shows progress itself

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler | None:
        sampler = super()._get_train_sampler(train_dataset)
        if isinstance(sampler, LengthGroupedSampler):
            return SeededLengthSampler(sampler.batch_size, sampler.lengths, self.args.seed)
        return sampler

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Matrices and tables, not biases and norms."""
        return [name for name, parameter in model.named_parameters() if parameter.requires_grad and parameter.ndim > 1]

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """The Trainer's groups by weight decay, each split by learning rate."""
        if self.optimizer is not None:
            return self.optimizer
        optimizer = super().create_optimizer(model)
        rates = {parameter: rate for node, rate in self.node_rates.items() for parameter in self.model.nodes[node].parameters()}
        groups = []
        for group in optimizer.param_groups:
            for rate in dict.fromkeys(rates.get(parameter, 1.0) for parameter in group["params"]):
                own = [parameter for parameter in group["params"] if rates.get(parameter, 1.0) == rate]
                groups.append({**group, "params": own, "lr": group["lr"] * rate})
        # transformers logs the first group's rate
        optimizer.param_groups[:] = sorted(groups, key=lambda group: group["lr"] != self.args.learning_rate)
        return optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """The Trainer's cosine, or where the run's time is bounded the same cosine by whichever is nearer its end."""
        if self.budget is None:
            return super().create_scheduler(num_training_steps, optimizer)
        budget, warmup = self.budget, self.args.get_warmup_steps(num_training_steps)
        self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer or self.optimizer, lambda step: budget.rate(step, warmup, num_training_steps)
        )
        return self.lr_scheduler

    def get_batch_samples(self, *args: Any, **keywords: Any) -> Any:
        """The batches of a step. Raises: ImageError for an image that cannot be read, once the steps before are saved."""
        try:
            return super().get_batch_samples(*args, **keywords)
        except ImageError:
            step = self.state.global_step
            if step and self.accelerator.num_processes == 1 and not is_folder(Path(self.args.output_dir) / f"checkpoint-{step}"):
                self._save_checkpoint(self.model, None)
            raise

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """One forward and backward. Raises: DataError where the very first batch has no token to learn."""
        ids = inputs.pop(IDS, [])
        self._note_skipped(inputs.pop(SKIPPED, []))
        self._count(inputs.pop(NOTED, {}))
        if self.state.global_step == 0 and not any(has_answer(row) for row in inputs["labels"].tolist()):
            row = inputs["input_ids"][0][inputs["attention_mask"][0].bool()]
            raise DataError(no_answer(ids[0] if ids else "?", row.tolist(), self.tokenizer))
        batch = dict(inputs)
        loss = super().training_step(model, inputs, num_items_in_batch)
        self.finite_steps.saw(batch, ids, loss)
        return loss

    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **keywords: Any) -> EvalLoopOutput:
        """The mean loss of a split's batches, and its score. The random states of the training stay as they are."""
        devices = [self.args.device.index] if self.args.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **keywords)
            split = any(hasattr(parameter, "to_local") for parameter in self.model.parameters())
            output.metrics[f"{metric_key_prefix}_{SCORE}"] = self.questions[metric_key_prefix].score(self.model, share=not split)
        return output

    def prediction_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **keywords: Any) -> Any:
        inputs = {key: value for key, value in inputs.items() if key not in (IDS, SKIPPED, NOTED)}
        return super().prediction_step(model, inputs, *args, **keywords)

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        better = super()._determine_best_metric(metrics, trial)
        self.control.should_save |= better and self.keep_best
        return better

    def take_best(self) -> None:
        """Put the weights of the best score's checkpoint into the model; where no step has a score, those of the last stay.

        Raises: TrainingError where it is damaged.
        """
        if self.state.best_global_step is None:
            log.warning("no step has a score of the validation split, so the adapter is that of the last step")
            return
        place = Path(self.args.output_dir) / f"checkpoint-{self.state.best_global_step}"
        what = fault(place) if is_folder(place) else "it is missing"
        if what is not None:
            raise TrainingError(f"{place}: the checkpoint of the best score cannot be used: {what}; begin again in another folder")
        restore(self.model, read_weights(place), str(place))

    def _note_skipped(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Keep skipped samples of a stream in the state, which checkpoints hold; each is met again in every pass."""
        for row in rows:
            if {SKIPPED: row} not in self.state.log_history:
                self.state.log_history.append({SKIPPED: row})

    def _count(self, noted: Mapping[str, Sequence[str]]) -> None:
        """Count a stream's noted samples in the state, which checkpoints hold, and name the first."""
        if noted and not any(NOTED in row for row in self.state.log_history):
            self.state.log_history.append({NOTED: {}})
        for what, ids in noted.items():
            counts = next(row[NOTED] for row in self.state.log_history if NOTED in row)
            if what not in counts:
                log.warning("sample '%s': %s; such samples are counted at the end of the run", ids[0], what)
            counts[what] = [counts.get(what, [0])[0] + len(ids), counts.get(what, [0, ids[0]])[1]]

    def log(self, logs: dict[str, Any], start_time: float | None = None) -> None:
        super().log(self.finite_steps.clean(logs) | ({SPENT: round(self.budget.spent, 1)} if self.budget else {}), start_time)

    def _in_any_process(self, found: bool) -> bool:
        if self.accelerator.num_processes == 1:
            return found
        flag = torch.tensor(float(found), device=self.args.device)
        return bool(self.accelerator.reduce(flag, "sum") > 0)


class SeededLengthSampler(LengthGroupedSampler):
    """Samples of like length together, in an order set by seed and epoch alone, so that a resumed run repeats it.

    Lengths are sorted within every `SPAN` batches, which then come in random order: where a question's length tells its kind,
    batches sorted over a longer stretch train on one kind for many steps (docs/results.md). The longest sample is in the first
    batch, so that a device without the memory for it says so at once.
    """

    def __init__(self, batch_size: int, lengths: list[int], seed: int) -> None:
        super().__init__(batch_size, lengths=lengths)
        self.seed, self.epoch = seed, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        chance = torch.Generator().manual_seed(self.seed + self.epoch)
        order = get_length_grouped_indices(self.lengths, self.batch_size, SPAN, chance)
        for start in range(0, len(order), SPAN * self.batch_size):
            span = order[start : start + SPAN * self.batch_size]
            batches = [span[place : place + self.batch_size] for place in range(0, len(span), self.batch_size)]
            ordered = start == 0 or len(span) % self.batch_size  # the longest first, an incomplete batch last
            places = range(len(batches)) if ordered else torch.randperm(len(batches), generator=chance).tolist()
            for place in places:
                yield from batches[place]


class NamingCollator(Collator):
    """Batches that carry the ids of their samples."""

    def __call__(self, items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        batch = super().__call__(items)
        if all("id" in item for item in items):
            batch[IDS] = [str(item["id"]) for item in items]
        return batch
