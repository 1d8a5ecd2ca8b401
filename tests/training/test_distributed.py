"""Two processes on the CPU (gloo) end where one process does: losses, weights, files, counts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import distributed
from torch.distributed.tensor import DTensor

import dehvf_kit
from dehvf_kit.adapter.identity import base_identities
from dehvf_kit.backbones.decoder import num_weights
from dehvf_kit.errors import DehvfError
from dehvf_kit.model.builder import build
from dehvf_kit.training.distributed import LOADS_ONCE, WANTS_FSDP, Processes, join_processes, prepare_model
from dehvf_kit.training.run import train
from dehvf_kit.utils.atomic import UNFINISHED

LAUNCH = Path(__file__).parents[2] / "launch"

SETTINGS = ["graph.injector.dropout=0", "training.max_steps=12", "training.cache_features=true"]
ACCUMULATED = ["training.batch_size=1", "training.gradient_accumulation=2"]
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
ACCELERATE = ["-m", "accelerate.commands.launch", "--num_processes", "2", "--main_process_port", "0", "--config_file"]
LAUNCHES = {
    "torchrun": ([*TORCHRUN, "-m", "dehvf_kit"], ACCUMULATED),
    "ddp": ([*ACCELERATE, "launch/ddp.yaml", "-m", "dehvf_kit"], ["training.batch_size=2"]),
    "fsdp2": ([*ACCELERATE, "launch/fsdp2.yaml", "-m", "dehvf_kit"], ["training.batch_size=2"]),
    "zero2": ([*ACCELERATE, "launch/zero2.yaml", "gloo.py"], ACCUMULATED),
}
GLOO = """
import runpy
from deepspeed import ops
ops.__compatible_ops__["deepspeed_shm_comm"] = False  # in C++, compiled in a minute at the first start on a machine without GPU
runpy.run_module("dehvf_kit", run_name="__main__")
"""


@pytest.fixture(scope="module")
def alone(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of one process, with batches of 4."""
    folder = tmp_path_factory.mktemp("alone")
    train(dehvf_kit.load_recipe(world / "tiny.yaml", SETTINGS), folder / "run")
    return folder / "run"


