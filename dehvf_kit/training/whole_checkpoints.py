"""The Trainer's checkpoints, written beside their place and named when they are whole."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import nn
from transformers import Trainer

from dehvf_kit.adapter.checkpoint import read_weights, restore
from dehvf_kit.errors import AdapterError, TrainingError
from dehvf_kit.training.checkpoints import checkpoints, retire, seal
from dehvf_kit.utils import atomic


class WholeCheckpoints(Trainer):
    """A Trainer whose checkpoints hold the adapter, optimiser, schedule, position and random states, and are never half there.

    The Trainer's own `_save_checkpoint` runs in a folder beside; then the result is sealed, flushed and renamed, and older
    ones are taken away. What it reads back it reads without pickle (`weights_only=True`).
    """

    _saving_in: Path | None = None

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._saving_in) if self._saving_in is not None else super()._get_output_dir(trial)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        place = Path(super()._get_output_dir(trial))
        name = f"checkpoint-{self.state.global_step}"
        self._saving_in = place / f"{atomic.UNFINISHED}checkpoints"
        try:
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                seal(self._saving_in / name)
                atomic.publish(self._saving_in / name, place / name)
                self._saving_in.rmdir()
                retire(place)
        except (OSError, RuntimeError, SafetensorError, AdapterError) as error:
            shutil.rmtree(self._saving_in, ignore_errors=True)
            if "DataLoader worker" in str(
                error
            ):  # torch reports a worker's death wherever the main thread happens to be
                raise
            raise TrainingError(_not_saved(place, name, error)) from error
        finally:
            self._saving_in = None
        self.accelerator.wait_for_everyone()

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        restore(self.model, read_weights(Path(resume_from_checkpoint)), resume_from_checkpoint)


def _not_saved(place: Path, name: str, error: BaseException) -> str:
    """Disks that are full make torch raise RuntimeError, safetensors its own, and everything else OSError."""
    if isinstance(error, AdapterError):
        error = error.__cause__ or error
    reason = getattr(error, "strerror", None) or (str(error) or type(error).__name__).splitlines()[0]
    try:
        free = f"; the disk has {shutil.disk_usage(place).free / 2**20:,.0f} MiB free"
    except OSError:
        free = ""
    kept = checkpoints(place)
    before = f"{kept[0]} is whole: go on from it by --resume" if kept else "there is no earlier one"
    return f"{place / name}: cannot be written: {reason}{free}; {before}"
