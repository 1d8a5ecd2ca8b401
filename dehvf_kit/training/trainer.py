"""transformers' Trainer with the paper's optimisation: learning-rate rule, weight-decay groups, warm-up in epochs."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import Trainer, TrainerCallback, TrainingArguments

from dehvf_kit.checkpoint import read_weights, restore
from dehvf_kit.data.encoding import Collator, EncodedSamples
from dehvf_kit.model import DehvfModel
from dehvf_kit.training.config import TrainingConfig
from dehvf_kit.training.trackers import trackers


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
        save_total_limit=2,
        logging_steps=config.logging_steps,
        logging_first_step=True,
        seed=config.seed,
        data_seed=config.seed,
        report_to=trackers(config.report_to),
        remove_unused_columns=False,
        label_names=["labels"],
        disable_tqdm=True,
    )


class DehvfTrainer(Trainer):
    """The Trainer, with weight decay on matrices alone, and checkpoints that hold the adapter alone."""

    def __init__(
        self, model: DehvfModel, args: TrainingArguments, samples: EncodedSamples, callbacks: list[TrainerCallback]
    ) -> None:
        super().__init__(
            model=model,
            args=args,
            train_dataset=samples,
            data_collator=Collator(model.processor.tokenizer.pad_token_id),
            callbacks=callbacks,
        )

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Matrices and tables, not biases and norms."""
        return [name for name, parameter in model.named_parameters() if parameter.requires_grad and parameter.ndim > 1]

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        restore(self.model, read_weights(Path(resume_from_checkpoint)), resume_from_checkpoint)


class StepReport(TrainerCallback):
    """Calls `report(step, steps, loss)` at every step, with the latest logged loss."""

    def __init__(self, report: Callable[[int, int, float | None], None]) -> None:
        self.report, self.loss = report, None

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        self.loss = (logs or {}).get("loss", self.loss)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.report(state.global_step, state.max_steps, self.loss)
