"""Streams: JSON lines, Parquet and tar shards read front to back, refused where they point outside, resumed in place."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import dehvf_kit
from dehvf_kit.data.stream import SampleStream, StreamDataConfig
from dehvf_kit.errors import DataError, RecipeError
from dehvf_kit.training.run import train


def rows(world: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (world / "train.jsonl").read_text().splitlines()]


def add(archive: tarfile.TarFile, name: str, data: bytes, **fields: Any) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    for field, value in fields.items():
        setattr(member, field, value)
    archive.addfile(member, io.BytesIO(data))


def shard(path: Path, world: Path, some: list[dict[str, Any]]) -> Path:
    with tarfile.open(path, "w") as archive:
        for row in some:
            facts = {key: row[key] for key in ("question", "answer", "kind")}
            add(archive, f"part/{row['id']}.json", json.dumps(facts).encode())
            add(archive, f"part/{row['id']}.png", (world / row["image"]).read_bytes())
    return path


def parquet(path: Path, world: Path, some: list[dict[str, Any]]) -> Path:
    import pyarrow as pa
    from pyarrow import parquet as format

    held = [{**row, "image": {"bytes": (world / row["image"]).read_bytes(), "path": None}} for row in some]
    format.write_table(pa.Table.from_pylist(held), path)
    return path


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


def test_a_pass_is_shuffled_by_seed_and_turn(kinds: dict[str, list[str]]) -> None:
    stream = SampleStream(config(kinds["jsonl"], shuffle=8), "train")
    orders = {key: [one.id for one in stream.shuffled(*key)] for key in ((0, 0), (0, 1), (1, 0))}
    assert len(set(map(tuple, orders.values()))) == 3 and len(set(map(frozenset, orders.values()))) == 1
    assert orders[0, 0] == [one.id for one in stream.shuffled(0, 0)]
    assert [one.id for one in SampleStream(config(kinds["jsonl"], shuffle=1), "train").shuffled(0, 0)] == [
        one.id for one in stream
    ]


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
        ({"train": "nowhere-*.tar"}, "there is no file 'nowhere-"),
        ({"train": "x.csv"}, "there is no file 'x.csv'"),
        ({"train": "train", "path": "me/data"}, "allow it by data.download=true"),
    ],
)
def test_what_is_not_there_is_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        StreamDataConfig(size=1, **settings).samples("train")


def recipe_file(world: Path, folder: Path, train: list[str], **training: Any) -> Path:
    raw = yaml.safe_load((world / "tiny.yaml").read_text())
    raw["data"] = {"type": "stream", "train": train, "size": 24, "shuffle": 8, "prompt": raw["data"]["prompt"]}
    raw["training"] |= training
    (folder / "stream.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))
    return folder / "stream.yaml"


@pytest.mark.parametrize("settings", [{}, {"num_workers": 1}])
def test_a_resumed_stream_goes_on_where_it_was(
    world: Path, tmp_path: Path, kinds: dict[str, list[str]], settings: dict[str, int]
) -> None:
    """Two passes and a half, cut in the second: the weights are those of the run that was not cut."""
    recipe = dehvf_kit.load_recipe(recipe_file(world, tmp_path, kinds["tar"], epochs=2.5, save_steps=8, **settings))
    whole = train(recipe, tmp_path / "whole")
    assert whole.steps == 15
    train(recipe, tmp_path / "cut")
    for name in ("adapter", f"checkpoints/checkpoint-{whole.steps}"):
        shutil.rmtree(tmp_path / "cut" / name, ignore_errors=True)
    train(recipe, tmp_path / "cut", resume=True)
    one, other = (dehvf_kit.load(tmp_path / name / "adapter").named_trainable_parameters() for name in ("whole", "cut"))
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("field", ["cache_features", "group_by_length"])
def test_what_needs_all_samples_is_refused(
    world: Path, tmp_path: Path, kinds: dict[str, list[str]], field: str
) -> None:
    recipe = dehvf_kit.load_recipe(recipe_file(world, tmp_path, kinds["jsonl"], **{field: True}))
    with pytest.raises(DataError, match=f"training.{field}=false"):
        train(recipe, tmp_path / "run")


def test_an_empty_stream_is_named(world: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    recipe = dehvf_kit.load_recipe(recipe_file(world, tmp_path, [str(tmp_path / "empty.jsonl")]))
    with pytest.raises(DataError, match="holds no samples"):
        train(recipe, tmp_path / "run")


def test_a_stream_says_its_size(world: Path, tmp_path: Path) -> None:
    file = recipe_file(world, tmp_path, ["x.tar"])
    file.write_text(file.read_text().replace("size: 24", "size: 0"))
    with pytest.raises(RecipeError, match="data.size"):
        dehvf_kit.load_recipe(file)
