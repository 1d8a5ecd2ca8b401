"""One bad sample ends a run, or is left out, counted and listed: as `data.on_bad_sample` says, and never in silence."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from cli.commands import Command
from PIL import Image

SKIP = "data.on_bad_sample=skip"
SHORT = ["training.max_steps=3", "training.save_steps=100", "training.max_length=8"]


@pytest.fixture
def spoilt(world: Path, tmp_path: Path) -> Path:
    """The world's recipe with data of its own: of 24 training samples a half line, a broken and a missing image, a long answer;
    of 8 test samples a half line, and a broken image that two questions share."""
    folder = tmp_path / "spoilt"
    folder.mkdir()
    for split in ("train", "test"):
        rows = [json.loads(line) for line in (world / f"{split}.jsonl").read_text().splitlines()]
        for row in rows:
            shutil.copy(world / row["image"], folder / row["image"])
        if split == "train":
            rows[3]["answer"] = "red " * 20
            (folder / rows[5]["image"]).write_bytes(b"")
            (folder / rows[7]["image"]).unlink()
        else:
            rows[2]["image"] = rows[1]["image"]
            (folder / rows[1]["image"]).write_bytes(b"no picture")
        lines = [json.dumps(row) for row in rows]
        lines[0] = lines[0][:20]
        (folder / f"{split}.jsonl").write_text("\n".join(lines))
    text = (world / "tiny.yaml").read_text()
    for split in ("train", "test"):
        text = text.replace(f"{world}/{split}.jsonl", f"{folder}/{split}.jsonl")
    (folder / "tiny.yaml").write_text(text)
    return folder


def test_by_default_the_first_one_ends_the_run(spoilt: Path, command: Command, tmp_path: Path) -> None:
    ended = command("train", spoilt / "tiny.yaml", *SHORT, "--output", tmp_path / "run")
    assert ended.code == 1 and "train.jsonl:1 (not JSON" in ended.err
    assert not (tmp_path / "run" / "adapter").exists()


@pytest.mark.parametrize("cached", ["false", "true"])
def test_train_and_eval_skip_count_and_list(spoilt: Path, command: Command, tmp_path: Path, cached: str) -> None:
    changes = [*SHORT, SKIP, f"training.cache_features={cached}"]
    ended = command("train", spoilt / "tiny.yaml", *changes, "--output", tmp_path / "run")
    assert ended.code == 0, ended.err
    assert f"skipped 4 samples, listed in {tmp_path / 'run' / 'skipped.jsonl'}:" in ended.out
    rows = [json.loads(line) for line in (tmp_path / "run" / "skipped.jsonl").read_text().splitlines()]
    assert [row["sample"].rpartition("/")[2] for row in rows] == ["train.jsonl:1", "train5", "train7", "train3"]
    reasons = ["faulty line: not JSON", "broken image: ", "missing image: ", "its answer has 21 tokens, max_length is 8"]
    assert all(reason in row["reason"] for reason, row in zip(reasons, rows, strict=True))

    asked = command("eval", tmp_path / "run" / "adapter", "--json", "--output", tmp_path / "answers.jsonl")
    assert asked.code == 0, asked.err
    facts = json.loads(asked.out)
    assert facts["all"]["questions"] == 7 and len(facts["skipped"]) == 3
    assert len((tmp_path / "answers.skipped.jsonl").read_text().splitlines()) == 3
    answers = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert [answer["id"] for answer in answers] == [f"test{n}" for n in range(1, 8)]
    assert [answer["id"] for answer in answers if answer["skipped"]] == ["test1", "test2"]
    assert not any(answer["right"] for answer in answers[:2])
    assert facts["all"]["accuracy"] == pytest.approx(sum(answer["right"] for answer in answers) / 7)
    table = command("eval", tmp_path / "run" / "adapter")
    assert "questions that could not be asked, counted as wrong: 2" in table.out
    assert "rows that are no question, missing from the scores: 1" in table.out and "skipped 3 samples" in table.out


def test_one_of_several_answers_is_right() -> None:
    from dehvf_kit.data.metrics.exact_match import Prediction

    several = {"answer": "red", "references": ("red", "blue")}
    assert [Prediction("a", "", "", "", prediction=said, **several).right for said in ("Blue.", "red", "green")] == [
        True,
        True,
        False,
    ]


def test_an_empty_reference_does_not_make_a_skipped_answer_right() -> None:
    from dehvf_kit.data.metrics.exact_match import Prediction

    assert Prediction("a", "", "what ?", "a.png", "", "").right
    assert not Prediction("a", "", "what ?", "a.png", "", "", skipped="broken image").right


def test_prepare_and_cache(spoilt: Path, command: Command) -> None:
    refused = command("prepare", spoilt / "tiny.yaml")
    assert refused.code == 1 and "fault" in refused.out
    ended = command("prepare", spoilt / "tiny.yaml", SKIP)
    assert ended.code == 0 and "1 x broken image, skipped" in ended.out and "1 x faulty line, skipped" in ended.out
    kept = command("cache", spoilt / "tiny.yaml", SKIP, "--json")
    assert kept.code == 0, kept.err
    facts = json.loads(kept.out)
    assert len(facts["skipped"]) == 6 and (Path(facts["folder"]) / "skipped.jsonl").is_file()


def test_the_cache_holds_the_validation_split_too(world: Path, command: Command, tmp_path: Path) -> None:
    rows = []
    for number in range(8):
        Image.new("RGB", (32, 32), (number, 0, 0)).save(tmp_path / f"{number}.png")
        rows.append({"image": f"{number}.png", "question": "what ?", "answer": "red"})
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = [f"data.train={tmp_path}/a.jsonl", f"data.test={tmp_path}/a.jsonl", "data.validation=0.5"]
    for test in (data[1], "data.test=null"):
        assert json.loads(command("cache", world / "tiny.yaml", data[0], test, data[2], "--json").out)["images"] == 8
    (tmp_path / "b.jsonl").write_text(json.dumps(rows[0]) + "\n")
    settings = [data[0], f"data.test={tmp_path}/b.jsonl", data[2]]
    assert json.loads(command("cache", world / "tiny.yaml", *settings, "--json").out)["images"] == 8


def test_a_split_of_nothing_else_is_refused(world: Path, command: Command, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"question": "what ?", "answer": "red", "image": "gone.png"}\n')
    words = ["train", world / "tiny.yaml", *SHORT, SKIP, f"data.train={tmp_path}/a.jsonl", "--output", tmp_path / "run"]
    ended = command(*words)
    assert ended.code == 1 and "data.train: not one of 1 samples can be read; the first: 1: missing image" in ended.err


def test_a_big_set_skips_without_stopping(world: Path, tmp_path: Path) -> None:
    """A thousand questions about ten pictures, two of which are broken: each is opened once, all their questions go."""
    from dehvf_kit.data.jsonl import JsonlDataConfig
    from dehvf_kit.data.sample_filter import SampleFilter

    for number in range(10):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{number}.png")
    for number in (3, 8):
        (tmp_path / f"{number}.png").write_bytes(b"")
    rows = ({"question": "what ?", "answer": "red", "image": f"{n % 10}.png"} for n in range(1000))
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    opened: list[int] = []
    sample_filter = SampleFilter(JsonlDataConfig(train=tmp_path / "a.jsonl", on_bad_sample="skip"), "train")
    assert len(sample_filter.readable(lambda done, total: opened.append(total))) == 800
    assert len(sample_filter.skipped) == 200 and opened == [10]
