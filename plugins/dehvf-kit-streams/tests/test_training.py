"""Training on streams: resumed in place, bad samples skipped, and what needs all samples refused."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import pytest
import torch
import yaml
from data.shards import parquet, rows, shard
from torch.utils.data import DataLoader

import dehvf_kit
from dehvf_kit.data.samples import DataConfig
from dehvf_kit.errors import DataError, RecipeError, TrainingError
from dehvf_kit.recipe.parser import parse_data
from dehvf_kit.recipe.plugin_manager import plugins
from dehvf_kit.training.run import TrainResult, train
from dehvf_kit.training.run_folder import compare_records, record_of, write_record
from dehvf_kit.training.training_set import StreamedSamples


def recipe_file(world: Path, folder: Path, train: list[str], data: dict[str, Any] | None = None, **training: Any) -> Path:
    raw = yaml.safe_load((world / "tiny.yaml").read_text())
    raw["data"] = {"type": "stream", "train": train, "size": 24, "shuffle": 8, "prompt": raw["data"]["prompt"]}
    raw["data"] |= data or {}
    raw["training"] |= training
    (folder / "stream.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))
    return folder / "stream.yaml"


def shards(world: Path, folder: Path) -> list[str]:
    """The training set of the tiny world in two shards."""
    shard(folder / "a-0.tar", world, rows(world)[:10])
    shard(folder / "a-1.tar", world, rows(world)[10:])
    return [str(folder / "a-*.tar")]


def same_weights(one: Path, other: Path) -> bool:
    first, second = (dehvf_kit.load(run / "adapter").named_trainable_parameters() for run in (one, other))
    return all(torch.equal(first[name], second[name]) for name in first)


def cut_and_resume(recipe: dehvf_kit.Recipe, folder: Path) -> TrainResult:
    """A run that lost its last checkpoint and adapter, resumed from the one before."""
    steps = train(recipe, folder).steps
    for name in ("adapter", f"checkpoints/checkpoint-{steps}", "skipped.jsonl"):
        place = folder / name
        shutil.rmtree(place) if place.is_dir() else place.unlink(missing_ok=True)
    return train(recipe, folder, resume=True)


@pytest.mark.parametrize("settings", [{}, pytest.param({"num_workers": 1}, marks=pytest.mark.nightly)])
def test_a_resumed_stream_goes_on_where_it_was(world: Path, tmp_path: Path, settings: dict[str, int]) -> None:
    """Two passes and a half, cut in the second: the weights are those of the run that was not cut."""
    file = recipe_file(world, tmp_path, shards(world, tmp_path), epochs=2.5, save_steps=8, **settings)
    recipe = dehvf_kit.load_recipe(file)
    assert train(recipe, tmp_path / "whole").steps == 15
    cut_and_resume(recipe, tmp_path / "cut")
    assert same_weights(tmp_path / "whole", tmp_path / "cut")


def taken(data: DataConfig, workers: int, count: int, faulty: str = "no id") -> list[str]:
    """The first ids that training takes of a stream; those that end with `faulty` count as bad."""
    collator: Any = SimpleNamespace(skipped=[], fault=lambda sample: "bad" if sample.id.endswith(faulty) else "")
    loader = DataLoader(StreamedSamples(data.stream("train"), 0, collator), None, num_workers=workers)
    return [sample.id for sample in itertools.islice(loader, count)]


@pytest.mark.parametrize("kind", ["file", "path", "mixture"])
def test_every_row_is_taken_once_in_a_pass_with_data_workers(world: Path, tmp_path: Path, kind: str) -> None:
    """`datasets` divides the shards among workers, and the training set the samples: once is enough."""
    names = [f"data/train-{number:05}-of-00002.parquet" for number in range(2)]
    (tmp_path / "data").mkdir()
    for name, some in zip(names, (rows(world)[:12], rows(world)[12:]), strict=True):
        parquet(tmp_path / name, world, some)
    files = {"type": "stream", "train": [str(tmp_path / name) for name in names], "size": 24}
    data: dict[str, Any] = files if kind != "path" else files | {"path": str(tmp_path), "train": "train", "download": True}
    if kind == "mixture":
        sources = {"a": files, "b": {"type": "jsonl", "train": str(world / "test.jsonl")}}
        data = {"type": "mixture", "sources": sources, "weights": {"a": 3, "b": 1}, "size": 24, "stop": "all_exhausted"}
    config = parse_data(data, "data", plugins().registry)
    alone = taken(config, 0, 24)
    assert sorted(taken(config, 2, 24)) == sorted(alone) and (kind == "mixture" or len(set(alone)) == 24)


def test_a_stream_is_scored_on_its_validation_files(world: Path, tmp_path: Path) -> None:
    data = {"validation": str(world / "test.jsonl")}
    recipe = dehvf_kit.load_recipe(
        recipe_file(world, tmp_path, [str(world / "train.jsonl")], data, max_steps=2, eval_steps="epoch")
    )
    run = train(recipe, tmp_path / "run")
    assert run.best is not None and run.best[0] == 2 and [row["eval_loss"] > 0 for row in run.log if "eval_loss" in row] == [True]


BAD = [1, 5, 7, 12, 20]


def spoilt(world: Path, folder: Path) -> tuple[Path, Path]:
    """The training set with five bad samples (a faulty line, an empty question, a broken and a missing image, a long answer),
    and the same without them."""
    every = rows(world)
    for row in every:
        row["image"] = str(world / row["image"])
    (folder / "broken.png").write_bytes(b"no image")
    every[5]["question"] = ""
    every[7]["image"] = str(folder / "broken.png")
    every[12]["image"] = str(folder / "missing.png")
    every[20]["answer"] = "red " * 20
    lines = [json.dumps(row) for row in every]
    lines[1] = lines[1][:20]
    (folder / "spoilt.jsonl").write_text("\n".join(lines))
    (folder / "good.jsonl").write_text("\n".join(line for place, line in enumerate(lines) if place not in BAD))
    return folder / "spoilt.jsonl", folder / "good.jsonl"


def test_bad_samples_are_skipped_listed_once_and_never_trained_on(world: Path, tmp_path: Path) -> None:
    """Three passes in the files' order: the weights are those of a run on the good samples alone."""
    bad, good = spoilt(world, tmp_path)
    settings: dict[str, Any] = {"max_length": 8, "epochs": 3, "save_steps": 100}
    skip = {"shuffle": 1, "on_bad_sample": "skip"}
    result = train(dehvf_kit.load_recipe(recipe_file(world, tmp_path, [str(bad)], skip, **settings)), tmp_path / "bad")
    recipe = dehvf_kit.load_recipe(recipe_file(world, tmp_path, [str(good)], {"shuffle": 1}, **settings))
    assert train(recipe, tmp_path / "good").steps == result.steps == 18
    assert same_weights(tmp_path / "bad", tmp_path / "good")
    listed = [json.loads(line) for line in (tmp_path / "bad" / "skipped.jsonl").read_text().splitlines()]
    assert [one.row() for one in result.skipped_samples] == listed
    assert [(row["sample"].rpartition("/")[2], row["reason"].partition(":")[0]) for row in listed] == [
        ("spoilt.jsonl:2", "faulty line"),
        ("spoilt.jsonl:6", "empty question"),
        ("train7", "broken image"),
        ("train12", "missing image"),
        ("train20", "sample 'train20'"),
    ]
    assert listed[2]["image"] == str(tmp_path / "broken.png") and listed[0]["image"] is None
    assert not (tmp_path / "good" / "skipped.jsonl").exists()


