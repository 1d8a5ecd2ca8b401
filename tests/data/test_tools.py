"""Tables as pandas, polars, duckdb and `datasets` write them: the same answers from a file, a folder, a table and a stream."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from dehvf_kit_streams.stream import StreamDataConfig
from dehvf_kit_streams.table import TableDataConfig

from dehvf_kit.data.samples import DataConfig, Reading
from dehvf_kit.errors import DataError

datasets = pytest.importorskip("datasets", reason="needs the extra `data`")
COLUMNS = {
    "number": ([3, None, 7], {"q0": "3", "q2": "7"}),
    "single": ([0.1, 2.5, None], {"q0": "0.1", "q1": "2.5"}),
    "total": ([3.0, 10.0, None], {"q0": "3", "q1": "10"}),
    "text": (["red", None, "3.0"], {"q0": "red", "q2": "3.0"}),
    "name": (["cat", "dog", None], {"q0": "cat", "q1": "dog"}),
    "price": ([Decimal("1.50"), Decimal("0.25"), None], {"q0": "1.50", "q1": "0.25"}),
}
LOSES_ZEROS = [("duckdb", ".json"), ("duckdb", ".jsonl")]
"""duckdb writes a decimal of 1.50 into JSON as 1.5."""
ENDINGS = (".csv", ".tsv", ".jsonl", ".json", ".parquet")


def frame() -> Any:
    """A pandas table, as it is after reading or joining: whole numbers with a gap are floats."""
    pandas = pytest.importorskip("pandas", reason="not installed")
    made = pandas.DataFrame({"question": ["q0", "q1", "q2"], **{name: values for name, (values, _) in COLUMNS.items()}})
    return made.astype({"number": "float64", "single": "float32", "name": "category"})


def write_pandas(file: Path) -> None:
    table = frame()
    if file.suffix in (".csv", ".tsv"):
        table.to_csv(file, sep="\t" if file.suffix == ".tsv" else ",")
    elif file.suffix == ".parquet":
        table.to_parquet(file)
    else:
        table.to_json(file, orient="records", lines=file.suffix == ".jsonl")


def lazy_polars() -> Any:
    polars = pytest.importorskip("polars", reason="not installed")
    kinds = {"single": polars.Float32, "name": polars.Categorical, "price": polars.Decimal(5, 2)}
    made = {name: polars.Series(values, dtype=kinds.get(name)) for name, (values, _) in COLUMNS.items()}
    return polars.DataFrame({"question": ["q0", "q1", "q2"], **made})


def write_polars(file: Path) -> None:
    table = lazy_polars()
    if file.suffix in (".csv", ".tsv"):
        table.write_csv(file, separator="\t" if file.suffix == ".tsv" else ",")
    else:
        write = {".parquet": table.write_parquet, ".json": table.write_json, ".jsonl": table.write_ndjson}
        write[file.suffix](file)


def write_duckdb(file: Path) -> None:
    duckdb = pytest.importorskip("duckdb", reason="not installed")
    rows = {name: values for name, (values, _) in COLUMNS.items()}
    kinds = {"number": "bigint", "single": "float", "total": "double", "text": "text", "name": "enum('cat', 'dog')"}
    kinds["price"] = "decimal(5, 2)"
    base = duckdb.connect()
    base.execute(f"create table made (question text, {', '.join(f'{name} {kind}' for name, kind in kinds.items())})")
    for number in range(3):
        row = [f"q{number}", *(rows[name][number] for name in kinds)]
        base.execute(f"insert into made values ({', '.join('?' * len(row))})", row)
    options = {
        ".csv": "format csv, header",
        ".tsv": "format csv, header, delimiter '\t'",
        ".jsonl": "format json",
        ".json": "format json, array true",
        ".parquet": "format parquet",
    }
    base.execute(f"copy made to '{file}' ({options[file.suffix]})")


def write_datasets(file: Path) -> None:
    table = datasets.Dataset.from_pandas(frame(), preserve_index=False)
    if file.suffix != ".json":
        write = {".csv": table.to_csv, ".tsv": lambda place: table.to_csv(place, sep="\t"), ".jsonl": table.to_json}
        write.get(file.suffix, table.to_parquet)(str(file))
    else:
        table.to_json(str(file), lines=False)


TOOLS: dict[str, Callable[[Path], None]] = {
    "pandas": write_pandas,
    "polars": write_polars,
    "duckdb": write_duckdb,
    "datasets": write_datasets,
}


def sources(file: Path, folder: Path, column: str) -> list[DataConfig]:
    columns = {"answer": column}
    found: list[DataConfig] = [
        TableDataConfig(train=str(file), test="", columns=columns),
        TableDataConfig(path=str(folder), columns=columns),
    ]
    return found + ([StreamDataConfig(train=str(file), size=3, columns=columns)] if file.suffix != ".json" else [])


def kinds(reading: Reading) -> set[str]:
    return {issue.kind for issue in reading.issues if issue.kind != "column that is not read"}


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("tool", TOOLS)
def test_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tool: str, ending: str) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    file, folder = tmp_path / f"made{ending}", tmp_path / "folder"
    folder.mkdir()
    TOOLS[tool](file)
    shutil.copy(file, folder / f"train{ending}")
    for column, (_, expected) in COLUMNS.items():
        if column == "price" and (tool, ending) in LOSES_ZEROS:
            expected = {"q0": "1.5", "q1": "0.25"}
        readings = [source.read("train") for source in sources(file, folder, column)]
        for reading in readings:
            assert {one.question: one.answer for one in reading.samples} == expected, column
            assert kinds(reading) == kinds(readings[0]) and "answer is missing" in kinds(reading), column
        whole = "whole number given as a decimal, read as a whole number" in kinds(readings[0])
        assert whole or column != "total"


@pytest.mark.parametrize(
    ("given", "text", "kind"),
    [
        (0.10000000149011612, "0.1", "number of 32 bits"),
        (0.1000000015, "0.1", "number of 32 bits"),
        (0.1, "0.1", ""),
        (9.5367431640625e-07, "9.5367431640625e-07", ""),
        ("nan", "nan", "may stand for a missing value"),
        ("N/A", "N/A", "may stand for a missing value"),
        ("['red', 'rose']", "['red', 'rose']", "may be a list"),
        ("none", "none", ""),
    ],
)
def test_what_a_tool_has_made_of_an_answer_is_noted(tmp_path: Path, given: Any, text: str, kind: str) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"question": "q", "answer": given}))
    reading = TableDataConfig(train=str(tmp_path / "a.jsonl"), test="").read("train")
    assert [one.answer for one in reading.samples] == [text]
    assert [kind in issue.kind for issue in reading.issues] == ([True] if kind else [])


def test_a_gap_in_a_column_of_numbers(tmp_path: Path) -> None:
    """However the tool writes the gap, 3.0 is 3."""
    for gap in ("", "NaN", "NULL", "\\N", "<NA>"):
        (tmp_path / "a.csv").write_text(f"question,answer\na,3.0\nb,{gap}\nc,10.0\n")
        reading = TableDataConfig(train=str(tmp_path / "a.csv"), test="").read("train")
        assert [one.answer for one in reading.samples] == ["3", "10"], gap
        assert "answer is missing" in kinds(reading)


def test_shards_that_are_missing_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a folder, in the hub's cache, in a stream's pattern; a file that is named by itself is read, and so is another split."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    rows = datasets.Dataset.from_dict({"question": ["q"], "answer": ["a"]})
    snapshot = tmp_path / "hub/datasets--me--data/snapshots/0123"
    for folder in (tmp_path / "clone/data", snapshot / "data"):
        folder.mkdir(parents=True)
        for name in ("train-00000-of-00003-6ab0", "train-00002-of-00003-9cd1", "test-00000-of-00001"):
            rows.to_parquet(str(folder / f"{name}.parquet"))
    (tmp_path / "text").mkdir()
    rows.to_json(str(tmp_path / "text/train-00000-of-00002.jsonl"))
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(snapshot))
    file = str(tmp_path / "clone/data/train-00000-of-00003-6ab0.parquet")
    for config in (
        TableDataConfig(path=str(tmp_path / "clone")),
        TableDataConfig(path="me/data"),
        TableDataConfig(path=str(tmp_path / "text")),
        StreamDataConfig(train=str(tmp_path / "clone/data/train*.parquet"), size=1),
    ):
        with pytest.raises(DataError, match="holds . of . shards; `train-00001-of-0000.` is missing"):
            config.read("train")
    assert len(TableDataConfig(path=str(tmp_path / "clone")).read("test").samples) == 1
    assert len(StreamDataConfig(train=file, size=1).read("train").samples) == 1


def test_a_table_replaced_under_its_time_stamp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    file = tmp_path / "data/train.parquet"
    file.parent.mkdir()
    configs = TableDataConfig(train=str(file), test=""), TableDataConfig(path=str(file.parent))
    for answer in ("red", "blue"):
        datasets.Dataset.from_dict({"question": ["q"], "answer": [answer]}).to_parquet(str(file))
        os.utime(file, (1_700_000_000, 1_700_000_000))
        assert [config.read("train").samples[0].answer for config in configs] == [answer] * 2


@pytest.mark.parametrize("ending", [".csv", ".parquet"])
def test_one_table_is_split_by_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str) -> None:
    """An image's copies in several rows of a Parquet file are one image."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    held = ending == ".parquet"
    images = [{"bytes": bytes([number % 10]), "path": None} if held else f"{number % 10}.png" for number in range(40)]
    table = datasets.Dataset.from_dict({"image": images, "question": [f"q{n}" for n in range(40)], "answer": ["a"] * 40})
    file = tmp_path / f"a{ending}"
    (table.to_parquet if held else table.to_csv)(str(file))
    config = TableDataConfig(train=str(file), validation=0.1)
    train, test = (config.samples(split) for split in ("train", "test"))
    assert (len(train), len(test)) == (36, 4)
    assert len({int(one.question[1:]) % 10 for one in test}) == 1, "the four rows of one image"
