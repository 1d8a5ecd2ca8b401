"""The nine columns against counts made by hand, and anybody's predictions."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from cli.commands import Command
from data.small_sets import scienceqa
from dehvf_kit_benchmarks.scienceqa_columns import score
from dehvf_kit_benchmarks.scienceqa_prompt import Problem

from dehvf_kit.data.metrics.intervals import share

PROBLEMS = [
    Problem("1", "?", ("a", "b"), 0, hint="h", subject="natural science", grade=1, has_image=True),
    Problem("2", "?", ("a", "b"), 1, subject="natural science", grade=6, has_image=True),
    Problem("3", "?", ("a", "b"), 1, hint="h", subject="social science", grade=7),
    Problem("4", "?", ("a", "b"), 0, subject="language science", grade=12),
]


def test_nine_columns() -> None:
    scores = score(PROBLEMS, {"1": 0, "2": 0, "3": 1, "4": -1})
    rows = {one.name: (one.value, one.count) for one in scores.scores}
    assert rows == {
        "NAT": (0.5, 2),
        "SOC": (1.0, 1),
        "LAN": (0.0, 1),
        "TXT": (1.0, 2),
        "IMG": (0.5, 2),
        "NO": (0.0, 1),
        "G1-6": (0.5, 2),
        "G7-12": (0.5, 2),
        "Avg": (0.5, 4),
    }
    assert scores.headline.name == "Avg"
    assert (scores.headline.low, scores.headline.high) == (share([1, 0, 1, 0])["low"], share([1, 0, 1, 0])["high"])
    assert scores.results == {"results": {"1": 0, "2": 0, "3": 1, "4": -1}}
    assert scores.notes == ["answers that name no choice, counted as wrong: 1"]


def test_beyond_the_choices_is_wrong_and_said() -> None:
    scores = score(PROBLEMS[:1], {"1": 4})
    assert scores.headline.value == 0 and scores.facts["out_of_range"] == 1
    assert scores.notes == ["answers that name a choice their question does not have, counted as wrong: 1"]
    assert math.isnan(scores.scores[1].value)


def test_score_of_a_file(command: Command, tmp_path: Path) -> None:
    folder = scienceqa(tmp_path / "sqa")
    file = tmp_path / "results.json"
    right = {str(n): n % 3 for n in range(13, 19)}
    file.write_text(json.dumps({"acc": 100, "results": {**right, "13": None}}))
    ended = command("score", "scienceqa", "--predictions", file, "--data", folder, "--json")
    found = json.loads(ended.out)
    assert ended.code == 0 and found["columns"]["Avg"]["value"] == pytest.approx(5 / 6) and found["unanswered"] == 1
    table = command("score", "scienceqa", "--predictions", file, "--data", folder)
    assert ["Avg", "83.33%"] in [line.split()[:2] for line in table.out.splitlines()]
    assert "answers that name no choice, counted as wrong: 1" in table.out
    file.write_text(json.dumps({str(n): n % 3 for n in range(9, 13)}))
    ended = command("score", "scienceqa", "--predictions", file, "--data", folder, "--split", "val", "--json")
    assert json.loads(ended.out)["columns"]["Avg"]["value"] == 1


def test_what_does_not_match_is_named_at_once(command: Command, tmp_path: Path) -> None:
    folder = scienceqa(tmp_path / "sqa")
    file = tmp_path / "results.json"
    file.write_text('{"results": {"1": 0, "13": "A", "14": 0, "14": 1, "15": true}}')
    ended = command("score", "scienceqa", "--predictions", file, "--data", folder)
    assert ended.code == 1 and ended.out == ""
    for text in (
        "id twice: 14",
        "id not among the 6 questions of this split: 1",
        "question without a prediction (--missing-wrong counts it as wrong): 16, 17, 18",
        "not the index of a choice: 13 ('A'), 15 (True)",
    ):
        assert text in ended.err, text
    file.write_text('{"results": {"13": 1}}')
    ended = command("score", "scienceqa", "--predictions", file, "--data", folder, "--missing-wrong", "--json")
    assert json.loads(ended.out)["columns"]["Avg"]["value"] == pytest.approx(1 / 6)


@pytest.mark.parametrize(
    ("content", "words", "message"),
    [
        ("[]", [], "the index of a choice by question id"),
        ("{", [], "not JSON"),
        ("{}", ["--split", "tset"], "--split tset: one of test, val, minitest, minival"),
        ("{}", ["--split", "minival"], "has no split 'minival'; it has test, train, val"),
        ("{}", ["--data", "nowhere"], "there is no folder 'nowhere'"),
    ],
)
def test_faulty_files(command: Command, tmp_path: Path, content: str, words: list[str], message: str) -> None:
    folder = scienceqa(tmp_path / "sqa")
    (tmp_path / "r.json").write_text(content)
    ended = command("score", "scienceqa", "--predictions", tmp_path / "r.json", "--data", folder, *words)
    assert ended.code == 1 and message in ended.err
