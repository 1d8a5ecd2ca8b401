"""The paper's optimisation rules, the loss on answers alone, and a run that survives being cut in two."""

from __future__ import annotations

import json
import math
import random
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers import tiny_model, tokens

import dehvf_kit
from dehvf_kit.errors import DataError, DehvfError, TrainingError
from dehvf_kit.model.builder import build
from dehvf_kit.model.features import FeatureStore
from dehvf_kit.recipe.sections import TrainingConfig
from dehvf_kit.training.callbacks import SPENT, TimeBudget
from dehvf_kit.training.run import train
from dehvf_kit.training.run_folder import compare_records, record_of, write_record
from dehvf_kit.training.trainer import DehvfTrainer, SeededLengthSampler, training_arguments


@pytest.mark.parametrize(
    ("settings", "processes", "expected"),
    [
        ({"base_learning_rate": 0.02, "batch_size": 4}, 1, 0.02 * 4 / 256),
        ({"base_learning_rate": 0.02, "batch_size": 4}, 8, 0.02 * 32 / 256),
        ({"base_learning_rate": 0.02, "batch_size": 4, "gradient_accumulation": 4}, 2, 0.02 * 32 / 256),
        ({"base_learning_rate": 0.009, "batch_size": 256}, 1, 0.009),
    ],
)
def test_learning_rate_rule(settings: dict, processes: int, expected: float) -> None:
    assert TrainingConfig(**settings).learning_rate(processes) == pytest.approx(expected, rel=1e-12)


def test_steps_and_warm_up_count_epochs() -> None:
    config = TrainingConfig(epochs=20, warmup_epochs=2, batch_size=4)
    assert (config.num_steps(12_726), config.num_warmup_steps(12_726)) == (20 * 3182, 2 * 3182)
    assert (config.num_steps(12_726, 8), config.num_warmup_steps(12_726, 8)) == (20 * 398, 2 * 398)
    short = TrainingConfig(epochs=1, warmup_epochs=0.5, batch_size=4, max_steps=3)
    assert (short.num_steps(100), short.num_warmup_steps(100)) == (3, 1), "a run reaches its peak"
    assert "makes 12 steps and the run has 3, so the warm-up ends after 1" in short.cut_warmup(100)
    assert config.cut_warmup(12_726) == short.model_copy(update={"max_steps": 13}).cut_warmup(100) == ""


def test_progress_shows_the_loss_of_each_step(world: Path, tmp_path: Path) -> None:
    notes = []

    def progress(stage: str, done: int, total: int, note: str = "") -> None:
        notes.extend([note] if stage == "training" else [])

    changes = ["training.max_steps=3", "training.gradient_accumulation=2"]
    logged = train(world / "tiny.yaml", tmp_path / "each", overrides=changes).log
    train(world / "tiny.yaml", tmp_path / "rare", overrides=[*changes, "training.logging_steps=100"], progress=progress)
    assert notes == [f"loss {row['loss']:.3f}" for row in logged if "loss" in row] and len(set(notes)) == 3


def test_schedule_is_half_a_cosine_after_linear_warm_up(world: Path, tmp_path: Path) -> None:
    recipe = dehvf_kit.load_recipe(world / "tiny.yaml", ["training.warmup_epochs=2"])
    args = training_arguments(recipe.training, tmp_path, samples=24)
    model = build(recipe)
    trainer = DehvfTrainer(model, args, recipe.data.samples("train"), [])
    trainer.create_optimizer_and_scheduler(args.max_steps)
    rates = []
    for _ in range(args.max_steps):
        rates.append(trainer.lr_scheduler.get_last_lr()[0])
        trainer.optimizer.step()
        trainer.lr_scheduler.step()
    full = 0.2 * 4 / 256
    assert rates[0] == 0 and rates[6] == pytest.approx(full / 2) and rates[12] == pytest.approx(full)
    assert rates[18] == pytest.approx(full / 2) and trainer.lr_scheduler.get_last_lr()[0] == pytest.approx(0, abs=1e-12)


