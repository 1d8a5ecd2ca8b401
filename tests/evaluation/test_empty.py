"""Empty questions and answers are named by train and eval, refused or skipped."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
from cli.commands import Command

BLANK = ["", " ", "\t\n", "\u00a0"]


@pytest.fixture
def data(world: Path, tmp_path: Path) -> str:
    rows = [json.loads(line) for line in (world / "train.jsonl").read_text().splitlines()[:8]]
    for row in rows:
        row["image"] = str(world / row["image"])
    for row, blank in zip(rows[1:], BLANK, strict=False):
        row["question"] = blank
    rows[0]["answer"] = " "
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"{tmp_path}/rows.jsonl"


def test_empty_questions_end_a_run_and_name_themselves(data: str, world: Path, tmp_path: Path, command: Command) -> None:
    words = [f"data.train={data}", "--output", tmp_path / "run"]
    ended = command("train", world / "tiny.yaml", *words)
    assert ended.code == 1 and "data.train: empty question:" in ended.err and "rows.jsonl:2" in ended.err


def test_skipped_they_are_counted(
    data: str, world: Path, tmp_path: Path, command: Command, caplog: pytest.LogCaptureFixture
) -> None:
    skip = ["data.on_bad_sample=skip", "training.max_steps=2"]
    with caplog.at_level(logging.WARNING):
        ended = command("train", world / "tiny.yaml", f"data.train={data}", *skip, "--output", tmp_path / "run")
    assert ended.code == 0 and "skipped 4 samples" in ended.out
    assert "1 of 4 answers are empty, so the model learns to say nothing there: train0" in caplog.text
    adapter = tmp_path / "run/adapter"
    scored = command("eval", adapter, f"data.test={data}", "--json")
    assert scored.code == 0, scored.err
    facts = json.loads(scored.out)
    assert len(facts["skipped"]) == 4 and facts["all"]["questions"] == 4 and facts["empty_answers"] == ["train0"]
    refused = command("eval", adapter, f"data.test={data}", "data.on_bad_sample=error")
    assert refused.code == 1 and "data.test: empty question:" in refused.err
    assert "empty reference answers: 1 (train0)" in command("eval", adapter, f"data.test={data}").out


@pytest.mark.parametrize("blank", BLANK)
def test_a_stream_names_them_too(blank: str, data: str, world: Path, tmp_path: Path, command: Command) -> None:
    rows = [json.loads(line) for line in Path(data).read_text().splitlines()]
    Path(data).write_text("".join(json.dumps({**row, "question": blank}) + "\n" for row in rows))
    stream = ["data.type=stream", f"data.train={data}", "data.size=8", "training.max_steps=2"]
    ended = command("train", world / "tiny.yaml", *stream, "--output", tmp_path / "run")
    told = ("question is empty", "'question' must be a text", "missing column: question")  # the last where no row has any
    assert ended.code == 1 and any(words in ended.err for words in told), ended.err