@pytest.mark.nightly
@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_run_skips_and_lists_the_same(world: Path, tmp_path: Path, workers: int) -> None:
    bad, _ = spoilt(world, tmp_path)
    settings: dict[str, Any] = {"max_length": 8, "epochs": 2.5, "save_steps": 8, "num_workers": workers}
    file = recipe_file(world, tmp_path, [str(bad)], {"on_bad_sample": "skip"}, **settings)
    recipe = dehvf_kit.load_recipe(file)
    whole = train(recipe, tmp_path / "whole")
    resumed = cut_and_resume(recipe, tmp_path / "cut")
    assert same_weights(tmp_path / "whole", tmp_path / "cut")
    assert len(whole.skipped_samples) == len(BAD) and resumed.skipped_samples == whole.skipped_samples
    assert (tmp_path / "cut" / "skipped.jsonl").read_text() == (tmp_path / "whole" / "skipped.jsonl").read_text()
    assert train(recipe, tmp_path / "cut", resume=True).skipped_samples == whole.skipped_samples, "finished"


@pytest.mark.nightly
def test_cut_prompts_and_empty_answers_are_counted(world: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """In two passes each is met twice; a resumed run counts on."""
    every = [row | {"image": str(world / row["image"])} for row in rows(world)]
    every[3]["question"] = "what colour " * 20
    every[17]["answer"] = ""
    every[18]["answer"] = " "
    every[0]["licence"] = "CC0"
    file = tmp_path / "a.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in every))
    cut_and_resume(
        dehvf_kit.load_recipe(recipe_file(world, tmp_path, [str(file)], epochs=2, max_length=16, save_steps=5)), tmp_path
    )
    end = [record.getMessage() for record in caplog.records if "times in this run's passes" in record.getMessage()]
    assert len(end) == 4 and set(end[2:]) == set(end[:2]), "the whole run, and the resumed one"
    assert any("2 times" in line and "lose their beginning" in line and "train3" in line for line in end)
    assert any("4 times" in line and "answers are empty" in line for line in end)
    assert "data.train: 1 x column that is not read, the first: licence" in caplog.text


def test_without_skip_a_bad_sample_ends_the_run(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bad, _ = spoilt(world, tmp_path)
    with pytest.raises(DataError, match=r"spoilt\.jsonl:2"):
        train(dehvf_kit.load_recipe(recipe_file(world, tmp_path, [str(bad)])), tmp_path / "run")
    monkeypatch.setattr("dehvf_kit.training.training_set.LOOKED_AT", 5)
    every = [row | {"image": str(world / row["image"])} for row in rows(world)]
    every[12]["question"] = ""
    bad.write_text("".join(json.dumps(row) + "\n" for row in every))
    for workers in (0, 1):
        recipe = dehvf_kit.load_recipe(recipe_file(world, tmp_path, [str(bad)], num_workers=workers))
        with pytest.raises(DataError, match=rf"^{bad}:13: 'question' must be a text, given ''"):
            train(recipe, tmp_path / f"run{workers}")


@pytest.mark.parametrize("fault", [{"image": "nowhere.png"}, {"question": ""}])
def test_a_stream_of_bad_samples_alone_ends(world: Path, tmp_path: Path, fault: dict[str, str]) -> None:
    file = tmp_path / "bad.jsonl"
    file.write_text("\n".join(json.dumps(row | fault) for row in rows(world)))
    recipe = dehvf_kit.load_recipe(recipe_file(world, tmp_path, [str(file)], {"on_bad_sample": "skip"}))
    with pytest.raises(DataError, match="every training sample was skipped"):
        train(recipe, tmp_path / "run")


def test_a_worker_whose_share_is_bad_takes_from_all(tmp_path: Path) -> None:
    ids = ["0-good", "1-bad", "2-good", "3-bad"]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"id": one, "question": "?", "answer": "a"}) + "\n" for one in ids))
    raw = {"type": "stream", "train": str(tmp_path / "a.jsonl"), "size": 4, "shuffle": 1, "on_bad_sample": "skip"}
    data = parse_data(raw, "data", plugins().registry)
    assert set(taken(data, 2, 8, faulty="bad")) == {"0-good", "2-good"}
    with pytest.raises(DataError, match="every training sample was skipped"):
        taken(data, 2, 8, faulty="d")


