"""The plan adds up, GPUs are found or listed, and what does not fit says what would."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

import pytest
import yaml
from cli.commands import Command
from dehvf_kit_plan.gpus import GPUS, Gpu, find_gpu
from dehvf_kit_plan.plan import BANDWIDTH_UTILISATION, RESERVE, Workload, baseline_rows, feature_bytes, make_plan
from dehvf_kit_plan.symbolic import DecodeCount, TrainCount
from helpers import LAYERS, PATCHES, SLOTS, raw_recipe

import dehvf_kit
from dehvf_kit.api import BaselineCost, TowerSizes
from dehvf_kit.costs.flops import decoder_flops
from dehvf_kit.errors import DehvfError, PluginError
from dehvf_kit.model.builder import build_on_meta
from dehvf_kit.recipe.plugin_manager import plugins
from dehvf_kit.training.trainer import training_arguments

WORK = Workload(tokens=9, answer=2, decode_batch=3, new_tokens=2, gpus=2, samples=100)
CARD = Gpu("mine", 80, 100, 1000, "made up")


def test_the_plan_adds_up() -> None:
    recipe = dehvf_kit.parse_recipe(raw_recipe(graph={"vision_adapter": None}, training={"batch_size": 4, "epochs": 5}))
    model, plan = build_on_meta(recipe), make_plan(recipe, CARD, WORK)
    trained = model.num_trainable_parameters()
    frozen = sum(p.numel() for tower in (model.decoder, *model.towers.values()) for p in tower.parameters())
    assert (plan.trained_parameters, plan.weights) == (trained, 4 * frozen)
    assert (plan.adapter, plan.gradients, plan.optimiser) == (4 * trained, 4 * trained, 8 * trained)
    assert plan.train_bytes == 4 * frozen + 16 * trained + plan.train.peak + RESERVE
    assert plan.steps == 13 * 5  # 100 samples in steps of 4 on 2 GPUs
    assert plan.train_seconds == pytest.approx((plan.train.forward + plan.train.backward) / 30e12)
    assert plan.gpu_hours == pytest.approx(65 * 2 * plan.train_seconds / 3600)
    assert plan.decode_bytes == 4 * frozen + 4 * trained + plan.decode.peak + 3 * 2 * plan.decode.cache + RESERVE
    read = (plan.weights + 3 * (7 + 2) * plan.decode.cache) / (1e12 * BANDWIDTH_UTILISATION)
    first = (plan.decode.encoder + plan.decode.graph + plan.decode.prompt) / 30e12
    assert plan.decode_seconds == pytest.approx(first + max(read, plan.decode.token / 30e12))
    assert plan.fits_train and plan.fits_decode and plan.would_fit == ()


@pytest.mark.parametrize(
    ("epochs", "batch", "accumulation", "gpus", "samples", "steps"),
    [(0.25, 16, 1, 1, 160, 3), (1.3, 16, 1, 1, 104, 10), (0.01, 4, 1, 1, 100, 1), (2, 3, 2, 2, 25, 6)],
)
def test_incomplete_steps_count_whole(epochs: float, batch: int, accumulation: int, gpus: int, samples: int, steps: int) -> None:
    training = {"epochs": epochs, "warmup_epochs": 0, "batch_size": batch, "gradient_accumulation": accumulation}
    assert planned_steps(training, Workload(tokens=9, answer=2, gpus=gpus, samples=samples)) == steps


@pytest.mark.parametrize("epochs", [0.25, 1, 1.3, 2.5])
@pytest.mark.parametrize("gpus", [1, 3])
def test_the_planner_counts_the_trainers_steps(epochs: float, gpus: int, tmp_path: Path) -> None:
    for samples in (1, 13, 104, 160):
        for training in ({"batch_size": 8}, {"batch_size": 5, "gradient_accumulation": 2}, {"max_steps": 7}):
            raw = {"epochs": epochs, "warmup_epochs": 0.1, **training}
            recipe = dehvf_kit.parse_recipe(raw_recipe(training=raw))
            trainers = training_arguments(recipe.training, tmp_path, samples, gpus).max_steps
            assert planned_steps(raw, Workload(tokens=9, answer=2, gpus=gpus, samples=samples)) == trainers


def planned_steps(training: dict, work: Workload) -> int:
    """Steps of a plan whose FLOPs and bytes, which do not matter to them, are not counted."""
    train, decode = (kind(**{field.name: 1 for field in fields(kind)}) for kind in (TrainCount, DecodeCount))
    recipe = dehvf_kit.parse_recipe(raw_recipe(training=training))
    return make_plan(recipe, CARD, work, (train, decode)).steps


def test_a_plugins_formulas_are_counted_on_the_recipes_models(own_plugins: None) -> None:
    recipe = dehvf_kit.parse_recipe(raw_recipe())
    given: list[TowerSizes] = []

    def formula(sizes: TowerSizes) -> list[BaselineCost]:
        given.append(sizes)
        return [BaselineCost(name="mine", parameters=12, added_tokens=5, formula="12")]

    plugins().registry.cost_formulas[:] = [formula]
    (row,) = baseline_rows(recipe, WORK)
    flops = decoder_flops(build_on_meta(recipe).decoder).forward(9 + 5, logits=2)
    assert (row["name"], row["parameters"], row["sequence"], row["decoder_flops"]) == ("mine", 12, 14, flops)
    assert (given[0].decoder_layers, given[0].num_patches, given[0].num_slots) == (LAYERS, PATCHES, SLOTS)


def test_a_formula_that_fails_is_told_with_its_place(own_plugins: None) -> None:
    def broken(sizes: TowerSizes) -> list[BaselineCost]:
        raise ZeroDivisionError("no heads")

    plugins().registry.cost_formulas[:] = [broken]
    with pytest.raises(PluginError, match="broken raised ZeroDivisionError: no heads"):
        baseline_rows(dehvf_kit.parse_recipe(raw_recipe()), WORK)


def test_a_pictures_kept_features_are_the_stores() -> None:
    """In bfloat16, as a comparison keeps them; None where an adapter changes them or nothing reads a picture."""
    import torch
    from helpers import pixels, tiny_model

    model = tiny_model(graph={"vision_adapter": None})
    assert feature_bytes(model) == model.vision_features(pixels(1)).to(torch.bfloat16).nbytes
    assert feature_bytes(tiny_model()) is None
    blind = {"grouper": None, "layer_query": None, "projector": None, "fuser": None}
    assert feature_bytes(tiny_model(graph={**blind, "vision_adapter": None})) is None


@pytest.mark.nightly
def test_what_does_not_fit_says_what_would() -> None:
    """A card with room for checkpointing but not for the plain step."""
    recipe = dehvf_kit.parse_recipe(raw_recipe(training={"batch_size": 16}))
    work = Workload(tokens=60, answer=2, decode_batch=1, samples=10)
    plan = make_plan(recipe, CARD, work)
    tight = Gpu("tight", (plan.train_bytes - 100_000) / 1e9, 100, 1000, "made up")
    refused = make_plan(recipe, tight, work)
    assert not refused.fits_train
    assert any(line.startswith("training.gradient_checkpointing=true: ") for line in refused.would_fit)
    assert any(line.startswith("training.batch_size=1: ") for line in refused.would_fit)
    hopeless = make_plan(recipe, Gpu("none", 0.1, 100, 1000, "made up"), work)
    assert not hopeless.fits_train and not hopeless.fits_decode and hopeless.would_fit == ()


def test_gpus_by_name_or_described() -> None:
    assert find_gpu("A100-80GB") == Gpu("A100-80GB", 80, 312, 2039, GPUS["a100-80gb"].source)
    assert find_gpu("mine", 10, 20) == Gpu("mine", 10, 20, 1000, "as given on the command line")
    changed = find_gpu("h100-80gb", memory_gb=40)
    assert (changed.memory_gb, changed.tflops) == (40, 989)
    assert all(gpu.source and gpu.memory_gb and gpu.tflops and gpu.bandwidth_gbs for gpu in GPUS.values())


def test_an_unknown_gpu_lists_the_known() -> None:
    with pytest.raises(DehvfError) as error:
        find_gpu("a100-80g")
    assert "did you mean 'a100-80gb'?" in str(error.value) and all(name in str(error.value) for name in GPUS)
    with pytest.raises(DehvfError, match="describe another with"):
        find_gpu("mine", memory_gb=10)


def test_the_command_prints_and_explains(command: Command, recipe: Path) -> None:
    ended = command("plan", recipe, "--tokens", 20, "--gpus", 8, "--samples", 1000, "--explain")
    assert ended.code == 0
    for words in ("tiny", "fits 80 GB", "GPU hours", "at 30% utilisation (assumed)", "How this is counted"):
        assert words in ended.out, words
    for name in ("--utilisation", "--gpu-memory"):
        assert name not in ended.out


@pytest.mark.nightly
def test_the_command_as_json_for_several_recipes(command: Command, recipe: Path) -> None:
    other = Path("mean.yaml")
    other.write_text(yaml.safe_dump(raw_recipe(name="mean", graph={"layer_query": None, "fuser": {"type": "mean"}})))
    words = ["--gpu", "mine", "--gpu-memory", 1, "--gpu-tflops", 2, "--tokens", 20, "--json", "training.batch_size=2"]
    ended = command("plan", recipe, other, *words)
    found = json.loads(ended.out)
    assert [plan["recipe"] for plan in found["plans"]] == ["tiny", "mean"]
    assert [plan["batch"] for plan in found["plans"]] == [2, 2]
    assert found["gpu"]["source"] == "as given on the command line" and isinstance(found["rivals_by_formula"], list)
    assert not found["plans"][0]["fits_train"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["nowhere.yaml"], "there is no such file"),
        (["{recipe}", "--gpu", "tpu"], "--gpu: 'tpu' is not in the table"),
        (["{recipe}", "training.batch=2"], "training.batch: unknown field"),
        (["{recipe}", "--tokens", 8], "8 cannot be the answer"),
        (["training.batch_size=2"], "name at least one recipe"),
    ],
)
def test_mistakes_are_told(command: Command, recipe: Path, words: list, says: str) -> None:
    ended = command("plan", *(str(word).format(recipe=recipe) for word in words))
    assert ended.code == 1 and says in ended.err and "Traceback" not in ended.err


@pytest.mark.nightly
def test_without_the_baselines_the_plan_names_their_plugin(builtins_alone: None, command: Command, recipe: Path) -> None:
    ended = command("plan", recipe, "--tokens", 20, "--samples", 10)
    assert ended.code == 0 and "dehvf-kit-baselines" in ended.out and "LaVIN" not in ended.out
