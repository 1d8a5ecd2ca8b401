"""Checkpoints on disk: written whole, sealed by a list of their files' hashes, found again newest first.

transformers' Trainer fills a checkpoint in a folder beside its place; it gets its seal, is flushed, and only then its name
`checkpoint-N`. A damaged folder of that name is therefore the work of a disk or of somebody's hand, not of a kill.
"""

from __future__ import annotations

import itertools
import json
import logging
import re
import shutil
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import nn
from transformers import Trainer
from transformers.trainer import TRAINER_STATE_NAME

from dehvf_kit.adapter.checkpoint import restore
from dehvf_kit.adapter.files import TRAINERS, read_weights
from dehvf_kit.errors import AdapterError, TrainingError, listing
from dehvf_kit.utils import atomic

SEAL = "seal.json"
KEPT = 2
NAME = re.compile(r"checkpoint-(\d+)")
log = logging.getLogger(__name__)


def step_of(folder: Path) -> int:
    """The optimiser step after which a checkpoint was taken."""
    return int(folder.name.rpartition("-")[2])


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a folder, whole or not, newest first."""
    found = [place for place in folder.glob("checkpoint-*") if NAME.fullmatch(place.name) and place.is_dir()]
    return sorted(found, key=step_of, reverse=True)


def seal(folder: Path) -> None:
    """Write the list of a folder's files into it, with their sizes and hashes."""
    files = {str(file.relative_to(folder)): _facts(file) for file in sorted(folder.rglob("*")) if file.is_file()}
    (folder / SEAL).write_text(json.dumps({"files": files}, indent=2) + "\n", encoding="utf-8")


def fault(folder: Path) -> str | None:
    """What is wrong with a checkpoint; None where every file is as it was written."""
    try:
        files = json.loads((folder / SEAL).read_text(encoding="utf-8"))["files"]
        for name, facts in files.items():
            file = folder / name
            if not file.is_file():
                return f"'{name}' is missing"
            if _facts(file) != facts:
                return f"'{name}' was altered or cut short"
    except FileNotFoundError:
        return f"it has no {SEAL}"
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return f"{SEAL} cannot be read: {error}"
    if TRAINER_STATE_NAME in files:
        step = json.loads((folder / TRAINER_STATE_NAME).read_text(encoding="utf-8"))["global_step"]
        if step != step_of(folder):
            return f"it holds step {step} and was renamed"
    return None


def newest(folder: Path, put_aside: bool = True) -> Path | None:
    """The newest whole checkpoint.

    Args:
        folder: where the checkpoints are.
        put_aside: rename newer, damaged ones to `damaged-checkpoint-N`, since the run will reach that step again.

    Returns:
        Its folder; None where there are no checkpoints at all.

    Raises:
        TrainingError: where there are checkpoints and every one is damaged.
    """
    faults = {}
    for place in checkpoints(folder):
        if (what := fault(place)) is not None:
            faults[place] = what
            continue
        for damaged, reason in faults.items():
            log.warning("%s is damaged (%s); going on from %s", damaged, reason, place.name)
            if put_aside:
                damaged.rename(_free(damaged.with_name(f"damaged-{damaged.name}")))
        return place
    if faults:
        found = listing(f"{place.name}: {what}" for place, what in faults.items())
        raise TrainingError(f"{folder}: every checkpoint is damaged ({found}); begin again in another folder")
    return None


def retire(folder: Path, best: int | None = None, keep: int = KEPT) -> None:
    """Remove all checkpoints but the newest, and the one of step `best`."""
    for old in checkpoints(folder)[keep:]:
        if step_of(old) != best:
            atomic.remove_folder(old)


def _facts(file: Path) -> dict[str, Any]:
    return {"bytes": file.stat().st_size, "sha256": atomic.sha256(file)}


def _free(place: Path) -> Path:
    """The name itself, or with the first number at its end that nothing has."""
    names = (place.with_name(f"{place.name}.{number}") for number in itertools.count(2))
    return next(name for name in itertools.chain([place], names) if not name.exists())


class CheckpointingTrainer(Trainer):
    """A Trainer whose checkpoints hold the adapter, optimiser, schedule, position and random states, and are always whole.

    The Trainer's own `_save_checkpoint` runs in a folder beside; the result is then sealed, flushed and renamed, and older
    ones are removed. They are read back without pickle (`weights_only=True`).
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
                (self._saving_in / name / TRAINERS).unlink(missing_ok=True)
                if self.state.best_model_checkpoint is not None:  # a path in the unfinished folder; `best_global_step` says which
                    self.state.best_model_checkpoint = None
                    self.state.save_to_json(str(self._saving_in / name / TRAINER_STATE_NAME))
                seal(self._saving_in / name)
                atomic.publish(self._saving_in / name, place / name)
                self._saving_in.rmdir()
                retire(place, self.state.best_global_step)
        except (OSError, RuntimeError, SafetensorError, AdapterError) as error:
            shutil.rmtree(self._saving_in, ignore_errors=True)
            if "DataLoader worker" in str(error):  # torch reports a worker's death wherever the main thread happens to be
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
    error = atomic.refused(error) or error
    reason = getattr(error, "strerror", None) or (str(error) or type(error).__name__).splitlines()[0]
    try:
        free = f"; the disk has {shutil.disk_usage(place).free / 2**20:,.0f} MiB free"
    except OSError:
        free = ""
    kept = checkpoints(place)
    before = f"{kept[0]} is whole: go on from it by --resume" if kept else "begin again by --resume, there is no earlier one"
    return f"{place / name}: cannot be written: {reason}{free}; make room; {before}"
