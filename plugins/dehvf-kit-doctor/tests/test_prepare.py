"""`dehvf-kit prepare` counts, looks into every picture, and lists everything at once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli.commands import Command
from data.small_sets import coco, picture, scienceqa
from dehvf_kit_benchmarks.coco_captions import CocoCaptionsDataConfig
from dehvf_kit_benchmarks.scienceqa import ScienceQaDataConfig


def test_a_sound_folder(command: Command, tmp_path: Path) -> None:
    ended = command("prepare", scienceqa(tmp_path / "sqa"), coco(tmp_path / "coco"))
    assert ended.code == 0 and "no errors found" in ended.out
    assert "8 questions; 12,726 published" in ended.out and "4 pictures; 113,287 published" in ended.out


def test_json_lists_every_fault(command: Command, tmp_path: Path) -> None:
    folder = scienceqa(tmp_path / "sqa", q1={"choices": []}, q3={"choices": list("uvwxyz")})
    images = folder / "images"
    whole = picture(images / "train/2/image.png", size=200).read_bytes()
    (images / "train/2/image.png").write_bytes(whole[: len(whole) // 2])
    (images / "train/4/image.png").write_bytes(b"")
    (images / "test/14/image.png").unlink()
    ended = command("prepare", folder, "--json")
    found = json.loads(ended.out)
    assert (ended.code, found["sound"]) == (1, False)
    train, val, test = found["data"][str(folder)]["splits"]
    assert {kind: (row["count"], row["fatal"]) for kind, row in train["issues"].items()} == {
        "no choices": (1, True),
        "more than five choices": (1, False),
        "broken image": (2, True),
    }
    assert [place.split()[0] for place in train["issues"]["broken image"]["places"]] == ["2", "4"]
    assert (val["sound"], test["sound"]) == (True, False) and list(test["issues"]) == ["missing image"]
    assert (train["samples"], train["samples_with_image"], train["facts"]) == (7, 4, {"with an image": 4})
    assert train["published"]["count"] == 12_726 and train["published"]["equal"] is False
    text = command("prepare", folder)
    assert text.code == 1 and "fault  train: 2 x broken image" in text.out
    without = json.loads(command("prepare", folder, "--json", "--no-open").out)
    assert "broken image" not in without["data"][str(folder)]["splits"][0]["issues"]


def test_ids_in_two_splits(command: Command, tmp_path: Path) -> None:
    folder = scienceqa(tmp_path / "sqa")
    splits = json.loads((folder / "pid_splits.json").read_text())
    (folder / "pid_splits.json").write_text(json.dumps({**splits, "test": [*splits["test"], "1"]}))
    ended = command("prepare", folder)
    assert ended.code == 1 and "id in two splits" in ended.out and "1 (train and test)" in ended.out


def test_json_lines_and_conversations(command: Command, tmp_path: Path) -> None:
    lines = tmp_path / "a.jsonl"
    lines.write_text('{"question": "a", "answer": "b", "image": "no.png"}\n')
    talks = tmp_path / "b.json"
    talks.write_text(json.dumps([{"conversations": []}]))
    ended = command("prepare", lines, talks, "--json")
    first, second = (json.loads(ended.out)["data"][str(file)] for file in (lines, talks))
    assert (first["type"], list(first["splits"][0]["issues"])) == ("jsonl", ["missing image"])
    assert (second["type"], list(second["splits"][0]["issues"])) == ("llava", ["not a conversation"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "there is no recipe, file or folder 'nowhere'"),
        (["{empty}"], "no data set that the kit knows"),
        (["{sqa}", "data.formt=QCM-A"], "data.formt: unknown field; did you mean 'format'?"),
        (["a=b"], "name a recipe, or a file or folder of data"),
    ],
)
def test_mistakes(command: Command, tmp_path: Path, words: list[str], message: str) -> None:
    (tmp_path / "empty").mkdir()
    folder = scienceqa(tmp_path / "sqa")
    ended = command("prepare", *(word.format(empty=tmp_path / "empty", sqa=folder) for word in words))
    assert ended.code == 1 and message in ended.err


def test_published_counts_are_the_fields() -> None:
    sqa = ScienceQaDataConfig()
    assert [sqa.published(part).count for part in sqa.parts()] == [12_726, 4_241, 4_241]
    for restval, train in ((True, 113_287), (False, 82_783)):
        karpathy = CocoCaptionsDataConfig(restval=restval)
        assert [karpathy.published(part).count for part in karpathy.parts()] == [train, 5_000, 5_000]
