"""`eval` looks at every writing place before it asks anything, and goes on after it was killed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from cli.commands import Command
from helpers import randomise

import dehvf_kit
from dehvf_kit.data.samples import HeldImage, Sample
from dehvf_kit.evaluation import answers
from dehvf_kit.evaluation.answers import answer
from dehvf_kit.evaluation.kept_answers import KeptAnswers, digest
from dehvf_kit.model.model import DehvfModel


@pytest.fixture(scope="module")
def adapter(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = dehvf_kit.build(dehvf_kit.load_recipe(world / "tiny.yaml"))
    randomise(model.nodes)
    folder = tmp_path_factory.mktemp("kept") / "adapter"
    model.save_pretrained(folder)
    return folder


def never(*args: object, **kwargs: object) -> None:
    raise AssertionError("a question was asked")


PLACES = {
    "no such folder": (["--output", "none/a.jsonl"], "No such file"),
    "a folder": (["--output", "."], "exists already"),
    "there already": (["--results", "there.json"], "exists already"),
    "a file as a folder": (["--results", "there.json/a"], "cannot be written"),
    "twice the same": (["--output", "a.json", "--results", "./sub/../a.json"], "both --output and --results"),
    "too long a name": (["--output", "a" * 250], "cannot be written"),
    "nothing": (["--output", ""], "is empty; name a file"),
}


@pytest.mark.parametrize("case", PLACES)
def test_places_are_looked_at_before_the_work(
    case: str, adapter: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    words, says = PLACES[case]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    (tmp_path / "there.json").write_text("mine")
    monkeypatch.setattr(answers, "_say", never)
    ended = command("eval", adapter, *words)
    assert ended.code == 1 and says in ended.err, ended.err
    assert sorted(os.listdir(tmp_path)) == ["sub", "there.json"] and (tmp_path / "there.json").read_text() == "mine"


def test_answers_about_other_images_of_the_same_names_are_not_taken(tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    keys = set()
    for content in (b"one", b"other one"):
        file.write_bytes(content)
        keys |= {digest({}, [Sample("1", "?", "", image)]) for image in (file, HeldImage("a.png", content))}
    assert len(keys) == 4 and digest({}, [Sample("1", "?", "", HeldImage("a.png", b"one"))]) in keys


def test_results_by_ids_of_several_questions_are_refused(
    world: Path, adapter: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = str(world / "test.jsonl")
    data = [f"data={{type: stream, train: {file}, test: [{file}, {file}], size: 8}}"]
    results = tmp_path / "results.json"
    asked = answers._say
    monkeypatch.setattr(answers, "_say", never)
    ended = command("eval", adapter, *data, "--allow-prompt-mismatch", "--results", results)
    assert ended.code == 1 and "--results: 8 ids are those of several questions, such as 'test0'" in ended.err, ended.err
    monkeypatch.setattr(answers, "_say", asked)
    ended = command("eval", adapter, *data, "--allow-prompt-mismatch", "--limit", "8", "--results", results)
    assert ended.code == 0 and len(json.loads(results.read_text())) == 8, ended.err


@pytest.mark.parametrize("words", [["eval", "--store"], ["verify"]])
def test_an_adapter_that_cannot_be_written_is_noticed(
    words: list[str], adapter: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = Path.open

    def refused(self: Path, *args: object, **kwargs: object) -> object:
        if self.parent == adapter and "xb" in args:
            raise PermissionError(13, "Permission denied")
        return opened(self, *args, **kwargs)

    monkeypatch.setattr(Path, "open", refused)
    monkeypatch.setattr(answers, "_say", never)
    ended = command(words[0], adapter, *words[1:])
    assert ended.code == 1 and "Permission denied; give --no-store, or leave --store out" in ended.err


def test_answers_are_found_again_batch_by_batch(adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = dehvf_kit.load(adapter)
    samples = model.recipe.data.samples("test")
    whole = answer(model, samples, batch_size=3)
    file = tmp_path / "some.partial"
    say, asked = answers._say, []

    def counted(model: DehvfModel, batch: list, *rest: object) -> object:
        if len(asked) == 2:
            raise KeyboardInterrupt
        asked.append([sample.id for sample in batch])
        return say(model, batch, *rest)

    monkeypatch.setattr(answers, "_say", counted)
    with pytest.raises(KeyboardInterrupt):
        answer(model, samples, batch_size=3, kept=KeptAnswers(file))
    lines = [line for line in file.read_text().splitlines() if line]
    assert len(lines) == 6
    file.write_text("\n".join(lines)[:-9])  # killed while the sixth was written: its batch is asked again
    asked.clear()
    assert answer(model, samples, batch_size=3, kept=KeptAnswers(file)) == whole
    assert [len(batch) for batch in asked] == [3, 2]
    asked.clear()
    assert answer(model, samples, batch_size=3, kept=KeptAnswers(file)) == whole and not asked


def test_an_interrupted_eval_goes_on_with_the_same_command(
    adapter: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert command("eval", adapter, "--output", tmp_path / "whole.jsonl").code == 0
    monkeypatch.setattr(answers.answer, "__kwdefaults__", None)
    monkeypatch.setattr(answers.answer, "__defaults__", (3, *answers.answer.__defaults__[1:]))
    assert command("eval", adapter, "--output", tmp_path / "threes.jsonl").code == 0
    say, asked = answers._say, []

    def ended_early(model: DehvfModel, batch: list, *rest: object) -> object:
        if len(asked) == 2:
            raise KeyboardInterrupt
        asked.append(len(batch))
        return say(model, batch, *rest)

    out = tmp_path / "out.jsonl"
    with monkeypatch.context() as patch:
        patch.setattr(answers, "_say", ended_early)
        ended = command("eval", adapter, "--output", out)
    assert ended.code == 130 and "6 of 8 answers are kept in" in ended.err and not out.exists()
    (kept,) = tmp_path.glob("*.partial")
    assert kept.name.startswith("out.jsonl.")
    other = command("eval", adapter, "--output", out, "--limit", 4)
    assert other.code == 0 and "going on" not in other.err, "other questions"
    out.unlink()
    ended = command("eval", adapter, "--output", out)
    assert ended.code == 0 and "going on with 6 of 8 answers" in ended.err
    assert out.read_bytes() == (tmp_path / "threes.jsonl").read_bytes() and not kept.exists()


@pytest.mark.nightly
def test_a_killed_eval_without_output_goes_on_too(adapter: Path, tmp_path: Path) -> None:
    code = (
        "import sys, os\nfrom dehvf_kit.evaluation import answers\nfrom dehvf_kit.cli.main import app\n"
        "answers.answer.__defaults__ = (2, *answers.answer.__defaults__[1:])\nsay, n = answers._say, []\n"
        "def dies(*given):\n    n.append(1)\n"
        "    if len(n) == 3 and sys.argv[1] == 'die': os.kill(os.getpid(), 9)\n    return say(*given)\n"
        "answers._say = dies\napp(['eval', sys.argv[2], '--json'])\n"
    )
    environment = {**os.environ, "DEHVF_KIT_CACHE": str(tmp_path)}
    first, second = (
        subprocess.run(
            [sys.executable, "-c", code, word, str(adapter)], env=environment, capture_output=True, text=True, check=False
        )
        for word in ("die", "live")
    )
    assert first.returncode == -9 and first.stdout == ""
    assert second.returncode == 0 and "going on with 4 of 8 answers" in second.stderr
    assert json.loads(second.stdout)["all"]["questions"] == 8 and not list(tmp_path.rglob("*.partial"))
