"""Tables in the format of the `datasets` library: a folder on this machine, or a data set of the hub.

Nothing is fetched unless `download` is set. Needs the extra `data`.
"""

from __future__ import annotations

import io
import itertools
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np

from dehvf_kit.data.samples import looked_in
from dehvf_kit.errors import DataError, listing
from dehvf_kit.utils.atomic import exists, is_file

ALIASES = {"val": "validation", "validation": "val", "dev": "validation"}
SHARD = re.compile(r"(?P<name>.*-)(?P<number>\d{1,6})(?P<of>-of-(?P<count>\d{1,6})).*(?P<ending>\.\w+)$")


@dataclass(frozen=True)
class TableImage:
    """The image in one cell of a table, or at one `place` of a cell's list; equal to itself alone, named by table, row, column.

    part: which of the tables that bear the name it is in: see `part_of`.
    """

    name: str
    row: int
    column: str
    table: Any = field(compare=False, repr=False)
    place: int | None = None
    part: str = ""

    def read_bytes(self) -> bytes:
        """The image as saved. Raises: OSError where the cell holds none."""
        cell = self.table[self.row][self.column]
        if self.place is not None:
            cell = cell[self.place]
        data = cell.get("bytes") if isinstance(cell, Mapping) else cell
        if not isinstance(data, bytes):
            raise OSError("the cell holds no image")
        return data

    def open(self, mode: str = "rb") -> IO[bytes]:
        return io.BytesIO(self.read_bytes())

    def __str__(self) -> str:
        return f"{self.name}[{self.row}].{self.column}"


def part_of(split: str, revision: str | None) -> str:
    """Which of the tables of one source is meant."""
    return f"{split}@{revision or ''}"


def library() -> Any:
    """The `datasets` library. Raises: DataError naming the extra that brings it."""
    try:
        import datasets
    except ImportError as error:
        raise DataError("this table needs the library `datasets`; pip install 'dehvf-kit[data]'") from error
    return datasets


def open_table(source: str, split: str, download: bool = False, revision: str | None = None) -> Any:
    """One split as a `datasets.Dataset`, its images left as bytes.

    source: a folder written by `save_to_disk`, a folder of Parquet files (a clone of a hub data set), a .parquet file, or a
    hub id. Raises: DataError where it is not on this machine and `download` is off, or has no such split.
    """
    datasets = library()
    place = Path(os.path.expanduser(source))
    if not exists(place):
        place = _snapshot(source, download, revision)
    try:
        with _silent(datasets):
            table = _load(datasets, place, split)
    except DataError:
        raise
    except datasets.exceptions.NonMatchingSplitsSizesError as error:
        raise DataError(f"{source}: has more or fewer rows than its README.md says; copy the missing files here") from error
    except Exception as error:  # whatever stands in the folder's files
        reason = str(error).strip().splitlines()
        raise DataError(f"{source}: cannot be read as a table: {' '.join(reason[:2]) or type(error).__name__}") from error
    for name, feature in table.features.items():
        if isinstance(feature, datasets.Image):
            table = table.cast_column(name, datasets.Image(decode=False))
    return table


@contextmanager
def _silent(datasets: Any) -> Iterator[None]:
    """Inside, the library logs no tracebacks of what is raised anyway."""
    before = datasets.logging.get_verbosity()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    try:
        yield
    finally:
        datasets.logging.set_verbosity(before)


def _load(datasets: Any, place: Path, split: str) -> Any:
    if is_file(place):
        return _as_it_is(datasets, [place], "parquet", data_files=str(place), split="train")
    if is_file(place / "state.json"):
        table = datasets.load_from_disk(str(place))
        only = str(table.split or "train")
        if split not in (only, ALIASES.get(only)):
            raise DataError(f"{place}: has no split '{split}'; it has {only}")
        return table
    if is_file(place / "dataset_dict.json"):
        splits = datasets.load_from_disk(str(place))
    else:
        files = list(place.rglob("*.parquet"))
        require_shards(_of_split(files, split))
        partitions: dict[str, list[str]] = {}  # as duckdb and polars write them: `split=train/data_0.parquet`
        for file in files:
            key, _, value = file.parent.name.partition("=")
            if key == "split":
                partitions.setdefault(value, []).append(str(file))
        if partitions:
            splits = _as_it_is(datasets, files, "parquet", data_files=partitions)
        else:
            splits = _as_it_is(datasets, files, str(place))
    name = split if split in splits else ALIASES.get(split, split)
    if name not in splits:
        raise DataError(f"{place}: has no split '{split}'; it has {listing(splits)}")
    return splits[name]


