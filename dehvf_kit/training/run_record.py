"""What a run was begun with, kept in its folder: the resolved recipe, the data files' hashes, versions. Compared on resume."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import transformers

from dehvf_kit._version import __version__
from dehvf_kit.data.samples import Sample
from dehvf_kit.errors import TrainingError, shown
from dehvf_kit.recipe.files import flat
from dehvf_kit.recipe.recipe import Recipe
from dehvf_kit.utils import atomic

RECORD = "run.json"
FORMAT = 1
HEAD_BYTES = 1 << 14
THREADS = 4
NAMED = 5
# Fields that no trained weight depends on: they may differ between a run's parts.
FREE = (
    "name",
    "description",
    "published",
    "generation",
    "data.test",
    "training.num_workers",
    "training.cache_folder",
    "training.cache_limit_gib",
    "training.save_steps",
    "training.logging_steps",
    "training.max_bad_steps",
)


def record_of(recipe: Recipe, samples: Sequence[Sample]) -> dict[str, Any]:
    """A run's record.

    Data files that the recipe names are hashed whole; a picture in a file of its own by its size and its first 16 KiB,
    which a picture saved anew does not keep; samples by their text. Pictures inside a table are the table's.
    """
    pictures = sorted({sample.image for sample in samples if isinstance(sample.image, Path)})
    with ThreadPoolExecutor(THREADS) as pool:
        heads = list(pool.map(_head, pictures))
    return {
        "format": FORMAT,
        "versions": versions(),
        "recipe": recipe.resolved(),
        "files": {str(file): atomic.sha256(file) for file in _files(recipe)},
        "samples": {"count": len(samples), "sha256": _text(samples)},
        "pictures": {str(file): head for file, head in zip(pictures, heads, strict=True)},
    }


def versions() -> dict[str, str]:
    """Of the kit and the two libraries that decide what a step computes."""
    return {"dehvf-kit": __version__, "torch": torch.__version__, "transformers": transformers.__version__}


def write_record(folder: Path, record: Mapping[str, Any]) -> None:
    """Raises: OSError."""
    atomic.write_text(folder / RECORD, json.dumps(record, indent=1, default=str) + "\n")


def compare(folder: Path, now: Mapping[str, Any]) -> list[str]:
    """What changed without harm since the run began: library versions. Nothing where the folder holds no record.

    Raises: TrainingError naming every field and file that changed and that the weights depend on, or a record that cannot
    be read.
    """
    file = folder / RECORD
    try:
        before = json.loads(file.read_text(encoding="utf-8"))
        number = before["format"]
        if number > FORMAT:
            raise TrainingError(f"{file}: format {number}, this kit reads up to {FORMAT}; upgrade dehvf-kit")
        changes = [*_fields(before["recipe"], json.loads(json.dumps(now["recipe"], default=str)))]
        files = [*_altered(before["files"], now["files"]), *_altered(before["pictures"], now["pictures"])]
        if not changes and not files and before["samples"] != now["samples"]:
            counts = before["samples"]["count"], now["samples"]["count"]
            files = [
                "the training samples' text" + (": {} then, {} now".format(*counts) if len(set(counts)) > 1 else "")
            ]
        versions_then = dict(before["versions"])
    except FileNotFoundError as error:
        raise TrainingError(f"{folder}: has checkpoints but no {RECORD}, which says what they belong to") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise TrainingError(f"{file}: cannot be read: {error}") from error
    if changes or files:
        lines = [f"{folder}: the run was begun with other settings or data; put them back, or name another folder"]
        raise TrainingError("\n".join([*lines, *(f"  {line}" for line in [*changes, *_few(files)])]))
    return [
        f"{name} {versions_then.get(name)} then, {version} now"
        for name, version in now["versions"].items()
        if versions_then.get(name) != version
    ]


def _fields(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    old, new = dict(flat(before)), dict(flat(now))
    for name in dict.fromkeys([*old, *new]):
        free = any(name == one or name.startswith(f"{one}.") for one in FREE)
        if not free and old.get(name) != new.get(name):
            yield f"{name}: {shown(old.get(name))} then, {shown(new.get(name))} now"


def _altered(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    for name in dict.fromkeys([*before, *now]):
        if name not in now:
            yield f"{name}: is no longer read"
        elif name not in before:
            yield f"{name}: was not read then"
        elif before[name] != now[name]:
            yield f"{name}: changed since the run began"


def _few(lines: Sequence[str]) -> list[str]:
    return [*lines[:NAMED], *([f"and {len(lines) - NAMED} more files"] if len(lines) > NAMED else [])]


def _files(recipe: Recipe) -> list[Path]:
    """Files among the settings of the data section, the test split's left out."""
    settings = recipe.resolved()["data"] or {}
    found = [Path(value) for name, value in flat(settings) if isinstance(value, str | Path) and name != "test"]
    return [path for path in found if len(str(path)) < 4096 and _is_file(path)]


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def _head(picture: Path) -> str:
    """Sixteen hexadecimal digits; `unreadable` where there is nothing to read, which training will say for itself."""
    try:
        with picture.open("rb") as opened:
            head = opened.read(HEAD_BYTES)
            size = picture.stat().st_size
    except OSError:
        return "unreadable"
    return hashlib.sha256(f"{size} ".encode() + head).hexdigest()[:16]


def _text(samples: Sequence[Sample]) -> str:
    digest = hashlib.sha256()
    for sample in samples:
        digest.update(json.dumps([sample.id, sample.question, sample.answer, str(sample.image)]).encode())
    return digest.hexdigest()
