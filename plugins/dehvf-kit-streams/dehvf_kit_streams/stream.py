"""Data sets too large to be listed: read from front to back, shuffled within a window, never held whole.

JSON lines, CSV, WebDataset tar shards, Parquet files, or a data set of the hub (the last two by streaming of `datasets`).
"""

from __future__ import annotations

import glob
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from dehvf_kit.api.config import MAX_COUNT
from dehvf_kit.data.rows import Row, TableColumns
from dehvf_kit.data.samples import DataConfig, Issue, Reading, Sample, Split, require_file
from dehvf_kit.data.stream import SampleStream
from dehvf_kit.errors import DataError
from dehvf_kit_streams.hub_tables import library, plain_rows, require_shards
from dehvf_kit_streams.tar_shards import tar_rows
from dehvf_kit_streams.text_tables import files_of_split, text_rows

TEXT_ENDINGS = (".jsonl", ".csv", ".tsv")
ENDINGS = (*TEXT_ENDINGS, ".parquet", ".tar", ".tar.gz", ".tgz")


class StreamDataConfig(DataConfig):
    """Image, question and answer from files that are read as a stream, or from a hub data set, under any column names."""

    type: Literal["stream"] = "stream"
    rows_have_choices = True
    train: str | list[str] = Field(
        "", description="training files (.jsonl, .csv, .parquet, .tar; `*` allowed), or splits of `path`, read in order"
    )
    validation: str | list[str] = Field("", description="validation files, or splits of `path`; they are held whole")
    test: str | list[str] = Field("", description="test files, or splits of `path`; they are held whole")
    path: str = Field("", description="hub id; train and test then name its splits, and `download` must be true")
    size: int = Field(ge=1, le=MAX_COUNT, description="training samples; epochs and warm-up are counted by it")
    shuffle: int = Field(1000, ge=1, le=MAX_COUNT, description="samples among which the next one is drawn; 1: as they come")
    images: Path | None = Field(None, description="folder of images given as paths; the file's own where left out")
    columns: TableColumns = Field(default_factory=TableColumns, description="which column holds what")
    download: bool = Field(False, description="allow reading from the hub")
    revision: str | None = Field(None, description="hub branch, tag or commit")

    @model_validator(mode="after")
    def _named(self) -> StreamDataConfig:
        if not self.train:
            raise ValueError("`train` names no file; give .jsonl, .csv, .parquet or .tar files, or a split of `path`")
        if self.revision is not None and not self.path:
            raise ValueError("`revision` names a version of a hub data set; set `path`, or leave it out")
        return self

    def parts(self) -> list[str]:
        return [part for part in ("train", "validation", "test") if getattr(self, part)]

    def files(self) -> list[Path]:
        parts = {part: getattr(self, part) for part in self.parts() if part != "test"}
        if not self.path:
            return [file for part, named in parts.items() for file in files(named, part)]
        inside = sorted(file for file in Path(self.path).rglob("*") if file.name.endswith(ENDINGS))
        splits = [split for named in parts.values() for split in ([named] if isinstance(named, str) else named)]
        return [file for split in splits for file in files_of_split(inside, Path(self.path), split) or inside]

    def samples(self, split: Split) -> list[Sample]:
        """All samples of a split, as a list: for a test split, which is small."""
        return list(self.stream(split))

    def read(self, part: str) -> Reading:
        return self.stream(part).reading()

    def stream(self, split: str) -> SampleStream:
        return SampleStream(self, split, self.rows)

    def check_training(self, training: Any) -> None:
        wrong = [f"training.{name}=false" for name in ("cache_features", "group_by_length") if getattr(training, name)]
        if wrong:
            raise DataError(f"a stream is not known beforehand, so features and lengths cannot be; set {' '.join(wrong)}")

    def rows(self, split: str, issues: list[Issue] | None = None) -> Iterator[Row]:
        """Every row; a row without an id is called by its key in the shard, or by its place."""
        named = getattr(self, split)
        if not named:
            raise DataError(f"data.{split} names no file")
        if self.path:
            for name in [named] if isinstance(named, str) else named:
                yield from self._table_rows(self._hub_table(name), f"{self.path}:{name}", Path(self.path).parent)
            return
        for file in files(named, split):
            if file.suffix in TEXT_ENDINGS:
                yield from ((place, place, row, self.images or file.parent) for place, row in text_rows(file, issues))
            elif file.suffix == ".parquet":
                table = library().load_dataset("parquet", data_files=str(file), split="train", streaming=True)
                yield from self._table_rows(table, str(file), file.parent)
            else:
                for place, row, image in tar_rows(file, issues, self.columns.image):
                    yield row["__key__"], place, row if image is None else {**row, self.columns.image: image}, Path()

    def _hub_table(self, split: str) -> Any:
        if not self.download:
            raise DataError(f"data.path: '{self.path}' is read from the hub; allow it by data.download=true")
        datasets = library()
        try:
            return datasets.load_dataset(self.path, split=split, streaming=True, revision=self.revision)
        except Exception as error:  # no network, no such data set, no such split
            raise DataError(f"{self.path}: cannot be read from the hub: {str(error).strip()[:300]}") from error

    def _table_rows(self, table: Any, name: str, folder: Path) -> Iterator[Row]:
        datasets = library()
        for column, feature in (table.features or {}).items():
            if isinstance(feature, datasets.Image):
                table = table.cast_column(column, datasets.Image(decode=False))
        rows = enumerate(plain_rows(table))
        while True:
            try:
                number, row = next(rows)
            except StopIteration:
                return
            except Exception as error:  # whatever the file holds
                raise DataError(f"{name}: cannot be read: {str(error).strip()[:300]}") from error
            place = f"{name}[{number}]"
            yield place, place, row, self.images or folder


def files(named: str | list[str], part: str) -> list[Path]:
    """The files that a recipe names, `*` filled in, in order. Raises: DataError for what is not there or of no known kind."""
    found: list[Path] = []
    for pattern in [named] if isinstance(named, str) else named:
        matches = sorted(glob.glob(pattern)) if glob.has_magic(pattern) else [pattern]
        for name in matches or [pattern]:
            require_file(name, f"data.{part}")
            found.append(Path(name))
        if glob.has_magic(pattern):
            require_shards(found)
    for file in found:
        if not file.name.endswith(ENDINGS):
            raise DataError(f"data.{part}: '{file}' is of no known kind; a stream reads {', '.join(ENDINGS)}")
    return found
