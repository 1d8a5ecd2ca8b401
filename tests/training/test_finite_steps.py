"""Steps that are not finite: named, skipped without a trace, counted, and too many of them end the run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from broken_runs import Broken, inf_backward, nan_forward
from torch import Tensor, nn

import dehvf_kit
from dehvf_kit.adapter.checkpoint import read_weights
from dehvf_kit.data.encoding import IGNORED, EncodedSamples
from dehvf_kit.errors import DataError, TrainingError
from dehvf_kit.model.builder import build
from dehvf_kit.training import training_set
from dehvf_kit.training.callbacks import FiniteSteps, first_non_finite
from dehvf_kit.training.checkpoints import checkpoints, fault
from dehvf_kit.training.run import train


@pytest.mark.parametrize(
    ("spoil", "reason", "first"),
    [
        (nan_forward, "the loss is nan", "the output of 'layer_query'"),
        (inf_backward, "gradients are not finite", "the gradient of 'layer_query."),
    ],
)
def test_a_bad_step_is_named_and_leaves_no_trace(
    world: Path, tmp_path: Path, caplog, spoil: Callable[[Tensor], Tensor], reason: str, first: str
) -> None:
    broken = Broken(world, {7, 8, 11}, spoil)
    result = broken.train(tmp_path / "run")
    assert result.skipped == (7, 8, 11) and result.steps == 24
    rows = [row for row in result.log if "skipped_step" in row]
    assert [row["skipped_step"] for row in rows] == [7, 8, 11]
    for row in rows:
        assert reason in row["reason"] and row["first"].startswith(first)
        assert len(row["samples"].split(", ")) == 4 and row["samples"].startswith("train")
    assert "step 8 skipped" in caplog.text and "2 in a row, the run stops at 5" in caplog.text
    for bad in (7, 8, 11):
        assert all(torch.equal(broken.weights[bad][name], tensor) for name, tensor in broken.weights[bad - 1].items())
    assert any(not torch.equal(broken.weights[9][name], tensor) for name, tensor in broken.weights[8].items())
    text = (tmp_path / "run/log.jsonl").read_text()
    assert "NaN" not in text and "Infinity" not in text
    losses = {row["step"]: row["loss"] for row in map(json.loads, text.splitlines()) if "loss" in row}
    assert not {7, 8, 11} & set(losses) and all(losses.values())


def test_skipped_steps_move_no_moments_of_the_optimiser(world: Path, tmp_path: Path) -> None:
    broken = Broken(world, {2, 3}, nan_forward, "training.max_steps=4", "training.save_steps=1")
    broken.train(tmp_path / "run")
    kept = torch.load(tmp_path / "run/checkpoints/checkpoint-4/optimizer.pt", weights_only=True)["state"]
    assert {int(state["step"]) for state in kept.values()} == {2}


def test_too_many_in_a_row_end_the_run(world: Path, tmp_path: Path) -> None:
    broken = Broken(world, set(range(8, 99)), nan_forward, "training.max_bad_steps=3")
    with pytest.raises(TrainingError) as ended:
        broken.train(tmp_path / "run")
    assert "step 10 skipped: the loss is nan; samples train" in str(ended.value)
    assert "3 steps in a row (training.max_bad_steps: 3)" in str(ended.value)
    (kept,) = checkpoints(tmp_path / "run/checkpoints")
    assert kept.name == "checkpoint-6" and fault(kept) is None
    assert all(torch.equal(read_weights(kept)[name], tensor) for name, tensor in broken.weights[6].items())
    assert not (tmp_path / "run/adapter").exists()


def test_one_bad_batch_of_an_accumulated_step_is_the_one_named(world: Path, tmp_path: Path) -> None:
    calls = []

    def every_other(output: Tensor) -> Tensor:
        calls.append(torch.is_grad_enabled())
        # The second forward, which looks for the place, runs without gradients: spoil it as the bad batch was.
        return output if calls[-1] and len(calls) % 2 else nan_forward(output)

    broken = Broken(world, {2}, every_other, "training.gradient_accumulation=2", "training.max_steps=3")
    result = broken.train(tmp_path / "run")
    (row,) = [row for row in result.log if "skipped_step" in row]
    assert len(row["samples"].split(", ")) == 4, "one batch of the two"


def test_the_first_place_is_found(world: Path) -> None:
    model = build(dehvf_kit.load_recipe(world / "tiny.yaml"))
    ids = torch.tensor([[3, 4, 5]])
    batch = {"input_ids": ids, "pixel_values": torch.randn(1, 3, 32, 32)}

    def run(given: dict[str, Any]) -> Any:
        return model(**given)

    state = torch.get_rng_state()
    assert first_non_finite(model, batch, run) is None
    assert first_non_finite(model, {**batch, "pixel_values": torch.full((1, 3, 32, 32), torch.inf)}, run) == (
        "the batch's own pixel_values"
    )
    mlp = model.decoder.model.layers[2].mlp
    with torch.no_grad():
        mlp.down_proj.weight[0, 0] = torch.nan
    assert "decoder.model.layers.2.mlp" in first_non_finite(model, batch, run)
    with torch.no_grad():
        model.nodes["projector"].fc1.weight[0, 0] = torch.nan
    assert first_non_finite(model, batch, run) == "the weights 'projector.fc1.weight'"
    assert torch.equal(state, torch.get_rng_state())
    assert not any(module._forward_hooks for module in model.nodes.modules())


@pytest.mark.parametrize(
    ("dtype", "precision"),
    [("bfloat16", "bfloat16"), ("bfloat16", "float32"), ("float16", "float32"), ("float32", "bfloat16"), ("float16", "float16")],
)
def test_what_is_trained_stays_float32(world: Path, tmp_path: Path, dtype: str, precision: str) -> None:
    recipe = dehvf_kit.load_recipe(
        world / "tiny.yaml",
        [
            f"decoder.dtype={dtype}",
            f"vision.dtype={dtype}",
            f"training.precision={precision}",
            "training.max_steps=2",
            "training.warmup_epochs=0",
        ],
    )
    model = build(recipe)
    before = {name: tensor.detach().clone() for name, tensor in model.named_trainable_parameters().items()}
    assert {next(model.decoder.parameters()).dtype} == {getattr(torch, dtype)}
    train(recipe, tmp_path / "run", model)
    after = read_weights(tmp_path / "run/adapter")
    assert {tensor.dtype for tensor in after.values()} == {torch.float32}
    assert {parameter.dtype for parameter in model.named_trainable_parameters().values()} == {torch.float32}
    optimiser = torch.load(tmp_path / "run/checkpoints/checkpoint-2/optimizer.pt", weights_only=True)["state"]
    assert {state["exp_avg"].dtype for state in optimiser.values()} == {torch.float32}
    assert {name.partition(".")[0] for name in after} >= {"position", "fuser", "projector", "layer_query"}
    changed = {name.partition(".")[0] for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    assert {"position", "projector"} <= changed


def masked(monkeypatch: pytest.MonkeyPatch, *ids: str) -> None:
    """Samples of these ids, or all, come out of encoding without a label, as under a template that does not fit."""
    real = EncodedSamples._join

    def join(self: EncodedSamples, sample: Any, parts: Any) -> tuple[list[int], list[int]]:
        text, labels = real(self, sample, parts)
        return text, [IGNORED] * len(labels) if sample.id in ids or not ids else labels

    monkeypatch.setattr(EncodedSamples, "_join", join)


@pytest.mark.parametrize("by", ["encoding", "first batch"])
def test_a_run_that_could_learn_nothing_stops_at_step_0(world: Path, tmp_path: Path, monkeypatch, by: str) -> None:
    masked(monkeypatch)
    if by == "first batch":
        monkeypatch.setattr(training_set, "exclude_unanswered", lambda encoded: [])
    with pytest.raises(DataError) as refused:
        train(dehvf_kit.load_recipe(world / "tiny.yaml"), tmp_path / "run")
    assert "labels are all masked" in str(refused.value) and "what colour is it ? " in str(refused.value)
    assert "<eos>" in str(refused.value) and "data.prompt" in str(refused.value)
    assert checkpoints(tmp_path / "run/checkpoints") == []


def test_samples_without_an_answer_are_left_out_and_counted(world: Path, tmp_path: Path, monkeypatch, caplog) -> None:
    masked(monkeypatch, "train3", "train7")
    result = train(dehvf_kit.load_recipe(world / "tiny.yaml", ["training.max_steps=3"]), tmp_path / "run")
    assert result.left_out == ("train3", "train7")
    assert "2 of 24 samples have no token to learn and are excluded: train3, train7" in caplog.text


def test_a_step_that_deepspeed_skipped_is_counted() -> None:
    """ZeRO-2 keeps the gradients to itself and says `overflow` where it took no step."""
    model, state = nn.Linear(2, 2), SimpleNamespace(global_step=6, max_steps=9, log_history=[])
    steps = FiniteSteps(5, run=lambda batch: None)
    for overflow in (False, True):
        steps.saw({}, ["one"], torch.tensor(1.0))
        optimizer = SimpleNamespace(optimizer=SimpleNamespace(overflow=overflow), zero_grad=lambda set_to_none: None)
        steps.on_pre_optimizer_step(None, state, None, model=model, optimizer=optimizer)
        assert [row["skipped_step"] for row in state.log_history] == ([7] if overflow else [])
    assert state.log_history[0]["samples"] == "one" and "of several processes" in state.log_history[0]["reason"]


def test_a_short_run_whose_steps_are_all_skipped_fails() -> None:
    """Two steps, fewer than `max_bad_steps`: nothing was learned."""
    model, state = nn.Linear(2, 2), SimpleNamespace(global_step=0, max_steps=2, log_history=[])
    steps, optimizer = FiniteSteps(5, run=lambda batch: None), SimpleNamespace(zero_grad=lambda set_to_none: None)
    for step in range(2):
        state.global_step = step
        steps.saw({}, ["one"], torch.tensor(float("nan")))
        if step == 0:
            steps.on_pre_optimizer_step(None, state, None, model=model, optimizer=optimizer)
    with pytest.raises(TrainingError, match="2 steps in a row"):
        steps.on_pre_optimizer_step(None, state, None, model=model, optimizer=optimizer)


def test_weights_that_no_gradient_reached_are_named(caplog: pytest.LogCaptureFixture) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    optimizer = torch.optim.AdamW(model.parameters())
    model[0](torch.ones(1, 2)).sum().backward()
    optimizer.step()
    FiniteSteps(5, run=lambda batch: None).on_train_end(None, None, None, model=model, optimizer=optimizer)
    assert "no gradient reached 1.bias, 1.weight, so they are as they began" in caplog.text
    caplog.clear()
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    FiniteSteps(5, run=lambda batch: None).on_train_end(None, None, None, model=model, optimizer=optimizer)
    assert not caplog.text
