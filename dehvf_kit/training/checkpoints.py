"""Checkpoints on disk: sealed by a list of their files' hashes, found again newest first, the damaged put aside.

transformers' Trainer fills a checkpoint; here it gets its seal and its name. A folder under the name `checkpoint-N` was
flushed whole before it got that name, so a damaged one is the work of a disk or of somebody's hand, not of a kill.
"""

from __future__ import annotations

import itertools
import json
import logging
import re
from pathlib import Path
from typing import Any

from dehvf_kit.errors import TrainingError, listing
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
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{SEAL} cannot be read: {error}"
    return None


def newest(folder: Path, put_aside: bool = True) -> Path | None:
    """The newest whole checkpoint; None where there are none at all.

    put_aside: rename damaged ones that are newer than it to `damaged-checkpoint-N`, since the run will come to that step
    again. Raises: TrainingError where there are checkpoints and every one is damaged.
    """
    faults = {}
    for place in checkpoints(folder):
        what = fault(place)
        if what is not None:
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


def retire(folder: Path, keep: int = KEPT) -> None:
    """Take away all but the newest checkpoints."""
    for old in checkpoints(folder)[keep:]:
        atomic.remove_folder(old)


def _facts(file: Path) -> dict[str, Any]:
    return {"bytes": file.stat().st_size, "sha256": atomic.sha256(file)}


def _free(place: Path) -> Path:
    """The name itself, or with the first number at its end that nothing has."""
    names = (place.with_name(f"{place.name}.{number}") for number in itertools.count(2))
    return next(name for name in itertools.chain([place], names) if not name.exists())
