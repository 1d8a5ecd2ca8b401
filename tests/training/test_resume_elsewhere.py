"""Resuming with other processes, other code or a renamed checkpoint; and what a refused run leaves of the user's folder."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from cli.commands import Command

import dehvf_kit
from dehvf_kit.errors import DataError, Stopped, TrainingError
from dehvf_kit.recipe.plugin_manager import load_plugin_file
from dehvf_kit.training.callbacks import Stopping
from dehvf_kit.training.checkpoints import SEAL, fault, newest, seal
from dehvf_kit.training.run import train
from dehvf_kit.training.run_folder import RECORD, RunFolder, code, compare_records, record_of, write_record


@pytest.fixture
def begun(world: Path, tmp_path: Path) -> Path:
    """A folder with the record of a run begun in one process with batches of 4."""
    write_record(tmp_path, record_of(dehvf_kit.load_recipe(world / "tiny.yaml"), []))
    return tmp_path


def resumed(world: Path, processes: int, *settings: str) -> dict:
    return record_of(dehvf_kit.load_recipe(world / "tiny.yaml", settings), [], processes)


def test_another_number_of_processes_is_refused_with_what_would_do(world: Path, begun: Path) -> None:
    message = r"samples per step: 4 then \(processes: 1\), 8 now \(processes: 2\); .*batch_size x .* x processes 4"
    with pytest.raises(TrainingError, match=message):
        compare_records(begun, resumed(world, 2))
    with pytest.raises(TrainingError, match="training.batch_size: 4 then, 8 now"):
        compare_records(begun, resumed(world, 1, "training.batch_size=8"))


@pytest.mark.parametrize(
    ("processes", "settings", "notes"),
    [
        (2, ["training.batch_size=2"], ["processes: 1 then, 2 now"]),
        (1, ["training.batch_size=2", "training.gradient_accumulation=2"], []),
        (1, [], []),
    ],
)
def test_the_same_effective_batch_goes_on(world: Path, begun: Path, processes: int, settings: list, notes: list) -> None:
    assert compare_records(begun, resumed(world, processes, *settings)) == notes


def test_a_record_without_batch_and_code_is_read(world: Path, begun: Path) -> None:
    record = json.loads((begun / RECORD).read_text())
    del record["batch"], record["code"]
    (begun / RECORD).write_text(json.dumps(record))
    assert compare_records(begun, resumed(world, 1)) == []
    with pytest.raises(TrainingError, match="training.batch_size: 4 then, 2 now"):
        compare_records(begun, resumed(world, 1, "training.batch_size=2"))


@pytest.mark.usefixtures("own_plugins")
def test_changed_code_of_a_plugin_is_named(world: Path, tmp_path: Path) -> None:
    plugin = tmp_path / "mine.py"
    plugin.write_text(
        "import dehvf_kit\nfrom dehvf_kit.components.fuser.mean import MeanFuserConfig\nfrom typing import Literal\n"
        "class Mine(MeanFuserConfig):\n    type: Literal['mine'] = 'mine'\n"
        "@dehvf_kit.hookimpl\ndef register_components(register): register(Mine)\n"
    )
    load_plugin_file(plugin)
    assert set(code()) >= {"dehvf-kit", "mine"}
    write_record(tmp_path, resumed(world, 1))
    plugin.write_text(plugin.read_text() + "# another line\n")
    assert compare_records(tmp_path, resumed(world, 1)) == ["the code of mine changed"]


STEPS = ["training.max_steps=24", "graph.injector.dropout=0"]


def stopped_at(step: int, world: Path, folder: Path) -> None:
    """A run in this process that gets SIGTERM during a step, and so ends after it."""

    def progress(stage: str, done: int, total: int, note: str = "") -> None:
        if stage == "training" and done == step:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Stopped, match=f"after step {step} of 24"):
        train(dehvf_kit.load_recipe(world / "tiny.yaml", STEPS), folder, progress=progress)


def by_two_processes(world: Path, folder: Path, *settings: str) -> subprocess.CompletedProcess[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "dehvf_kit", "train"]
    command = [*launcher, world / "tiny.yaml", *STEPS, *settings, "--output", folder, "--resume"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True, timeout=300)


@pytest.mark.nightly
def test_a_run_of_one_process_is_resumed_by_two_to_its_own_end_or_refused(world: Path, tmp_path: Path) -> None:
    """The weights differ from the uninterrupted run's as those of two processes do (test_distributed.py states the errors)."""
    train(dehvf_kit.load_recipe(world / "tiny.yaml", STEPS), tmp_path / "whole")
    run = tmp_path / "run"
    stopped_at(11, world, run)
    refused = by_two_processes(world, run)
    assert refused.returncode == 1 and not (run / "adapter").exists()
    assert "samples per step: 4 then (processes: 1), 8 now (processes: 2)" in refused.stderr
    assert "/dehvf_kit/" not in refused.stderr, "a traceback of the kit beside that of torchrun itself"
    assert newest(run / "checkpoints") == run / "checkpoints" / "checkpoint-11"

    resumed = by_two_processes(world, run, "training.batch_size=2")
    assert resumed.returncode == 0, resumed.stderr[-3000:]
    assert "24/24" in resumed.stderr and "processes: 1 then, 2 now" in resumed.stderr
    losses = [
        [row["loss"] for row in map(json.loads, (place / "log.jsonl").read_text().splitlines()) if "loss" in row]
        for place in (tmp_path / "whole", run)
    ]
    assert len(losses[0]) == 24 and losses[0] == pytest.approx(losses[1], rel=0, abs=1e-4)


def sealed(folder: Path, step: int) -> Path:
    folder.mkdir()
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    seal(folder)
    return folder


def test_a_checkpoint_renamed_to_a_huge_step_is_no_finished_run(tmp_path: Path) -> None:
    place = sealed(tmp_path / "checkpoint-11", 11)
    assert fault(place) is None and newest(tmp_path) == place
    sealed(tmp_path / "checkpoint-999999", 12)
    assert fault(tmp_path / "checkpoint-999999") == "it holds step 12 and was renamed"
    assert newest(tmp_path) == place
    assert (tmp_path / "damaged-checkpoint-999999" / SEAL).exists(), "put aside, not removed"
    place.rename(tmp_path / "checkpoint-500")
    with pytest.raises(TrainingError, match="checkpoint-500: it holds step 11 and was renamed"):
        newest(tmp_path)


def test_a_refused_training_keeps_the_users_own_empty_folder(world: Path, tmp_path: Path) -> None:
    recipe = dehvf_kit.load_recipe(world / "tiny.yaml")
    (tmp_path / "mine").mkdir()
    for folder in (tmp_path / "mine", tmp_path / "new"):
        with pytest.raises(DataError, match="its training set is empty"):
            train(recipe, folder, samples=[])
    assert list((tmp_path / "mine").iterdir()) == [] and not (tmp_path / "new").exists()
    with RunFolder(tmp_path / "mine", resume=True):
        pass
    assert (tmp_path / "mine").is_dir()


def test_an_ignored_hangup_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Stopping():
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("words", [["--output", ""], ["--output="], ["-o", ""]])
@pytest.mark.parametrize("verb", ["train", "build", "eval", "graph"])
def test_an_empty_output_is_refused(command: Command, world: Path, verb: str, words: list[str]) -> None:
    ended = command(verb, world / "tiny.yaml", *words)
    assert ended.code == 1 and "--output: is empty; name a file or folder" in ended.err