def _of_split(files: Iterable[Path], split: str) -> list[Path]:
    """The files whose names do not say that they are of another split."""
    others = re.compile(
        rf"(?<![a-z])(?!{re.escape(split)}|{re.escape(ALIASES.get(split, split))})(train|test|val|validation|dev)(?![a-z])"
    )
    return [file for file in files if not others.search(file.name)]


def table_files(place: Path, split: str) -> list[Path]:
    """The files of a split in a folder of `save_to_disk` or of Parquet files."""
    for folder in (place, place / split, place / ALIASES.get(split, split)):
        if is_file(folder / "state.json"):
            return sorted(file for file in folder.glob("*.arrow") if not file.name.startswith("cache-"))
    return sorted(_of_split(place.rglob("*.parquet"), split))


def _as_it_is(datasets: Any, files: Iterable[Path], *given: str, **settings: Any) -> Any:
    """`load_dataset`, made anew where its cached copy is older than `files`.

    The library compares the time of the last change of content alone, which `cp -p`, tar and rsync keep as it was.
    """
    table = datasets.load_dataset(*given, **settings)
    caches = table.cache_files
    copies = itertools.chain.from_iterable(caches.values()) if isinstance(caches, dict) else caches
    built = min((os.stat(one["filename"]).st_mtime for one in copies), default=math.inf)
    if any(os.stat(file).st_ctime > built for file in files):
        table = datasets.load_dataset(*given, **settings, download_mode="force_redownload")
    return table


def require_shards(files: Iterable[Path]) -> None:
    """Raises: DataError where files are called `x-00000-of-00003.parquet` and not all of the three are there."""
    found: dict[tuple[Path, str, str], dict[int, Path]] = {}
    for file in files:
        shard = SHARD.match(file.name)
        if shard and is_file(file):
            found.setdefault((file.parent, shard["name"], shard["of"]), {})[int(shard["number"])] = file
    for (folder, name, of), there in found.items():
        count = int(of.removeprefix("-of-"))
        if len(there) < count:
            first = next(number for number in range(count) if number not in there)
            raise DataError(
                f"{folder}: holds {len(there)} of {count} shards; `{name}{first:0{len(of) - 4}}{of}` is missing: copy or download "
                "the others, or name a file by itself"
            )


def _snapshot(source: str, download: bool, revision: str | None) -> Path:
    """The folder of a hub data set in the hub's own cache."""
    from huggingface_hub import snapshot_download

    if source.count("/") != 1 or source.startswith((".", "/", "~")):
        raise DataError(f"there is no folder '{source}'{looked_in(source)}")
    try:
        found = snapshot_download(source, repo_type="dataset", revision=revision, local_files_only=not download)
    except Exception as error:  # no network, no such repository, not in the cache
        if download:
            raise DataError(f"{source}: cannot be fetched from the hub: {str(error).strip().splitlines()[0]}") from error
        raise DataError(
            f"there is no folder '{source}', and no data set of that name in the hub's cache{looked_in(source)}; name a folder, or "
            "allow the download by `download: true`"
        ) from error
    return Path(found)


def undivided(table: Any) -> Iterator[dict[str, Any]]:
    """Every row of a streamed table.

    Iterated over in a data worker, `datasets` would give the shards of that worker alone, of which the training set would then take
    the worker's share once more.
    """
    for batch in table.iter(batch_size=1):
        yield {name: values[0] for name, values in batch.items()}


def plain_rows(table: Any) -> Iterator[dict[str, Any]]:
    """Rows of a `datasets` table, listed or streamed, with values as people write them: see `plain`."""
    features = table.features or {}
    readers = {name: reader for name, feature in features.items() if (reader := plain(feature)) is not None}
    for row in table if isinstance(table, library().Dataset) else undivided(table):
        yield {name: readers[name](value) if name in readers else value for name, value in row.items()}


def plain(feature: Any) -> Callable[[Any], Any] | None:
    """How values of a column are read; None for as they are.

    Labels become their names (-1, the library's mark for none, becomes None), and a number of fewer bits than Python's the
    decimal that it prints as (0.1, not 0.10000000149011612).
    """
    if hasattr(feature, "int2str"):
        return lambda value: None if value is None or value == -1 else feature.int2str(value)
    if getattr(feature, "dtype", None) in ("float32", "float16"):
        short = getattr(np, feature.dtype)
        return lambda value: None if value is None else float(str(short(value)))
    inner = feature[0] if isinstance(feature, list) and feature else getattr(feature, "feature", None)
    reader = plain(inner) if inner is not None and not isinstance(inner, dict) else None
    return None if reader is None else lambda value: None if value is None else [reader(one) for one in value]
