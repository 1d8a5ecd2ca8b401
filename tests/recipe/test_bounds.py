"""Seeds, sizes and counts that no machine can hold are refused by `check`, with the reason."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli.commands import Command

BOUNDS = {
    "training.seed=4294967296": "4,294,967,295 or less: a seed has 32 bits",
    "training.batch_size=1000000000": "1,048,576 or less: no machine holds more",
    "training.max_steps=99999999999": "2,147,483,647 or less: no run gets further",
    "training.epochs=1e300": "wants 1,000,000 or less",
    "training.max_length=10000000": "no machine holds more",
    "training.num_workers=100000": "1,024 or less",
    "generation.max_new_tokens=10000000000": "no machine holds more",
    "generation.num_beams=10000000000": "no machine holds more",
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
