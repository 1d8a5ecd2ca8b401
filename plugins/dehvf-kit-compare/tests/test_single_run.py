"""One run for real: trained, scored and measured on tiny models, in this process and in one of its own."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from dehvf_kit_compare.job import HoldOut, Job, write_job
from dehvf_kit_compare.measure import PeakMemory, StepClock
from dehvf_kit_compare.single_run import run_job
from typer.testing import CliRunner

import dehvf_kit
from dehvf_kit.cli.main import app
from dehvf_kit.data.encoding import EncodedSamples
from dehvf_kit.errors import DehvfError
from dehvf_kit.model.features import FeatureStore
from dehvf_kit.recipe.recipe import load_recipe
from dehvf_kit.training.run import silent


def job_of(file: Path, *overrides: str, **fields: object) -> Job:
    recipe = load_recipe(file, overrides)
    return Job(**{"name": recipe.name, "label": "seed0", "recipe": recipe.resolved(), **fields})


def run(job: Job, output: Path) -> dict:
    folder = job.working_folder(output)
    folder.mkdir(parents=True)
    finished = run_job(write_job(job, folder))
    assert finished == job.folder(output) and not folder.exists()
    return json.loads((finished / "result.json").read_text())


@pytest.mark.nightly
def test_a_run_leaves_result_answers_and_adapter(recipes: list[Path], tmp_path: Path) -> None:
    result = run(job_of(recipes[0], "training.epochs=50", "graph.injector.dropout=0"), tmp_path)
    folder = tmp_path / "runs" / "dehvf" / "seed0"
    answers = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    assert len(answers) == 8 and result["scored_on"] == "test"
    assert result["scores"]["all"]["accuracy"] == sum(row["right"] for row in answers) / 8 == 1.0
    assert (result["steps"], result["batch"], result["training_questions"]) == (300, 4, 24)
    model = dehvf_kit.load(folder / "adapter")
    assert result["trained_parameters"] == model.num_trainable_parameters()
    assert result["seconds_per_step"] > 0 and result["memory"]["peak"] >= result["memory"]["rest"] > 0
    assert not (folder / "checkpoints").exists()


def test_a_tuning_run_learns_and_is_scored_on_different_training_pictures(recipes: list[Path], tmp_path: Path) -> None:
    result = run(job_of(recipes[1], hold_out=HoldOut(0.25, 500), label="rate0.2"), tmp_path)
    assert (result["scored_on"], result["training_questions"]) == ("validation", 18)
    assert result["scores"]["all"]["questions"] == 6
    answers = (tmp_path / "runs" / "mean" / "rate0.2" / "predictions.jsonl").read_text()
    assert "/train" in answers and "/test" not in answers


@pytest.mark.nightly
def test_equal_jobs_give_equal_adapters_and_another_seed_another(recipes: list[Path], tmp_path: Path) -> None:
    from safetensors.torch import load_file

    weights = []
    for place, seed in enumerate((0, 0, 1)):
        run(job_of(recipes[0], f"training.seed={seed}", "training.max_steps=4"), tmp_path / str(place))
        weights.append(load_file(tmp_path / str(place) / "runs/dehvf/seed0/adapter/adapter_model.safetensors"))
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert not all(torch.equal(weights[0][name], weights[2][name]) for name in weights[0])


@pytest.mark.nightly
def test_a_vision_adapter_and_no_pictures_run_too(recipes: list[Path], world: Path, tmp_path: Path) -> None:  # noqa: F811
    adapted = job_of(recipes[0], "graph.vision_adapter.type=parallel", "training.cache_features=false", "training.max_steps=2")
    assert run(adapted, tmp_path)["flops"]["encoder"] > 0
    none = [f"graph.{node}=null" for node in ("grouper", "layer_query", "projector", "fuser")]
    blind = run(replace(job_of(recipes[0], *none, "training.max_steps=2"), name="blind"), tmp_path)
    assert blind["flops"]["encoder"] == 0 and blind["flops"]["forward"] > 0


def test_a_job_elsewhere_is_refused(recipes: list[Path], tmp_path: Path) -> None:
    with pytest.raises(DehvfError, match="ends in .working"):
        run_job(write_job(job_of(recipes[0]), tmp_path))


@pytest.mark.nightly
def test_the_command_trains_in_a_process_of_its_own(recipes: list[Path], tmp_path: Path) -> None:
    """The one real process of the suite; what it leaves equals what this process makes of the same job."""
    result = CliRunner().invoke(app, ["compare", str(recipes[0]), "--seeds", "1", "--threads", "1", "--output", str(tmp_path)])
    assert result.exit_code == 0, result.output
    there = json.loads((tmp_path / "runs" / "dehvf" / "seed0" / "result.json").read_text())
    here = run(job_of(recipes[0]), tmp_path / "here")
    same = ("scores", "flops", "steps", "trained_parameters", "training_questions")
    assert {name: there[name] for name in same} == {name: here[name] for name in same}
    assert "adapter" in [path.name for path in (tmp_path / "runs" / "dehvf" / "seed0").iterdir()]


def test_counted_flops_are_the_reports(recipes: list[Path]) -> None:
    """Encoder and forward as the formulas of `analysis.flops` have them; backward adds at least its frozen half."""
    from dehvf_kit.costs.flops import batch_flops, count_flops, decoder_flops, vision_flops

    recipe = load_recipe(recipes[0], ["graph.injector.form=factored"])
    model = dehvf_kit.build(recipe)
    samples = list(recipe.data.samples("train"))[:4]
    features = FeatureStore(model)
    features.fill(samples)
    encoded = EncodedSamples(samples, model.processor, recipe.data.prompt, 64, True, features)
    found = batch_flops(model, encoded, 4)
    length = len(encoded[0]["input_ids"])
    report = count_flops(model.graph, model.decoder, model.towers, lengths=(length,))
    kept = 2  # answer and end token: the positions whose logits the loss needs
    head = 2 * decoder_flops(model.decoder).head * (length - kept)
    once = report.components["layer_query"].per_step
    assert found.forward == pytest.approx(report.samples[0].memory - head - once * 3 / 4, abs=1)
    assert found.encoder == vision_flops(model.towers["vision"])
    assert 2 * 4 * found.forward - 4 * head < found.train_step < 3 * 4 * found.forward
    assert asdict(found) == asdict(batch_flops(model, encoded, 4))
    assert all(parameter.grad is None for parameter in model.parameters()) and not model.training


def test_memory_that_is_held_is_seen() -> None:
    """64 MB in small pieces, twice: what the first round freed must not hide the second. Within a quarter, for what else the
    process does meanwhile."""
    for _ in range(2):
        with PeakMemory() as memory:
            blocks = [torch.ones(25_000) for _ in range(640)]
            time.sleep(0.1)
        del blocks
        assert memory.peak - memory.rest == pytest.approx(64_000_000, rel=0.25)


def test_the_clock_takes_the_median_of_steps() -> None:
    clock = StepClock(silent)
    assert clock.seconds_per_step is None
    clock.ends = [0.0, 9.0, 10.0, 12.0, 13.0, 14.0, 20.0]
    assert clock.seconds_per_step == 1.0  # of 1, 1 and 6: the first three gaps are left out
    clock("reading pictures", 1, 2)
    assert len(clock.ends) == 7
