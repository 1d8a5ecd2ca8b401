"""What makes a comparison fair: one ground for all recipes, and one rule of tuning."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from dehvf_kit.data.samples import Sample
from dehvf_kit.errors import DehvfError, shown
from dehvf_kit.evaluation.compare.job import HoldOut, flat
from dehvf_kit.recipe.recipe import Recipe

GROUND = ("data", "vision", "decoder", "generation")
OWN = ("apply_post_norm",)  # how a method reads the encoder's layers is its own
EXTENSIONS = 2
"""How often a grid grows beyond its edge."""
BUDGET = ("epochs", "max_steps", "batch_size", "gradient_accumulation", "max_length", "precision", "group_by_length")


@dataclass(frozen=True)
class Tuning:
    """How every method's learning rate and strength are found: the same grids and share of the steps, one seed, no test question.

    factors multiply the recipe's own base learning rate; rates, where given, replace them for all recipes. scales, where
    given, multiply how strongly the method acts on the decoder (`ComponentConfig.strength`), at the best learning rate.
    """

    factors: tuple[float, ...] = (0.25, 0.5, 1.0, 2.0, 4.0)
    rates: tuple[float, ...] = ()
    scales: tuple[float, ...] = ()
    fraction: float = 0.2
    hold_out: HoldOut = HoldOut(0.1, 500)

    def grid(self, own: float) -> list[float]:
        """The base learning rates to try for a recipe whose own is `own`, ascending."""
        return sorted(self.rates or (float(f"{own * factor:.4g}") for factor in self.factors))

    def words(self) -> str:
        """The rule as the table prints it."""
        shares = ", ".join(f"{value:g}" for value in self.rates or self.factors)
        grid = f"base learning rates {shares}" if self.rates else f"its recipe's base learning rate times {shares}"
        if self.scales:
            grid += "; then, at the best of them, the scale of what it adds to the decoder times " + ", ".join(
                f"{value:g}" for value in self.scales
            )
        return (
            f"Every method is tuned alike: {grid}, each trained for {self.fraction:.0%} of the steps with seed 0 and scored on "
            f"questions about {self.hold_out.share:.0%} of the training pictures (at most {self.hold_out.questions} "
            "questions), which those runs do not train on. Where the best is the lowest or highest of a grid, the grid goes on "
            f"beyond it by the same factor, at most {EXTENSIONS} times. The best is used for all seeds; of equals the one "
            "nearest to the middle of the grid. The test split has no part in it."
        )


@dataclass
class Search:
    """A value that is searched for on a grid: what was tried, (value, score) in ascending values, and the best.

    Without any trial `best` is the recipe's own value.
    """

    own: float
    tried: list[tuple[float, float]] = field(default_factory=list)

    def add(self, value: float, score: float) -> None:
        self.tried = sorted([*self.tried, (value, score)])

    @property
    def best(self) -> float:
        """The value with the highest score; of equals the one nearest to the middle of the grid."""
        if not self.tried:
            return self.own
        middle = (len(self.tried) - 1) / 2
        place = max(range(len(self.tried)), key=lambda at: (self.tried[at][1], -abs(at - middle)))
        return self.tried[place][0]

    @property
    def at_the_edge(self) -> bool:
        """Whether the best of three values or more is the lowest or highest, so that a wider grid may do better."""
        return len(self.tried) > 2 and self.best in (self.tried[0][0], self.tried[-1][0])

    def beyond(self) -> list[float]:
        """What to try next: one step of the grid beyond the best where that is at the edge, else nothing."""
        if not self.at_the_edge:
            return []
        values = [value for value, _ in self.tried]
        edge, inner = values[:2] if self.best == values[0] else (values[-1], values[-2])
        return [float(f"{edge * edge / inner:.4g}")]


def require_one_ground(recipes: Sequence[Recipe], allowed: Sequence[str] = ()) -> None:
    """Refuse recipes that do not share data, prompt, picture, encoder, decoder, answers and step budget.

    allowed: fields (`training.epochs`) or sections (`vision`) that may differ.
    Raises: DehvfError naming every field of every recipe that differs from the first recipe's.
    """
    faults = []
    first, *others = recipes
    ground = _ground(first)
    for name in allowed:
        if not any(_within(key, name) for key in ground):
            faults.append(f"--allow {name}: no such field; fields: {', '.join(sorted(ground))}")
    for other in others:
        theirs = _ground(other)
        for key in {**ground, **theirs}:
            if ground.get(key) != theirs.get(key) and not any(_within(key, name) for name in allowed):
                faults.append(
                    f"{other.source}: {key} is {shown(theirs.get(key))}, in {first.source} {shown(ground.get(key))}"
                )
    if faults:
        faults.append(
            "compared recipes share data, prompt, picture, decoder and steps: set the field for all of them by KEY=VALUE, "
            "or let it differ with --allow FIELD"
        )
        raise DehvfError("\n".join(faults))


def _ground(recipe: Recipe) -> dict[str, object]:
    whole = recipe.resolved()
    ground = {section: whole[section] for section in GROUND}
    ground["training"] = {name: whole["training"][name] for name in BUDGET}
    return {key: value for key, value in flat(ground) if key.rpartition(".")[2] not in OWN}


def _within(key: str, name: str) -> bool:
    return key == name or key.startswith(f"{name}.")


def hold_out(samples: Sequence[Sample], part: HoldOut) -> tuple[list[Sample], list[Sample]]:
    """(rest, validation part): whole pictures are held out, drawn with a fixed seed, so that no picture is in both.

    Samples without a picture stand for themselves. Raises: DehvfError where nothing would be left on one side.
    """
    groups: dict[object, list[Sample]] = {}
    for sample in samples:
        groups.setdefault(sample.image or sample.id, []).append(sample)
    keys = list(groups)
    random.Random(0).shuffle(keys)
    held: set[object] = set()
    count = 0
    for key in keys[: round(len(keys) * part.share)]:
        if count + len(groups[key]) > part.questions:
            break
        held.add(key)
        count += len(groups[key])
    rest = [sample for sample in samples if (sample.image or sample.id) not in held]
    kept = [sample for sample in samples if (sample.image or sample.id) in held]
    if not rest or not kept:
        raise DehvfError(
            f"a validation part of {part.share:g} of the pictures of {len(samples)} training samples (at most "
            f"{part.questions} questions) leaves {len(kept)} to score and {len(rest)} to train on; change --validation"
        )
    return rest, kept
