"""Data paths are taken from the recipe's folder, then from the current one."""

from __future__ import annotations

from pathlib import Path

import pytest
from dehvf_kit_benchmarks.coco_captions import CocoCaptionsDataConfig
from dehvf_kit_benchmarks.scienceqa import ScienceQaDataConfig
from dehvf_kit_streams.llava import LlavaDataConfig
from dehvf_kit_streams.stream import StreamDataConfig
from dehvf_kit_streams.table import TableDataConfig

from dehvf_kit.data.jsonl import JsonlDataConfig
from dehvf_kit.data.samples import DataConfig
from dehvf_kit.errors import DataError
from dehvf_kit.recipe.files import read_with_parents


def test_paths_beside_the_recipe_and_in_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there, here = tmp_path / "recipes", tmp_path / "work"
    for folder in (there / "shards", here):
        folder.mkdir(parents=True)
    for file in (there / "a.csv", there / "shards/a-0.tar", here / "b.csv"):
        file.touch()
    (there / "parent.yaml").write_text("data: {type: table, train: a.csv, test: b.csv, images: nowhere}")
    (here / "child.yaml").write_text("extends: ../recipes/parent.yaml\ndata: {prompt: {chat: true}}")
    (there / "stream.yaml").write_text("data: {type: stream, train: ['shards/a-*.tar']}")
    (there / "hub.yaml").write_text("data: {type: table, path: me/data, train: shards}")
    monkeypatch.chdir(here)
    data = read_with_parents(Path("child.yaml"), "child")["data"]
    assert (data["train"], data["test"], data["images"]) == (str(there / "a.csv"), "b.csv", "nowhere")
    assert read_with_parents(there / "stream.yaml", "x")["data"]["train"] == [str(there / "shards/a-*.tar")]
    assert read_with_parents(there / "hub.yaml", "x")["data"]["train"] == "shards", "the name of a split"
    monkeypatch.chdir(there)
    assert read_with_parents(Path("parent.yaml"), "x")["data"]["train"] == "a.csv"


@pytest.mark.parametrize(
    "config",
    [
        JsonlDataConfig(train=Path("nowhere/a.jsonl")),
        LlavaDataConfig(train=Path("nowhere/a.json")),
        TableDataConfig(train="nowhere/a.csv"),
        TableDataConfig(path="nowhere"),
        TableDataConfig(path="nowhere/a"),
        StreamDataConfig(train="nowhere/a.tar", size=1),
        StreamDataConfig(train="nowhere/*.tar", size=1),
        CocoCaptionsDataConfig(annotations=Path("nowhere/dataset_coco.json"), restval=True),
        ScienceQaDataConfig(path="nowhere"),
    ],
    ids=lambda config: config.type,
)
def test_every_data_set_says_where_it_looked(config: DataConfig) -> None:
    with pytest.raises(DataError, match="'nowhere.*looked beside the recipe and in '"):
        config.read("train")
