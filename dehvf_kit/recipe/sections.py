"""The recipe's `training` and `generation` sections, and the precision that training takes on this machine."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from dehvf_kit.api.config import MAX_BEAMS, MAX_COUNT, MAX_EPOCHS, MAX_SEED, MAX_SIZE, MAX_WORKERS, Settings
from dehvf_kit.errors import DehvfError

ACCELERATE = {"float32": "no", "bfloat16": "bf16", "float16": "fp16"}

PositiveFloat = Annotated[float, Field(gt=0)]
Beta = Annotated[float, Field(ge=0, lt=1)]
Tracker = Literal[
    "azure_ml", "clearml", "codecarbon", "comet_ml", "dagshub", "dvclive", "flyte", "kubeflow", "mlflow", "neptune", "swanlab",
    "tensorboard", "trackio", "wandb",
]  # fmt: skip


class TrainingConfig(Settings):
    """Optimisation as LaVIN sets it up, which DEHVF follows (paper: experiment details, Table 5).

    The learning rate is `base_learning_rate * batch_size * gradient_accumulation * processes / 256`.
    """

    epochs: float = Field(20.0, gt=0, le=MAX_EPOCHS, description="passes over the training set")
    max_steps: int = Field(0, ge=0, le=MAX_COUNT, description="optimiser steps; 0: as many as `epochs` make")
    max_minutes: float = Field(
        0.0, ge=0, le=MAX_COUNT, description="minutes of training that end a run early, its rate decayed by then; 0: no bound"
    )
    batch_size: int = Field(4, ge=1, le=MAX_SIZE, description="samples per device and step")
    gradient_accumulation: int = Field(1, ge=1, le=MAX_SIZE, description="batches summed before an optimiser step")
    base_learning_rate: float = Field(2e-2, gt=0, description="learning rate at an effective batch of 256")
    node_rates: dict[str, PositiveFloat] = Field(
        default_factory=dict, description="factors on the learning rate of single nodes, {fuser: 0.1}"
    )
    weight_decay: float = Field(0.02, ge=0, description="none on biases, norms and embeddings of one dimension")
    betas: tuple[Beta, Beta] = Field((0.9, 0.95), description="AdamW's betas")
    warmup_epochs: float = Field(
        2.0,
        ge=0,
        le=MAX_EPOCHS,
        description="epochs of linear warm-up before the half-cycle cosine to zero; half of a run that max_steps ends earlier",
    )
    max_grad_norm: float = Field(0.0, ge=0, description="clip gradients to this norm; 0: never")
    max_length: int = Field(
        512, ge=2, le=MAX_SIZE, description="tokens per sample, prompt and answer; longer prompts lose their start"
    )
    precision: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "float32", description="of autocast, adapters stay float32; float16 with loss scaling; auto: bfloat16 if in hardware"
    )
    gradient_checkpointing: bool = Field(False, description="recompute decoder layers in backward to save memory")
    compile: bool = Field(
        False, description="compile the decoder's layers with the memory in them; batches are padded to one of few lengths"
    )
    group_by_length: bool = Field(False, description="batch samples of like length together")
    num_workers: int = Field(0, ge=0, le=MAX_WORKERS, description="processes that decode and resize images")
    report_to: Literal["auto", "none"] | Tracker | list[Tracker] = Field(
        "auto", description="trackers that get the figures besides the run's own log; auto: TensorBoard where it is installed"
    )
    cache_features: bool = Field(
        False, description="run frozen encoders once per image and keep the features on disk, for later runs too"
    )
    cache_folder: Path | None = Field(
        None, description="where features are kept; null: $DEHVF_KIT_CACHE/features, or the user's cache folder"
    )
    cache_dtype: Literal["auto", "float32", "bfloat16", "float16", "int8"] = Field(
        "auto", description="what features are kept in; auto: as the encoder yields them, bit for bit; int8: with a scale a token"
    )
    cache_limit_gib: float = Field(
        0.0, ge=0, description="GiB the cache may hold, the longest unused making room; 0: as many as the disk has"
    )
    init_from: str | None = Field(
        None, description="adapter of the same graph (folder or hub id) whose weights the training begins with"
    )
    eval_steps: int | Literal["epoch"] | None = Field(
        None, description="steps between two scores of the validation split, or epoch; null: training is not scored"
    )
    keep_best: bool = Field(True, description="with eval_steps: save the adapter of the best score, not the last one")
    metric_for_best: Literal["score", "loss"] = Field(
        "score", description="what is best: the highest score that the data set gives, or the lowest loss"
    )
    patience: int = Field(0, ge=0, le=MAX_COUNT, description="scores in a row without a better one that end a run; 0: none do")
    test_at_end: bool = Field(False, description="score the finished adapter on the test split")
    save_steps: int = Field(500, ge=1, le=MAX_COUNT, description="steps between checkpoints")
    logging_steps: int = Field(10, ge=1, le=MAX_COUNT, description="steps between log lines")
    max_bad_steps: int = Field(
        5, ge=1, le=MAX_COUNT, description="skipped steps in a row, their loss or gradient not finite, that end a run"
    )
    seed: int = Field(0, ge=0, le=MAX_SEED, description="seed of initial weights, order and dropout")

    @field_validator("eval_steps")
    @classmethod
    def _some_steps(cls, value: int | str | None) -> int | str | None:
        if isinstance(value, int) and not 1 <= value <= MAX_COUNT:
            raise ValueError(f"given {value}; wants a number of steps from 1, epoch, or null")
        return value

    @model_validator(mode="after")
    def _patience_has_scores(self) -> TrainingConfig:
        if self.patience and self.eval_steps is None:
            raise ValueError(f"patience ({self.patience}) counts scores of the validation split; set eval_steps")
        return self

    @model_validator(mode="after")
    def _compiles_whole_layers(self) -> TrainingConfig:
        if self.compile and self.gradient_checkpointing:
            raise ValueError(
                "compile cannot be combined with gradient_checkpointing, which runs each layer twice; set one to false"
            )
        return self

    @model_validator(mode="after")
    def _warmup_fits(self) -> TrainingConfig:
        if not self.max_steps and self.warmup_epochs >= self.epochs:
            raise ValueError(f"warmup_epochs ({self.warmup_epochs:g}) must be less than epochs ({self.epochs:g})")
        return self

    def samples_per_step(self, processes: int = 1) -> int:
        """Samples that one optimiser step sees on all processes: the effective batch."""
        return self.batch_size * self.gradient_accumulation * processes

    def num_steps(self, samples: int, processes: int = 1) -> int:
        """Optimiser steps of a run: `max_steps`, or what `epochs` make, an incomplete last step counted whole.

        Args:
            samples: size of the training set.
            processes: how many processes train together, each on its own batches.
        """
        steps_per_epoch = math.ceil(samples / self.samples_per_step(processes))
        return self.max_steps or max(1, math.ceil(steps_per_epoch * self.epochs))

    def num_eval_steps(self, samples: int, processes: int = 1) -> int | None:
        """Steps between two scores of the validation split; None where training is not scored."""
        return math.ceil(samples / self.samples_per_step(processes)) if self.eval_steps == "epoch" else self.eval_steps

    def num_warmup_steps(self, samples: int, processes: int = 1) -> int:
        """Steps of linear warm-up: `warmup_epochs`, or half of a run that `max_steps` ends before its rate has reached the peak."""
        wanted, steps = self._wanted_warmup(samples, processes), self.num_steps(samples, processes)
        return wanted if wanted < steps else steps // 2

    def cut_warmup(self, samples: int, processes: int = 1) -> str:
        """What to say where the run ends before `warmup_epochs` do; an empty text where it does not."""
        wanted, steps = self._wanted_warmup(samples, processes), self.num_steps(samples, processes)
        return "" if wanted < steps or steps == 1 else (
            f"training.warmup_epochs={self.warmup_epochs:g} makes {wanted:,} steps and the run has {steps:,}, so the warm-up ends "
            f"after {steps // 2:,}; set training.warmup_epochs to suit training.max_steps"
        )  # fmt: skip

    def _wanted_warmup(self, samples: int, processes: int) -> int:
        return round(math.ceil(samples / self.samples_per_step(processes)) * self.warmup_epochs)

    def learning_rate(self, processes: int = 1) -> float:
        """The peak learning rate: `base_learning_rate` scaled by the effective batch over 256, as LaVIN does."""
        return self.base_learning_rate * self.batch_size * self.gradient_accumulation * processes / 256


class GenerationConfig(Settings):
    """Defaults of `generate`, in transformers' terms."""

    max_new_tokens: int = Field(32, ge=1, le=MAX_SIZE, description="tokens an answer may have")
    num_beams: int = Field(1, ge=1, le=MAX_BEAMS, description="beams; 1: greedy or sampled")
    do_sample: bool = Field(False, description="sample instead of taking the likeliest token")
    temperature: float = Field(1.0, gt=0, description="flattens or sharpens the distribution sampled from")
    top_p: float = Field(1.0, gt=0, le=1, description="sample from the smallest set of tokens with this probability")


def bfloat16_is_fast() -> bool:
    """Whether this machine multiplies bfloat16 matrices in hardware."""
    import torch

    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def precision_here(precision: str) -> str:
    """A recipe's precision; `auto` is bfloat16 where it is computed in hardware, else float16 on a GPU and float32 on a CPU.

    Raises: DehvfError where the launcher asks for another one.
    """
    import torch

    if precision == "auto":
        precision = "bfloat16" if bfloat16_is_fast() else "float16" if torch.cuda.is_available() else "float32"
    if (launched := os.environ.get("ACCELERATE_MIXED_PRECISION", "no").lower()) not in ("no", ACCELERATE[precision]):
        raise DehvfError(
            f"the launcher asks for mixed_precision {launched}, the recipe for training.precision={precision}; set "
            'mixed_precision: "no", and the recipe\'s field as you want it'
        )
    return precision