def test_weight_decay_spares_biases_and_norms(world: Path, tmp_path: Path) -> None:
    recipe = dehvf_kit.load_recipe(world / "tiny.yaml")
    model = build(recipe)
    trainer = DehvfTrainer(model, training_arguments(recipe.training, tmp_path, 24), recipe.data.samples("train"), [])
    trainer.create_optimizer()
    decayed, spared = trainer.optimizer.param_groups
    assert decayed["weight_decay"] == 0.02 and spared["weight_decay"] == 0
    assert all(parameter.ndim > 1 for parameter in decayed["params"]) and all(parameter.ndim == 1 for parameter in spared["params"])
    assert len(decayed["params"]) + len(spared["params"]) == len(model.named_trainable_parameters())


def test_a_node_may_learn_at_a_rate_of_its_own(world: Path, tmp_path: Path) -> None:
    recipe = dehvf_kit.load_recipe(world / "tiny.yaml", ["training.node_rates={fuser: 0.1, layer_query: 0.5}"])
    model = build(recipe)
    args = training_arguments(recipe.training, tmp_path, 24)
    trainer = DehvfTrainer(model, args, recipe.data.samples("train"), [], recipe.training.node_rates)
    trainer.create_optimizer()
    trainer.create_optimizer_and_scheduler(args.max_steps)  # asks for the optimizer again, which must not scale it twice
    rates = {
        parameter: (group["initial_lr"], group["weight_decay"])
        for group in trainer.optimizer.param_groups
        for parameter in group["params"]
    }
    assert len(rates) == sum(len(group["params"]) for group in trainer.optimizer.param_groups)
    assert trainer.lr_scheduler.base_lrs[0] == args.learning_rate, "transformers logs the first group's"
    for name, parameter in model.named_trainable_parameters().items():
        factor = 0.1 if name.startswith("fuser.") else 0.5 if name.startswith("layer_query.") else 1.0
        assert rates[parameter] == (pytest.approx(factor * args.learning_rate), 0.02 if parameter.ndim > 1 else 0.0), name


def test_loss_of_answer_positions_equals_the_decoders_own() -> None:
    model = tiny_model()
    ids = tokens(3, 9)
    labels = ids.clone()
    labels[0, :5], labels[1, :7], labels[2, :6] = -100, -100, -100
    whole = model(input_ids=ids, labels=labels)
    keep = (labels[:, 1:] != -100).any(0).nonzero().squeeze(1)
    part = model(input_ids=ids, labels=labels, logits_to_keep=keep)
    assert part.logits.shape[1] == len(keep) < ids.shape[1]
    # Worst difference seen 0: the same rows go through the same head.
    torch.testing.assert_close(part.loss, whole.loss, rtol=1e-6, atol=0)
    torch.testing.assert_close(part.logits, whole.logits[:, keep], rtol=1e-6, atol=1e-6)
    summed = model(input_ids=ids, labels=labels, logits_to_keep=keep, num_items_in_batch=18)
    torch.testing.assert_close(summed.loss * 18, whole.loss * int((labels[:, 1:] != -100).sum()), rtol=1e-6, atol=0)


@pytest.mark.nightly  # test_commands.py does it by the command line
def test_training_learns_the_colours_and_saves(world: Path, tmp_path: Path) -> None:
    from dehvf_kit.evaluation.answers import accuracy, answer

    recipe = dehvf_kit.load_recipe(world / "tiny.yaml", ["training.epochs=50", "graph.injector.dropout=0"])
    seen: list[tuple[str, int, int]] = []
    result = train(recipe, tmp_path / "run", progress=lambda stage, done, total, note: seen.append((stage, done, total)))
    assert result.steps == 300 and result.samples == 1200 and ("training", 300, 300) in seen
    losses = [row["loss"] for row in result.log if "loss" in row]
    assert losses[-1] < losses[0] / 2
    model = dehvf_kit.load(result.adapter)
    scores = accuracy(answer(model, recipe.data.samples("test")))
    # Four colours: chance is 0.25.
    assert scores["all"]["accuracy"] == 1.0 and scores["by_kind"]["colour"]["questions"] == 8
    assert [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()] == result.log