@pytest.mark.parametrize("kind", ["list", "glob", "hub", "parquet", "csv", "disk", "mixture"])
def test_changed_files_of_a_list_or_a_folder_are_named(world: Path, tmp_path: Path, kind: str) -> None:
    """Nothing but an image in a table differs, or nothing that the record of the run has otherwise."""
    (tmp_path / "data").mkdir()
    raw = yaml.safe_load((world / "tiny.yaml").read_text())
    ending = {"csv": ".csv", "list": ".jsonl", "glob": ".jsonl"}.get(kind, ".parquet")
    files = [tmp_path / f"data/{split}-00000-of-00001{ending}" for split in ("train", "test")]
    some = [row | {"image": str(world / row["image"])} for row in rows(world)]

    def write(file: Path, some: list[dict[str, Any]]) -> None:
        if kind == "disk":
            datasets.DatasetDict({"train": datasets.Dataset.from_list(some)}).save_to_disk(str(tmp_path / "disk"))
        elif ending == ".parquet":
            parquet(file, world, some)
        elif ending == ".csv":
            file.write_text("\n".join(["id,image,question,answer,kind", *(",".join(row.values()) for row in some)]))
        else:
            file.write_text("".join(json.dumps(row) + "\n" for row in some))

    for file in files:
        write(file, some)
    table = {"type": "table", "path": str(tmp_path / ("disk" if kind == "disk" else "data"))}
    stream = {"type": "stream", "size": 24}
    raw["data"] = {
        "list": stream | {"train": [str(files[0])], "test": str(files[1])},
        "glob": stream | {"train": str(tmp_path / "data/tr*.jsonl"), "test": str(files[1])},
        "hub": stream | {"path": str(tmp_path), "train": "train", "test": "test", "download": True},
        "mixture": {"type": "mixture", "sources": {"a": table, "b": {"type": "jsonl", "train": str(world / "train.jsonl")}}},
    }.get(kind, table)
    recipe = dehvf_kit.parse_recipe(raw)
    before = record_of(recipe, [])
    write_record(tmp_path, before)
    assert compare_records(tmp_path, record_of(recipe, [])) == []
    if kind != "disk":
        write(files[1], some[1:])
        assert compare_records(tmp_path, record_of(recipe, [])) == [], "the test split may change"
    write(files[0], [*some[1:], some[0]])
    changed = tmp_path / "disk/train/data-00000-of-00001.arrow" if kind == "disk" else files[0]
    with pytest.raises(TrainingError, match=f"{changed}: changed since the run began"):
        compare_records(tmp_path, record_of(recipe, []))
    del before["found"]
    write_record(tmp_path, before)
    assert compare_records(tmp_path, record_of(recipe, [])) == [], "a record from before they were in it"


