"""Seeds, sizes and counts that no machine can hold are refused by `check`, with the reason."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli.commands import Command

from dehvf_kit.api.config import REASONS
from dehvf_kit.recipe.sections import GenerationConfig, TrainingConfig

BOUNDS = {
    "training.seed=4294967296": "4,294,967,295 or less: a seed has 32 bits",
    "training.batch_size=1000000000": "1,048,576 or less: no machine holds more",
    "training.max_steps=99999999999": "2,147,483,647 or less: no run gets further",
    "training.epochs=1e300": "wants 1,000,000 or less: no run makes more passes",
    "training.max_length=10000000": "no machine holds more",
    "generation.num_beams=65": "given 65; wants 64 or less: each beam is a row with a cache of its own",
    "training.num_workers=100000": "1,024 or less: each is a process, and no machine has more cores",
    "generation.max_new_tokens=10000000000": "no machine holds more",
    "graph.fuser.hidden_size=100000000": "no machine holds more",
    "graph.fuser.num_blocks=1000": "512 or less",
    "graph.position.num_slots=1000000000000": "no machine holds more",
    "graph.layer_query.query_size=100000000": "no machine holds more",
    "graph.projector.bottleneck_size=100000000": "no machine holds more",
}


@pytest.mark.parametrize("override", BOUNDS)
def test_what_no_machine_holds_is_refused(override: str, world: Path, command: Command) -> None:
    ended = command("check", world / "tiny.yaml", override)
    assert ended.code == 1 and BOUNDS[override] in ended.err, ended.err


def test_sizes_that_are_sound_one_by_one_are_counted_together(world: Path, command: Command) -> None:
    sizes = ["graph.fuser.hidden_size=1048576", "graph.layer_query.query_size=1048576"]
    ended = command("check", world / "tiny.yaml", *sizes)
    assert ended.code == 1 and "trained parameters, more than any machine holds" in ended.err, ended.err
    assert command("train", world / "tiny.yaml", *sizes, "--output", world / "none").code == 1


@pytest.mark.parametrize("override", ["training.seed=4294967295", "training.max_steps=2147483647"])
def test_the_largest_are_accepted(override: str, world: Path, command: Command) -> None:
    assert command("check", world / "tiny.yaml", override).code == 0


def test_every_limit_of_a_section_has_its_reason() -> None:
    """A bound of a share (1 or less) needs none."""
    for section in (TrainingConfig, GenerationConfig):
        for name, field in section.model_fields.items():
            limits = [one.le for one in field.metadata if getattr(one, "le", None) not in (None, 1)]
            assert all(limit in REASONS for limit in limits), f"{section.__name__}.{name}"


COUNTS = {
    "--limit": ["eval", "ADAPTER"],
    "--new-tokens": ["verify", "ADAPTER"],
    "--max-new-tokens": ["generate", "IMAGE", "what ?"],
    "--peek": ["data", "RECIPE"],
    "--seeds": ["compare", "RECIPE"],
    "--jobs": ["compare", "RECIPE"],
    "--maps": ["report", "ADAPTER"],
    "--gpus": ["plan", "RECIPE"],
    "--gpu-memory": ["plan", "RECIPE"],
    "--minutes": ["demo"],
}


@pytest.mark.parametrize("value", ["99999999999", "1e300", "nan", "inf"])
@pytest.mark.parametrize("option", COUNTS)
def test_counts_of_the_command_line_are_bounded(option: str, value: str, command: Command) -> None:
    """Before anything is read: the files that are named are not there."""
    ended = command(*COUNTS[option], option, value)
    if ended.code == 2:
        assert option in ended.err and (
            "Input should be" in ended.err or "is not a valid" in ended.err
        )  # typer 0.16 says the latter
    else:
        assert ended.code == 1 and f"{option}: given " in ended.err and "2,147,483,647 or less: no run gets further" in ended.err
