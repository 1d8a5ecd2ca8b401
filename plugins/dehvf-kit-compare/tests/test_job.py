"""Jobs on disk: what counts as finished, what is another run, and files that are whole or not there."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from dehvf_kit_compare.job import HoldOut, Job, finished_result, read_job, write_job, write_json

import dehvf_kit
from dehvf_kit.errors import DehvfError
from dehvf_kit.utils.atomic import write_output
from dehvf_kit.utils.shipped import HOME

JOB = Job(
    name="mine",
    label="seed0",
    recipe={"name": "mine", "training": {"seed": 0, "betas": [0.9, 0.95]}},
    hold_out=HoldOut(0.1, 500),
    threads=2,
    plugins=("p.py",),
)


def finished(job: Job, output: Path) -> Path:
    folder = job.folder(output)
    folder.mkdir(parents=True)
    write_job(job, folder)
    write_json(folder / "result.json", {"seed": 0})
    return folder


def test_a_job_comes_back(tmp_path: Path) -> None:
    assert read_job(write_job(JOB, tmp_path)) == JOB
    bare = replace(JOB, hold_out=None, plugins=())
    assert read_job(write_job(bare, tmp_path)) == bare


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"name": "a", "hold_out": {"x": 1}, "plugins": []}', "\x00"])
def test_what_is_no_job_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "job.json").write_text(text)
    with pytest.raises(DehvfError, match="job.json"):
        read_job(tmp_path / "job.json")


def test_a_run_under_its_working_name_is_not_finished(tmp_path: Path) -> None:
    folder = JOB.working_folder(tmp_path)
    folder.mkdir(parents=True)
    write_job(JOB, folder)
    write_json(folder / "result.json", {})
    assert finished_result(JOB, tmp_path) is None


def test_a_finished_run_is_taken_over_whatever_it_ran_on(tmp_path: Path) -> None:
    finished(JOB, tmp_path)
    described = {**JOB.recipe, "description": "told anew"}
    again = replace(JOB, threads=8, plugins=(), recipe=described)
    assert finished_result(again, tmp_path) == {"seed": 0}


def test_a_run_of_an_earlier_version_that_lacked_a_field_is_taken_over(tmp_path: Path) -> None:
    recipe = dehvf_kit.load_recipe(HOME / "recipes/llama7b_clip.yaml").resolved()
    earlier = {**recipe, "training": {name: value for name, value in recipe["training"].items() if name != "compile"}}
    finished(replace(JOB, recipe=earlier), tmp_path)
    assert finished_result(replace(JOB, recipe=recipe), tmp_path) == {"seed": 0}
    changed = {**recipe, "training": {**recipe["training"], "compile": True}}
    with pytest.raises(DehvfError, match="training.compile: False, now True"):
        finished_result(replace(JOB, recipe=changed), tmp_path)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"recipe": {"name": "mine", "training": {"seed": 0, "betas": [0.9]}}}, "training.betas: [0.9, 0.95], now [0.9]"),
        ({"hold_out": None}, "hold_out.share: 0.1, now None"),
    ],
)  # fmt: skip
def test_another_run_in_its_place_is_refused(tmp_path: Path, change: dict, says: str) -> None:
    finished(JOB, tmp_path)
    with pytest.raises(DehvfError, match="holds a run with other settings") as error:
        finished_result(replace(JOB, **change), tmp_path)
    assert says in str(error.value)


def test_a_finished_run_without_its_result_is_named(tmp_path: Path) -> None:
    (finished(JOB, tmp_path) / "result.json").unlink()
    with pytest.raises(DehvfError, match="result.json: cannot be read"):
        finished_result(JOB, tmp_path)


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    file = write_json(tmp_path / "a.json", {"a": 1})

    def broken(place: Path) -> None:
        place.write_text("half")
        raise OSError("no room")

    with pytest.raises(DehvfError, match="a.json: cannot be written: no room"):
        write_output(file, broken)
    assert json.loads(file.read_text()) == {"a": 1}
    assert list(tmp_path.iterdir()) == [file]
    with pytest.raises(DehvfError, match="cannot be written"):
        write_json(tmp_path / "none" / "a.json", {})