def test_another_number_of_workers_is_refused_where_they_share_a_stream(world: Path, tmp_path: Path) -> None:
    def record(workers: int, **training: int) -> dict[str, Any]:
        file = recipe_file(world, tmp_path, [str(world / "train.jsonl")], num_workers=workers, **training)
        return record_of(dehvf_kit.load_recipe(file), [])

    write_record(tmp_path, record(0))
    assert compare_records(tmp_path, record(1)) == [], "one worker reads as none does"
    with pytest.raises(TrainingError, match="training.num_workers, which share a stream: 0 then, 2 now"):
        compare_records(tmp_path, record(2))
    assert compare_records(tmp_path, record(0, batch_size=2, gradient_accumulation=2)) == []
    write_record(tmp_path, record(2))
    with pytest.raises(TrainingError, match="training.batch_size: 4 then, 2 now"):
        compare_records(tmp_path, record(2, batch_size=2, gradient_accumulation=2))


@pytest.mark.parametrize("field", ["cache_features", "group_by_length"])
def test_what_needs_all_samples_is_refused(world: Path, tmp_path: Path, field: str) -> None:
    with pytest.raises(RecipeError, match=f"training: .*set training.{field}=false"):
        dehvf_kit.load_recipe(recipe_file(world, tmp_path, ["x.jsonl"], **{field: True}))


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
