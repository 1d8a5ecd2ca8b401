"""The benchmarks that DEHVF is published on: ScienceQA and COCO captions, as data sets with their own prompts and scores."""

from __future__ import annotations

from dehvf_kit.api import Register, RegisterCommand, hookimpl

__version__ = "0.1.0"


@hookimpl
def register_components(register: Register) -> None:
    register("dehvf_kit_benchmarks.scienceqa:ScienceQaDataConfig", role="data", type="scienceqa")
    register("dehvf_kit_benchmarks.choices:ChoicesDataConfig", role="data", type="choices")
    register("dehvf_kit_benchmarks.coco_captions:CocoCaptionsDataConfig", role="data", type="coco_captions")


@hookimpl
def register_commands(register: RegisterCommand) -> None:
    register("score", "dehvf_kit_benchmarks.score_command:app", "Score predictions of any model on a benchmark.")