@pytest.fixture(scope="module", params=list(LAUNCHES))
def together(
    request: pytest.FixtureRequest, world: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """The same global batch in two processes, started by torchrun or accelerate, with a feature cache of their own."""
    if request.param == "zero2":
        pytest.importorskip("deepspeed", reason="deepspeed is not installed: pip install deepspeed")
    launcher, settings = LAUNCHES[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    (folder / "gloo.py").write_text(GLOO, encoding="utf-8")
    (folder / "launch").symlink_to(LAUNCH)
    here = os.pathsep.join([str(LAUNCH.parent), *os.environ.get("PYTHONPATH", "").split(os.pathsep)])
    environment = {**os.environ, "PYTHONPATH": here, "DEHVF_KIT_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
    command = [*launcher, "train", world / "tiny.yaml", *SETTINGS, *settings, "--output", folder / "run"]
    asked = {"env": environment, "cwd": folder, "capture_output": True, "text": True, "timeout": 300}
    ended = subprocess.run([sys.executable, *map(str, command)], **asked)
    assert ended.returncode == 0, ended.stderr[-3000:]
    return folder, ended


def logged(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def losses(run: Path) -> list[float]:
    return [row["loss"] for row in logged(run) if "loss" in row]


@pytest.mark.nightly
def test_losses_and_weights_are_those_of_one_process(alone: Path, together: tuple) -> None:
    """Both sum the same gradients in another order: float32 rounding (6e-8) of numbers below 10, over 12 steps.

    Worst seen: losses of 3 to 4 differ by 2.9e-6, weights by 1.9e-7. A key's bias adds the same to all scores, so that its
    gradient is zero but for rounding, which AdamW makes into steps of full length: it may go anywhere those steps lead.
    """
    one, two = losses(alone), losses(together[0] / "run")
    assert len(one) == 12 and one[0] > 1
    assert one == pytest.approx(two, rel=0, abs=1e-5)
    before, after = (load_file(run / "adapter" / "adapter_model.safetensors") for run in (alone, together[0] / "run"))
    assert set(before) == set(after)
    steps = sum(row["learning_rate"] for row in logged(alone) if "learning_rate" in row)
    for name, weight in before.items():
        tolerance = 2 * steps if name.endswith("to_key.bias") else 1e-6
        torch.testing.assert_close(weight, after[name], rtol=0, atol=tolerance, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.nightly
def test_only_rank_0_writes_and_prints(together: tuple) -> None:
    folder, ended = together
    assert ended.stdout.count("adapter in") == 1 and ended.stdout.count("12 steps") == 1
    assert {file.name for file in (folder / "run").iterdir()} == {".lock", "adapter", "checkpoints", "log.jsonl", "run.json"}
    assert not [file for file in folder.rglob("*") if file.name.startswith(UNFINISHED) or file.suffix == ".part"]
    assert ended.stderr.count("training: 12/12") == 1
    assert "find_unused_parameters" not in ended.stderr
    assert bool(list(folder.rglob("zero_pp_rank_1_*"))) == folder.name.startswith("zero2")


@pytest.mark.nightly
def test_the_feature_cache_is_whole(alone: Path, together: tuple) -> None:
    """Four colours, so four distinct pictures; each process wrote some, and a run alone finds them all."""
    assert len(list((together[0] / "cache").rglob("*.safetensors"))) == 4


@pytest.mark.nightly
def test_the_learning_rate_follows_the_processes(alone: Path, together: tuple) -> None:
    runs = (alone, together[0] / "run")
    rates = [[row["learning_rate"] for row in logged(run) if "learning_rate" in row] for run in runs]
    assert rates[0] == pytest.approx(rates[1], rel=1e-12)
    assert max(rates[0]) == pytest.approx(0.2 * 4 / 256)


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch) -> Iterator[Processes]:
    """Rank 0 of two processes, of which the other one is pretended: it answers nothing, and nothing may be asked of it."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    monkeypatch.setenv(WANTS_FSDP, "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    yield Processes(0, 2)
    distributed.destroy_process_group()


def test_counts_and_identity_stay_true_when_split(world: Path, tmp_path: Path, two: Processes) -> None:
    model = build(dehvf_kit.load_recipe(world / "tiny.yaml"))
    trained, frozen, bases = model.num_trainable_parameters(), num_weights(model.decoder), base_identities(model)
    prepare_model(model, two)
    held = sum(parameter.to_local().numel() for parameter in model.decoder.parameters())
    assert (model.num_trainable_parameters(), num_weights(model.decoder)) == (trained, frozen)
    assert frozen / 2 <= held <= frozen / 2 + 100
    assert not any(isinstance(parameter, DTensor) for parameter in model.trainable_parameters())
    assert not any(isinstance(parameter, DTensor) for parameter in model.towers.parameters())
    model.save_pretrained(tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter" / "dehvf_config.json").read_text())
    assert config["trainable_parameters"] == trained and config["bases"] == bases
    assert dehvf_kit.load(tmp_path / "adapter").num_trainable_parameters() == trained


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [("FSDP_VERSION", "1", "set fsdp_version: 2"), (LOADS_ONCE, "true", "without weights; set it to false")],
)
def test_settings_that_would_go_wrong_are_refused(
    world: Path, two: Processes, monkeypatch: pytest.MonkeyPatch, name: str, value: str, message: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(DehvfError, match=message):
        prepare_model(build(dehvf_kit.load_recipe(world / "tiny.yaml")), two)


def test_a_quantised_decoder_is_not_split(world: Path, two: Processes) -> None:
    pytest.importorskip("bitsandbytes")
    with pytest.raises(DehvfError, match="cannot split a quantised decoder"):
        prepare_model(build(dehvf_kit.load_recipe(world / "tiny.yaml", ["decoder.quantization=int8"])), two)


@pytest.mark.parametrize("file", ["ddp", "fsdp2", "zero2"])
def test_launch_files_are_accelerates(file: str) -> None:
    from accelerate.commands.config.config_args import ClusterConfig

    config = ClusterConfig.from_yaml_file(LAUNCH / f"{file}.yaml")
    assert config.num_processes == 8
    named = config.deepspeed_config.get("deepspeed_config_file") if file == "zero2" else None
    assert named is None or json.loads((LAUNCH.parent / named).read_text())["zero_optimization"]["stage"] == 2


@pytest.mark.parametrize("by_file", [True, False])
def test_zero_3_is_refused_at_start_and_zero_2_is_not(by_file, tmp_path, monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    for stage in (2, 3):
        if by_file:
            (tmp_path / "deepspeed.json").write_text(f'{{"zero_optimization": {{"stage": {stage}}}}}', encoding="utf-8")
            monkeypatch.setenv("ACCELERATE_DEEPSPEED_CONFIG_FILE", str(tmp_path / "deepspeed.json"))
        else:
            monkeypatch.setenv("ACCELERATE_DEEPSPEED_ZERO_STAGE", str(stage))
        if stage == 2:
            assert join_processes().count == 1
        else:
            with pytest.raises(DehvfError, match="ZeRO-3.*launch/zero2.yaml"):
                join_processes()


@pytest.mark.parametrize("by", ["recipe", "launcher", "file"])
def test_deepspeed_casts_no_trained_weight(by: str, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """DeepSpeed 0.19.8 saved the adapter in bfloat16; a decoder in bfloat16 it leaves as it is."""
    for name in ("WORLD_SIZE", "ACCELERATE_MIXED_PRECISION"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "deepspeed.json").write_text(json.dumps({"bf16": {"enabled": by == "file"}}), encoding="utf-8")
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_CONFIG_FILE", str(tmp_path / "deepspeed.json"))
    if by == "launcher":
        assert join_processes().count == 1
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    settings = ["training.precision=bfloat16"] if by == "recipe" else []
    casts = "casting all weights.*training.precision=float32.*launch/ddp.yaml"
    with pytest.raises(DehvfError, match="mixed_precision bf16.*precision=float32" if by == "launcher" else casts):
        train(dehvf_kit.load_recipe(world / "tiny.yaml", settings), tmp_path / "run")
    assert not (tmp_path / "run").exists()
