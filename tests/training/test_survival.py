"""Runs that are stopped, damaged, disturbed: what they say, what they leave, and that they end in the same weights."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import dehvf_kit
from dehvf_kit.adapter import checkpoint
from dehvf_kit.adapter.checkpoint import WEIGHTS, read_weights
from dehvf_kit.data import encoding
from dehvf_kit.data.encoding import EncodedSamples
from dehvf_kit.errors import DataError, DehvfError, ImageError, Stopped, TrainingError
from dehvf_kit.recipe.recipe import Recipe
from dehvf_kit.training.checkpoints import checkpoints, fault
from dehvf_kit.training.run import train


def recipe_of(world: Path, *settings: str) -> Recipe:
    return dehvf_kit.load_recipe(world / "tiny.yaml", ["graph.injector.dropout=0.1", *settings])


@pytest.fixture(scope="module")
def whole(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 24 steps that nobody disturbed, with checkpoints of steps 18 and 24."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    train(recipe_of(world), folder)
    return folder


@pytest.fixture
def cut(whole: Path, tmp_path: Path) -> Path:
    """A copy of that run as if ended after step 18 (its adapter and last checkpoint are gone)."""
    folder = tmp_path / "cut"
    shutil.copytree(whole, folder)
    shutil.rmtree(folder / "adapter")
    shutil.rmtree(folder / "checkpoints/checkpoint-24")
    return folder


def weights(run: Path) -> bytes:
    return (run / "adapter" / WEIGHTS).read_bytes()


def at_step(wanted: int, act: Callable[[], Any]) -> Callable[..., None]:
    """A progress function that acts once, after that step."""

    def progress(stage: str, done: int, total: int, note: str = "") -> None:
        if stage == "training" and done == wanted:
            act()

    return progress


def unfinished(run: Path) -> list[Path]:
    return list(run.rglob(".unfinished*"))


@pytest.mark.parametrize(
    ("number", "status", "name", "settings"),
    [
        (signal.SIGTERM, 143, "SIGTERM", []),
        pytest.param(signal.SIGINT, 130, "Ctrl-C", ["training.num_workers=1"], marks=pytest.mark.nightly),
        pytest.param(signal.SIGTERM, 143, "SIGTERM", ["training.group_by_length=true"], marks=pytest.mark.nightly),
        pytest.param(signal.SIGHUP, 129, "SIGHUP", [], marks=pytest.mark.nightly),
        pytest.param(
            *(signal.SIGTERM, 143, "SIGTERM", ["training.gradient_accumulation=2", "training.epochs=8"]), marks=pytest.mark.nightly
        ),
    ],
)
def test_a_signal_saves_and_the_resumed_run_ends_alike(
    world: Path, tmp_path: Path, number: int, status: int, name: str, settings: list[str], request: pytest.FixtureRequest
) -> None:
    default = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
    before = signal.signal(number, default)  # nohup ignores SIGHUP
    request.addfinalizer(lambda: signal.signal(number, before))
    recipe = recipe_of(world, *settings)
    train(recipe, tmp_path / "whole")
    handlers = [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    # Step 10 is inside an epoch, and no step at which the recipe saves.
    message = f"stopped by {name} after step 10 of 24; saved in .*checkpoint-10; go on with the same command and --resume"
    with pytest.raises(Stopped, match=message) as stopped:
        train(recipe, tmp_path / "cut", progress=at_step(10, lambda: os.kill(os.getpid(), number)))
    assert stopped.value.exit_status == status
    assert [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == handlers
    assert not (tmp_path / "cut/adapter").exists()
    result = train(recipe, tmp_path / "cut", resume=True)
    assert result.steps == 24 and weights(tmp_path / "cut") == weights(tmp_path / "whole")


@pytest.mark.nightly  # the signal itself is tested above, the exit status with the command line
def test_the_command_exits_with_143(world: Path, tmp_path: Path) -> None:
    words = ["train", world / "tiny.yaml", "training.epochs=5000", "--output", tmp_path / "run"]
    process = subprocess.Popen([sys.executable, "-m", "dehvf_kit", *words], stderr=subprocess.PIPE, text=True)
    log = tmp_path / "run/checkpoints"
    deadline = time.monotonic() + 120
    while not checkpoints(log) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 143, said
    assert "stopped by SIGTERM after step" in said and "--resume" in said and "Traceback" not in said
    assert fault(checkpoints(log)[0]) is None


def test_a_run_ended_before_its_first_checkpoint_begins_again(world: Path, whole: Path, tmp_path: Path, caplog) -> None:
    def fail() -> None:
        raise ZeroDivisionError("somebody pulled the plug")

    with pytest.raises(ZeroDivisionError):
        train(recipe_of(world), tmp_path / "run", progress=at_step(3, fail))
    train(recipe_of(world), tmp_path / "run", resume=True)
    assert "no checkpoint yet; the run begins from the start" in caplog.text
    assert weights(tmp_path / "run") == weights(whole)


def test_a_run_ended_after_its_last_step_takes_no_further_one(world: Path, tmp_path: Path) -> None:
    recipe = recipe_of(world, "training.max_steps=10")
    train(recipe, tmp_path / "run")
    before = weights(tmp_path / "run")
    shutil.rmtree(tmp_path / "run/adapter")
    result = train(recipe, tmp_path / "run", resume=True)
    assert result.steps == 10 and weights(tmp_path / "run") == before


def test_a_finished_run_is_left_alone(world: Path, whole: Path, caplog) -> None:
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*") if path.is_file() and path.name != ".lock"}
    result = train(recipe_of(world), whole, resume=True)
    assert result.steps == 24 and result.adapter == whole / "adapter" and "this run is finished" in caplog.text
    assert before == {path: path.stat().st_mtime_ns for path in before}


@pytest.mark.parametrize("name", [WEIGHTS, "optimizer.pt", "rng_state.pth", "trainer_state.json", "seal.json"])
@pytest.mark.parametrize("damage", ["cut", "flip", "gone"])
def test_damage_of_a_checkpoint_is_seen(cut: Path, name: str, damage: str) -> None:
    kept = cut / "checkpoints/checkpoint-18"
    assert fault(kept) is None
    file = kept / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0xFF
    if damage == "gone":
        file.unlink()
    else:
        file.write_bytes(content if damage == "flip" else content[: len(content) // 2])
    assert name in fault(kept)


def test_a_damaged_checkpoint_is_put_aside(world: Path, whole: Path, tmp_path: Path, caplog) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    shutil.rmtree(run / "adapter")
    (run / "checkpoints/checkpoint-24/optimizer.pt").write_bytes(b"")
    train(recipe_of(world), run, resume=True)
    assert "checkpoint-24 is damaged ('optimizer.pt' was altered or cut short); going on from checkpoint-18" in caplog.text
    assert (run / "checkpoints/damaged-checkpoint-24").is_dir() and weights(run) == weights(whole)


def test_a_run_of_damaged_checkpoints_alone_is_refused(world: Path, cut: Path) -> None:
    (cut / "checkpoints/checkpoint-18" / "optimizer.pt").unlink()
    with pytest.raises(TrainingError, match=r"every checkpoint is damaged \(checkpoint-18: 'optimizer.pt' is missing\)"):
        train(recipe_of(world), cut, resume=True)
    assert (cut / "checkpoints/checkpoint-18").is_dir()


def test_what_a_kill_left_unfinished_is_no_checkpoint(world: Path, whole: Path, cut: Path) -> None:
    shutil.copytree(cut / "checkpoints/checkpoint-18", cut / "checkpoints/.unfinished-checkpoints/checkpoint-22")
    (cut / ".unfinished-abc-adapter").mkdir()
    train(recipe_of(world), cut, resume=True)
    assert unfinished(cut) == [] and weights(cut) == weights(whole)


@pytest.mark.nightly
def test_resuming_opens_no_picture_twice(world: Path, cut: Path, whole: Path, monkeypatch) -> None:
    recipe = recipe_of(world)
    shutil.rmtree(cut / "checkpoints")
    with pytest.raises(Stopped):
        train(recipe, cut, progress=at_step(21, lambda: os.kill(os.getpid(), signal.SIGTERM)))
    opened = []
    real = encoding.open_image
    monkeypatch.setattr(encoding, "open_image", lambda sample: opened.append(sample.id) or real(sample))
    train(recipe, cut, resume=True)
    assert len(opened) == 3 * recipe.training.batch_size and weights(cut) == weights(whole)


def test_a_changed_recipe_is_named(world: Path, cut: Path) -> None:
    changed = recipe_of(world, "training.base_learning_rate=0.1", "graph.fuser.num_heads=1", "training.num_workers=1")
    with pytest.raises(TrainingError) as refused:
        train(changed, cut, resume=True)
    lines = str(refused.value).splitlines()
    assert "begun with other settings or data" in lines[0]
    assert [line.strip() for line in lines[1:]] == [
        "graph.fuser.num_heads: 2 then, 1 now",
        "training.base_learning_rate: 0.2 then, 0.1 now",
    ]


def test_what_no_weight_depends_on_may_change(world: Path, whole: Path, cut: Path) -> None:
    train(recipe_of(world, "training.num_workers=1", "training.save_steps=2", "name=other"), cut, resume=True)
    assert weights(cut) == weights(whole) and [place.name for place in checkpoints(cut / "checkpoints")] == [
        "checkpoint-24",
        "checkpoint-22",
    ]


@pytest.mark.parametrize("what", ["table", "picture", "samples"])
def test_changed_data_are_named(world: Path, tmp_path: Path, what: str) -> None:
    data = tmp_path / "data"
    shutil.copytree(world, data)
    recipe = recipe_of(world, f"data.train={data}/train.jsonl")
    with pytest.raises(Stopped):
        train(recipe, tmp_path / "run", progress=at_step(2, lambda: os.kill(os.getpid(), signal.SIGTERM)))
    samples = None
    if what == "table":
        table = data / "train.jsonl"
        table.write_text(table.read_text().replace("red", "blue", 1))
        message = f"{table}: changed since the run began"
    elif what == "picture":
        Image.new("RGB", (32, 32), (1, 2, 3)).save(data / "train5.png")
        message = f"{data / 'train5.png'}: changed since the run began"
    else:
        samples = [*recipe.data.samples("train")[:-1], recipe.data.samples("train")[0]]
        message = f"{data / 'train23.png'}: is no longer read"
    with pytest.raises(TrainingError, match=message):
        train(recipe, tmp_path / "run", resume=True, samples=samples)
    assert fault(tmp_path / "run/checkpoints/checkpoint-2") is None


def test_two_runs_do_not_share_a_folder(world: Path, tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    script = (
        "import fcntl, sys; f = open(sys.argv[1], 'a+'); fcntl.lockf(f, fcntl.LOCK_EX); "
        "f.write('4711'); f.flush(); print(flush=True); input()"
    )
    command = [sys.executable, "-c", script, str(tmp_path / ".lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        other.stdout.readline()
        with pytest.raises(TrainingError, match=r"another run \(process 4711\) is working in it"):
            train(recipe_of(world), tmp_path)
        other.communicate("\n")
    assert train(recipe_of(world, "training.max_steps=1"), tmp_path).steps == 1


def test_a_folder_that_cannot_be_is_refused(world: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TrainingError, match="file/run: cannot be written: Not a directory"):
        train(recipe_of(world), tmp_path / "file/run")


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_read_only_folder_is_refused(world: Path, tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    with pytest.raises(TrainingError, match="cannot be written: Permission denied"):
        train(recipe_of(world), tmp_path / "run")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
@pytest.mark.parametrize("part", ["weights", *(pytest.param(part, marks=pytest.mark.nightly) for part in ("optimiser", "flush"))])
def test_a_full_disk_leaves_the_last_checkpoint(world: Path, whole: Path, tmp_path: Path, monkeypatch, part: str) -> None:
    """Writes that the system itself refuses, each reported in other words: by torch, by safetensors, by Python."""
    import resource

    save, save_file = torch.save, checkpoint.save_file
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limited(value: Any, place: Path, **how: Any) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
        try:
            save_file(value, place, **how)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    def full(handle: int) -> None:
        with open("/dev/full", "wb", buffering=0) as device:
            device.write(b"x")

    def fill() -> None:
        if part == "optimiser":
            monkeypatch.setattr(torch, "save", lambda value, place, **_: save(value, "/dev/full"))
        elif part == "weights":
            monkeypatch.setattr(checkpoint, "save_file", limited)
        else:
            monkeypatch.setattr(os, "fsync", full)

    with pytest.raises(TrainingError, match="checkpoint-12: cannot be written: .*MiB free; .*checkpoint-6 is whole"):
        train(recipe_of(world), tmp_path / "run", progress=at_step(9, fill))
    monkeypatch.undo()
    assert unfinished(tmp_path / "run") == []
    assert [(place.name, fault(place)) for place in checkpoints(tmp_path / "run/checkpoints")] == [("checkpoint-6", None)]
    train(recipe_of(world), tmp_path / "run", resume=True)
    assert weights(tmp_path / "run") == weights(whole)


def test_a_disk_full_at_the_end_leaves_no_half_adapter(world: Path, whole: Path, cut: Path, monkeypatch) -> None:
    def fail(*given: Any) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "card", fail)
    with pytest.raises(DehvfError, match="cannot be written: No space left on device"):
        train(recipe_of(world), cut, resume=True)
    monkeypatch.undo()
    assert not (cut / "adapter").exists() and unfinished(cut) == []
    train(recipe_of(world), cut, resume=True)
    assert weights(cut) == weights(whole)


def test_a_dead_worker_is_named(world: Path, whole: Path, tmp_path: Path, monkeypatch) -> None:
    real, mark = EncodedSamples.__getitem__, tmp_path / "run/checkpoints/checkpoint-6"

    def die(self: EncodedSamples, index: int) -> dict[str, Any]:
        if mark.exists() and torch.utils.data.get_worker_info() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(self, index)

    monkeypatch.setattr(EncodedSamples, "__getitem__", die)
    message = "a data worker died .*checkpoint-6 is whole: go on from it by --resume, with a lower training.num_workers"
    with pytest.raises(TrainingError, match=message):
        train(recipe_of(world, "training.num_workers=1"), tmp_path / "run")
    monkeypatch.undo()
    train(recipe_of(world), tmp_path / "run", resume=True)
    assert weights(tmp_path / "run") == weights(whole)


def test_a_workers_own_error_comes_without_its_traceback(world: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(world, data)
    (data / "train3.png").write_bytes(b"no picture")
    recipe = recipe_of(world, f"data.train={data}/train.jsonl", "training.num_workers=1")
    with pytest.raises(DataError) as refused:
        train(recipe, tmp_path / "run")
    assert str(refused.value).startswith("sample 'train3': image ") and "\n" not in str(refused.value)


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.nightly)])
def test_a_broken_image_in_the_middle_of_a_run_costs_no_step(world: Path, tmp_path: Path, workers: int, monkeypatch) -> None:
    data = tmp_path / "data"
    shutil.copytree(world, data)
    settings = [f"data.train={data}/train.jsonl", "training.save_steps=100"]
    opened, seen, real = [], [], encoding.open_image
    monkeypatch.setattr(encoding, "open_image", lambda sample: opened.append(sample.image) or real(sample))
    train(recipe_of(world, *settings), tmp_path / "whole")
    monkeypatch.undo()
    recipe = recipe_of(world, *settings, f"training.num_workers={workers}")
    image = opened[20]  # of the sixth batch
    kept = image.read_bytes()
    image.write_bytes(b"no picture")
    with pytest.raises(ImageError) as refused:
        train(recipe, tmp_path / "run", progress=lambda stage, done, *_: seen.append(done) if stage == "training" else None)
    (place,) = checkpoints(tmp_path / "run/checkpoints")
    assert place.name == f"checkpoint-{seen[-1]}"
    assert f"put a readable image there; {place} is whole: go on from it by --resume; or begin" in str(refused.value)
    assert "data.on_bad_sample=skip" in str(refused.value)
    image.write_bytes(kept)
    train(recipe, tmp_path / "run", resume=True)
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")


@pytest.mark.nightly
def test_no_pickle_is_read_back(world: Path, cut: Path, monkeypatch) -> None:
    asked = []
    real = torch.load
    monkeypatch.setattr(torch, "load", lambda *given, **how: asked.append(how.get("weights_only")) or real(*given, **how))
    train(recipe_of(world), cut, resume=True)
    assert len(asked) >= 3 and all(asked)


@pytest.mark.nightly
def test_other_library_versions_are_said_aloud(world: Path, cut: Path, caplog) -> None:
    record = cut / "run.json"
    record.write_text(record.read_text().replace(f'"torch": "{torch.__version__}"', '"torch": "1.0"'))
    with caplog.at_level(logging.WARNING):
        train(recipe_of(world), cut, resume=True)
    assert f"torch 1.0 then, {torch.__version__} now" in caplog.text


def test_checkpoint_weights_are_the_adapters(whole: Path) -> None:
    last = read_weights(whole / "checkpoints/checkpoint-24")
    assert all(torch.equal(last[name], tensor) for name, tensor in read_weights(whole / "adapter").items())
