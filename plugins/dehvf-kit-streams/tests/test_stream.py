"""Streams: JSON lines, Parquet, tar shards and hub splits read front to back, refused where they point outside."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from data.shards import add, parquet, rows, shard
from dehvf_kit_streams.stream import StreamDataConfig
from dehvf_kit_streams.table import TableDataConfig
from pydantic import ValidationError

from dehvf_kit.errors import DataError


@pytest.fixture
def kinds(world: Path, tmp_path: Path) -> dict[str, list[str]]:
    """The training set of the tiny world in each form, the tar one in two shards."""
    every = rows(world)
    shard(tmp_path / "a-0.tar", world, every[:10])
    shard(tmp_path / "a-1.tar", world, every[10:])
    return {
        "jsonl": [str(world / "train.jsonl")],
        "parquet": [str(parquet(tmp_path / "train.parquet", world, every))],
        "tar": [str(tmp_path / "a-*.tar")],
    }


def config(train: list[str], **settings: Any) -> StreamDataConfig:
    return StreamDataConfig(train=train, size=24, **settings)


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "tar"])
def test_every_kind_gives_the_same_samples(world: Path, kinds: dict[str, list[str]], kind: str) -> None:
    found = config(kinds[kind]).samples("train")
    expected = rows(world)
    assert [(one.question, one.answer, one.kind) for one in found] == [
        (row["question"], row["answer"], row["kind"]) for row in expected
    ]
    assert [one.image.read_bytes() for one in found] == [(world / row["image"]).read_bytes() for row in expected]
    assert len({one.id for one in found}) == 24


def test_csv_is_read_as_a_table_reads_it(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('image;question;answer\nx.png;"what; and ?";3.0\n;none ?;\n')
    config = StreamDataConfig(train=str(tmp_path / "*.csv"), size=2)
    table = TableDataConfig(train=str(tmp_path / "a.csv"), test="").read("train")
    found = config.read("train")
    for reading in (table, found):
        (sample,) = reading.samples
        assert (sample.question, sample.answer, sample.image) == ("what; and ?", "3", tmp_path / "x.png")
        assert [issue.kind for issue in reading.issues] == [
            "whole number given as a decimal, read as a whole number",
            "answer is missing",
        ]


def test_columns_that_are_not_read_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"img": "x.png", "question": "q", "answer": "a", "licence": "CC0"}\n')
    found = {issue.place: issue for issue in StreamDataConfig(train=str(tmp_path / "a.jsonl"), size=1).read("train").issues}
    assert found["img"].fatal and "data.columns.image=img" in found["img"].detail
    assert not found["licence"].fatal
    (tmp_path / "b.jsonl").write_text('{"question": "q", "label": "a"}\n' * 3)
    (issue,) = [one for one in StreamDataConfig(train=str(tmp_path / "b.jsonl"), size=1).read("train").issues if one.fatal]
    assert (issue.kind, issue.place) == ("missing column", "answer")


def test_a_pass_is_shuffled_by_seed_and_turn(kinds: dict[str, list[str]]) -> None:
    stream = config(kinds["jsonl"], shuffle=8).stream("train")
    orders = {key: [one.id for one in stream.shuffled(*key)] for key in ((0, 0), (0, 1), (1, 0))}
    assert len(set(map(tuple, orders.values()))) == 3 and len(set(map(frozenset, orders.values()))) == 1
    assert orders[0, 0] == [one.id for one in stream.shuffled(0, 0)]
    assert [one.id for one in config(kinds["jsonl"], shuffle=1).stream("train").shuffled(0, 0)] == [one.id for one in stream]


def outside(name: str, **fields: Any) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        with tarfile.open(path, "w") as archive:
            add(archive, name, b"{}", **fields)

    return write


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (outside("../secret.json"), "points out of the archive"),
        (outside("a/../../b.json"), "points out of the archive"),
        (outside("/etc/a.json"), "points out of the archive"),
        (outside("..\\b.json"), "points out of the archive"),
        (outside("a.json", type=tarfile.SYMTYPE, linkname="/etc/passwd"), "is a link or a device"),
        (outside("a.json"), "'question' must be a text"),
        (lambda path: path.write_bytes(b"no tar"), "cannot be read as a tar file"),
    ],
)
def test_bad_shards_are_refused(tmp_path: Path, write: Callable[[Path], None], message: str) -> None:
    write(tmp_path / "x.tar")
    with pytest.raises(DataError, match=message):
        config([str(tmp_path / "x.tar")]).samples("train")
    assert [file.name for file in tmp_path.iterdir()] == ["x.tar"], "nothing is extracted"


def test_a_shard_cut_short_is_named(world: Path, tmp_path: Path) -> None:
    file = shard(tmp_path / "x.tar", world, rows(world)[:4])
    file.write_bytes(file.read_bytes()[:2300])
    with pytest.raises(DataError, match=r"x\.tar"):
        config([str(file)]).samples("train")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"train": "nowhere-*.tar"}, "there is no file 'nowhere-.*looked beside the recipe and in"),
        ({"train": "x.csv"}, "there is no file 'x.csv'"),
        ({"train": "train", "path": "me/data"}, "allow it by data.download=true"),
    ],
)
def test_what_is_not_there_is_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        StreamDataConfig(size=1, **settings).samples("train")


def test_hub_splits_are_read_in_the_order_named(world: Path, tmp_path: Path) -> None:
    """`datasets` streams a folder of Parquet files as it does a hub data set."""
    every = rows(world)
    (tmp_path / "data").mkdir()
    parquet(tmp_path / "data" / "train.parquet", world, every[:3])
    parquet(tmp_path / "data" / "test.parquet", world, every[3:5])
    settings = {"path": str(tmp_path / "data"), "download": True, "test": "test"}
    found = config(["test", "train"], **settings)
    assert [one.id for one in found.samples("train")] == ["train3", "train4", "train0", "train1", "train2"]
    assert [one.id for one in found.samples("test")] == ["train3", "train4"]
    place = str(found.samples("train")[0].image)
    assert place.endswith("data:test[0]"), "an image is named by its split, as both have a row 0"


def test_a_revision_needs_a_hub_data_set() -> None:
    with pytest.raises(ValidationError, match="revision"):
        config(["a.jsonl"], revision="main")


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "tar"])
def test_faulty_rows_are_noted_and_the_others_read(world: Path, tmp_path: Path, kind: str) -> None:
    every = rows(world)[:6]
    every[1]["question"] = " "
    every[4]["answer"] = None
    if kind == "jsonl":
        file = tmp_path / "x.jsonl"
        lines = [json.dumps(row | {"image": str(world / row["image"])}) for row in every]
        file.write_text("\n".join([*lines, '{"question":']))
        places = [f"{file}:2", f"{file}:5", f"{file}:7"]
    elif kind == "parquet":
        file = parquet(tmp_path / "x.parquet", world, every)
        places = [f"{file}[1]", f"{file}[4]"]
    else:
        file = shard(tmp_path / "x.tar", world, every)
        with tarfile.open(file, "a") as archive:
            add(archive, "part/bad.json", b"{")
            add(archive, "part/bad.png", b"")
        places = [f"{file}:part/train1", f"{file}:part/train4", f"{file}:part/bad"]
    kinds = {"jsonl": "faulty line", "tar": "faulty member"}
    found = config([str(file)], on_bad_sample="skip").usable("train")
    assert [one.answer for one in found.samples] == [every[place]["answer"] for place in (0, 2, 3, 5)]
    assert [issue.place for issue in found.issues] == places and all(issue.fatal for issue in found.issues)
    expected = ["empty question", "answer is missing", *([kinds[kind]] if kind in kinds else [])]
    assert [issue.kind for issue in found.issues] == expected
    with pytest.raises(DataError, match="'question' must be a text"):
        config([str(file)]).usable("train")