@pytest.mark.parametrize(
    "settings",
    [
        [],
        *(
            pytest.param(changes, marks=pytest.mark.nightly)
            for changes in (
                ["training.cache_features=true", "training.num_workers=1"],
                ["training.gradient_accumulation=2"],
                ["training.group_by_length=true"],
            )
        ),
    ],
)
def test_resumed_run_ends_in_the_same_weights(world: Path, tmp_path: Path, settings: list[str]) -> None:
    recipe = dehvf_kit.load_recipe(world / "tiny.yaml", settings)
    whole = train(recipe, tmp_path / "whole")
    train(recipe, tmp_path / "cut")
    for name in ("adapter", f"checkpoints/checkpoint-{whole.steps}"):
        shutil.rmtree(tmp_path / "cut" / name, ignore_errors=True)
    train(recipe, tmp_path / "cut", resume=True)
    one, other = (dehvf_kit.load(tmp_path / name / "adapter").named_trainable_parameters() for name in ("whole", "cut"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_batches_of_like_length_come_in_random_order() -> None:
    lengths = [random.Random(place).randrange(5, 40) for place in range(8 * 4 * 12 + 3)]
    sampler = SeededLengthSampler(8, lengths, seed=0)
    orders = []
    for epoch in (0, 1):
        sampler.set_epoch(epoch)
        orders.append(list(sampler))
        assert orders[-1] == list(sampler)
    assert orders[0] != orders[1]
    for order in orders:
        assert sorted(order) == list(range(len(lengths)))
        batches = [[lengths[place] for place in order[start : start + 8]] for start in range(0, len(order), 8)]
        assert max(batches[0]) == max(lengths) and len(batches[-1]) == 3
        spans = [batches[start : start + 4] for start in range(4, 48, 4)]
        assert sum(_apart(span) for span in spans) >= 10, "the one that gave the first batch its longest sample may not be sorted"
        falling = [sum(one) > sum(other) for one, other in zip(batches, batches[1:], strict=False)]
        assert sum(falling) / len(falling) < 0.7, "the Trainer's own order falls eleven times in twelve here"


def _apart(batches: list[list[int]]) -> bool:
    """No two batches have lengths between one another's."""
    ordered = sorted(batches, key=max)
    return all(max(one) <= min(other) for one, other in zip(ordered, ordered[1:], strict=False))


def test_run_in_place_of_another_is_refused(world: Path, tmp_path: Path) -> None:
    recipe = dehvf_kit.load_recipe(world / "tiny.yaml", ["training.max_steps=1", "training.epochs=1", "training.warmup_epochs=0"])
    with pytest.raises(DehvfError, match="no checkpoint to resume from"):
        train(recipe, tmp_path / "run", resume=True)
    train(recipe, tmp_path / "run")
    with pytest.raises(DehvfError, match="holds a run already"):
        train(recipe, tmp_path / "run")


def test_cached_features_train_like_fresh_ones(world: Path, tmp_path: Path) -> None:
    fresh = train(dehvf_kit.load_recipe(world / "tiny.yaml"), tmp_path / "fresh")
    cached = train(dehvf_kit.load_recipe(world / "tiny.yaml", ["training.cache_features=true"]), tmp_path / "cached")
    one, other = (dehvf_kit.load(run.adapter).named_trainable_parameters() for run in (fresh, cached))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_features_of_a_trained_encoder_are_not_cached(world: Path, tmp_path: Path) -> None:
    recipe = dehvf_kit.load_recipe(world / "tiny.yaml", ["graph.vision_adapter={type: parallel}", "training.cache_features=true"])
    with pytest.raises(DataError, match="vision adapter is trained"):
        train(recipe, tmp_path / "run")


def test_handed_over_store_is_filled(world: Path, tmp_path: Path) -> None:
    recipe = dehvf_kit.load_recipe(world / "tiny.yaml", ["training.cache_features=true", "training.max_steps=1"])
    model = build(recipe)
    store = FeatureStore(model)
    train(recipe, tmp_path / "run", model, store)
    assert len(store) == 24


def test_recipe_without_data_is_refused(world: Path, tmp_path: Path) -> None:
    recipe = dehvf_kit.load_recipe(world / "tiny.yaml", ["data=null"])
    with pytest.raises(DataError, match="no `data` section"):
        train(recipe, tmp_path / "run")


def test_gradient_checkpointing_and_bfloat16_train(world: Path, tmp_path: Path) -> None:
    settings = ["training.gradient_checkpointing=true", "training.precision=bfloat16", "training.max_steps=2"]
    result = train(dehvf_kit.load_recipe(world / "tiny.yaml", settings), tmp_path / "run")
    assert result.steps == 2
    assert all(
        parameter.dtype == torch.float32 for parameter in dehvf_kit.load(result.adapter).named_trainable_parameters().values()
    )


def test_a_bounded_run_ends_in_time_with_its_rate_decayed_and_resumes_with_what_is_left(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    budget = TimeBudget(minutes=1)
    assert [budget.rate(step, 2, 10) for step in (0, 1, 2, 10)] == [0, 0.5, 1, 0], "in time, transformers' own cosine"
    budget.before = 33.6  # 56% of the time, 45% of the decay
    assert budget.rate(0, 2, 10) == pytest.approx((1 + math.cos(math.pi * 0.45)) / 2)
    recipe = dehvf_kit.load_recipe(world / "tiny.yaml", ["training.max_minutes=1", "training.save_steps=1"])
    clock = iter(range(0, 10_000, 5))
    monkeypatch.setattr("dehvf_kit.training.callbacks.time", SimpleNamespace(monotonic=lambda: next(clock)))
    result = train(recipe, tmp_path / "run")
    rows = [row for row in result.log if "learning_rate" in row]
    assert 1 < result.steps < 24 and rows[-1]["step"] == result.steps and rows[-1][SPENT] >= 60
    assert (tmp_path / "run/adapter").is_dir(), "it is a finished run"
    shutil.copytree(tmp_path / "run", tmp_path / "cut", ignore=shutil.ignore_patterns("adapter", f"checkpoint-{result.steps}"))
    resumed = train(recipe, tmp_path / "cut", resume=True)
    spent = [row[SPENT] for row in resumed.log if SPENT in row]
    assert spent == sorted(spent) and spent[0] == next(row[SPENT] for row in result.log if SPENT in row), "its log goes on"
    assert result.steps <= resumed.steps <= result.steps + 1, "what is left of its minute, and not another minute"
    settings = ["training.max_minutes=1", "training.save_steps=1", "training.logging_steps=1000"]
    silent = dehvf_kit.load_recipe(world / "tiny.yaml", settings)
    whole = train(silent, tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "some", ignore=shutil.ignore_patterns("adapter", f"checkpoint-{whole.steps}"))
    some = train(silent, tmp_path / "some", resume=True)
    assert some.steps <= whole.steps + 1, "the time since the last line of the log counts"
    (tmp_path / "some/adapter").rename(tmp_path / "adapter")
    assert train(silent, tmp_path / "some", resume=True).steps == some.steps, "no minute is left"
    with pytest.raises(DehvfError, match="clocks differ"):
        training_arguments(recipe.training, tmp_path, samples=24, processes=2)


def test_a_record_from_before_a_field_existed_resumes(world: Path, tmp_path: Path) -> None:
    recipe = dehvf_kit.load_recipe(world / "tiny.yaml")
    record = record_of(recipe, [])
    given = json.loads(recipe.training.model_dump_json(exclude_unset=True))
    write_record(tmp_path, {**record, "recipe": {**record["recipe"], "training": given}})
    assert compare_records(tmp_path, record) == []
    other = record_of(dehvf_kit.load_recipe(world / "tiny.yaml", ["training.betas=[0.9, 0.99]"]), [])
    with pytest.raises(TrainingError, match="training.betas"):
        compare_records(tmp_path, other)
