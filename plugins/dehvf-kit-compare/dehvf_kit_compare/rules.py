"""What makes a comparison fair: identical data and budget for all recipes, and the same tuning protocol."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from dehvf_kit.data.held_out import image_groups
from dehvf_kit.data.samples import Sample
from dehvf_kit.errors import DehvfError, shown
from dehvf_kit.recipe.recipe import Recipe
from dehvf_kit_compare.job import HoldOut, flat

SHARED = ("data", "vision", "decoder", "generation")
OWN = ("apply_post_norm",)  # how a method reads the encoder's layers may differ
EXTENSIONS = 2
"""How often a grid is extended beyond its edge."""
BUDGET = ("epochs", "max_steps", "batch_size", "gradient_accumulation", "max_length", "precision", "group_by_length")


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """The tuning protocol of every method: the same grids and share of the steps, one seed, no test question.

    Attributes:
        factors: multiply the recipe's own base learning rate.
        rates: base learning rates that replace these products for all recipes, where given.
        strengths: factors, where given, on how strongly the method acts on the decoder (`ComponentConfig.strength`), tried
            at the best learning rate.
        fraction: share of the steps that a tuning run makes.
        hold_out: the validation part of the training split.
    """

    factors: tuple[float, ...] = (0.25, 0.5, 1.0, 2.0, 4.0)
    rates: tuple[float, ...] = ()
    strengths: tuple[float, ...] = ()
    fraction: float = 0.2
    hold_out: HoldOut = HoldOut(0.1, 500)

    def grid(self, own: float) -> list[float]:
        """The base learning rates to try for a recipe whose own is `own`, ascending."""
        return sorted(self.rates or (float(f"{own * factor:.4g}") for factor in self.factors))

    def words(self) -> str:
        """The protocol as the table prints it."""
        shares = ", ".join(f"{value:g}" for value in self.rates or self.factors)
        grid = f"base learning rates {shares}" if self.rates else f"its recipe's base learning rate times {shares}"
        if self.strengths:
            factors = ", ".join(f"{value:g}" for value in self.strengths)
            grid += f"; then, at the best of them, the strength with which it acts on the decoder times {factors}"
        share, questions = f"{self.hold_out.share:.0%}", self.hold_out.questions
        return (
            f"Every method has the same tuning protocol: {grid}, each trained for {self.fraction:.0%} of the steps with seed "
            f"0 and scored on questions about {share} of the training images (at most {questions} questions), which those "
            "runs do not train on. Where the best is the lowest or highest of a grid, the grid is extended by the same "
            f"factor, at most {EXTENSIONS} times. The best is used for all seeds; among equals the one nearest to the middle "
            "of the grid. The test split is not used."
        )


@dataclass
class Search:
    """A grid search for one value: what was tried, (value, score) in ascending values, and the best.

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
        """What to try next: the grid extended by one step where the best is at its edge, else nothing."""
        if not self.at_the_edge:
            return []
        values = [value for value, _ in self.tried]
        edge, inner = values[:2] if self.best == values[0] else (values[-1], values[-2])
        return [float(f"{edge * edge / inner:.4g}")]


def require_identical_budget(recipes: Sequence[Recipe], allowed: Sequence[str] = ()) -> None:
    """Refuse recipes that do not share data, prompt, images, encoder, decoder, generation and step budget.

    Args:
        recipes: the first is the one that the others are compared with.
        allowed: fields (`training.epochs`) or sections (`vision`) that may differ.

    Raises:
        DehvfError: naming every field of every recipe that differs from the first recipe's.
    """
    faults = []
    first, *others = recipes
    shared = _shared(first)
    for name in allowed:
        if not any(_within(key, name) for key in shared):
            faults.append(f"--allow {name}: no such field; fields: {', '.join(sorted(shared))}")
    for other in others:
        theirs = _shared(other)
        for key in {**shared, **theirs}:
            if shared.get(key) != theirs.get(key) and not any(_within(key, name) for name in allowed):
                faults.append(f"{other.source}: {key} is {shown(theirs.get(key))}, in {first.source} {shown(shared.get(key))}")
    if faults:
        faults.append(
            "compared recipes have identical data, prompt, images, decoder and steps: set the field for all of them by KEY=VALUE, "
            "or let it differ with --allow FIELD"
        )
        raise DehvfError("\n".join(faults))


def _shared(recipe: Recipe) -> dict[str, object]:
    whole = recipe.resolved()
    shared = {section: whole[section] for section in SHARED}
    shared["training"] = {name: whole["training"][name] for name in BUDGET}
    return {key: value for key, value in flat(shared) if key.rpartition(".")[2] not in OWN}


def _within(key: str, name: str) -> bool:
    return key == name or key.startswith(f"{name}.")


def hold_out(samples: Sequence[Sample], part: HoldOut) -> tuple[list[Sample], list[Sample]]:
    """(rest, validation part): whole images are held out, drawn with a fixed seed, so that no image is in both.

    Samples that share an image stay together; one without an image is a group of its own.
    Raises: DehvfError where nothing would be left on one side.
    """
    names = image_groups(samples, lambda sample: f"text {sample.id}")
    groups: dict[str, list[Sample]] = {}
    for sample, name in zip(samples, names, strict=True):
        groups.setdefault(name, []).append(sample)
    keys = list(groups)
    random.Random(0).shuffle(keys)
    held: set[str] = set()
    count = 0
    for key in keys[: round(len(keys) * part.share)]:
        if count + len(groups[key]) > part.questions:
            break
        held.add(key)
        count += len(groups[key])
    rest = [sample for sample, name in zip(samples, names, strict=True) if name not in held]
    kept = [sample for sample, name in zip(samples, names, strict=True) if name in held]
    if not rest or not kept:
        raise DehvfError(
            f"a validation part of {part.share:g} of the images of {len(samples)} training samples (at most "
            f"{part.questions} questions) leaves {len(kept)} to score and {len(rest)} to train on; change --validation"
        )
    return rest, kept
