"""Batch parity: the same questions asked alone and together, with and without the key/value cache.

Padding, a neighbour's image or a cache must not change what a model says. In exact arithmetic the logits would be equal; in
floating point the order of sums differs, so that small differences remain, and an answer may change where two words score
nearly alike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from dehvf_kit.data.samples import Sample
from dehvf_kit.errors import DataError
from dehvf_kit.evaluation.answers import asked, finite_logits, until_end
from dehvf_kit.model.features import FeatureStore
from dehvf_kit.model.model import DehvfModel

EXTRA_PADDING = 3
"""Columns of padding that every row of a batch has beyond those its neighbours force on it."""


@dataclass(frozen=True)
class Said:
    """One answer: its new tokens, and the logits [token, vocabulary] that each was chosen by."""

    tokens: list[int]
    logits: Tensor


@dataclass(frozen=True)
class Variant:
    """One way of asking: how many questions at once, and whether earlier tokens' keys and values are kept."""

    batch: int
    cached: bool

    @property
    def name(self) -> str:
        return f"batch {self.batch}, {'cached' if self.cached else 'uncached'}"


@dataclass(frozen=True)
class Difference:
    """A variant beside the questions asked alone without a cache.

    largest: largest absolute difference of a logit, over the tokens up to the first at which the answers part; at: the
    id of its question; changed: questions with other tokens in their answer.
    """

    variant: str
    largest: float
    at: str
    changed: tuple[dict[str, str], ...]


@dataclass(frozen=True)
class Parity:
    """What `batch_parity` found. logit_range: largest absolute logit seen, to read the differences by."""

    questions: int
    batch: int
    new_tokens: int
    dtype: str
    device: str
    logit_range: float
    differences: tuple[Difference, ...]

    @property
    def largest(self) -> float:
        """The largest logit difference of all variants."""
        return max(one.largest for one in self.differences)

    @property
    def changed(self) -> list[dict[str, str]]:
        """Every changed answer, with its variant."""
        return [{"variant": one.variant, **row} for one in self.differences for row in one.changed]

    def facts(self) -> dict[str, Any]:
        """As plain data."""
        return {**asdict(self), "largest": self.largest}


def batch_parity(
    model: DehvfModel,
    samples: Sequence[Sample],
    batch: int = 8,
    new_tokens: int = 8,
    features: FeatureStore | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Parity:
    """Ask questions one at a time without a cache, then cached, then `batch` at a time, both ways; greedy answers.

    Batches are padded on the left, every row of them. Raises: DataError for fewer than two questions, or scores that
    are not finite.
    """
    if len(samples) < 2 or batch < 2:
        raise DataError(f"batch parity needs two questions at least and a batch of two; {len(samples)} and {batch} given")
    batch = min(batch, len(samples))
    variants = [Variant(1, False), Variant(1, True), Variant(batch, False), Variant(batch, True)]
    said: list[list[Said]] = []
    for variant in variants:
        found: list[Said] = []
        for start in range(0, len(samples), variant.batch):
            found += _say(model, samples[start : start + variant.batch], variant, new_tokens, features)
            if progress is not None:
                progress(len(said) * len(samples) + len(found), len(variants) * len(samples))
        said.append(found)
    alone, *others = said
    weight = next(model.decoder.parameters())
    return Parity(
        questions=len(samples),
        batch=batch,
        new_tokens=new_tokens,
        dtype=str(weight.dtype).removeprefix("torch."),
        device=weight.device.type,
        logit_range=max(one.logits.abs().max().item() for one in alone),
        differences=tuple(
            _difference(model, variant, samples, alone, found) for variant, found in zip(variants[1:], others, strict=True)
        ),
    )


def _say(
    model: DehvfModel, batch: Sequence[Sample], variant: Variant, new_tokens: int, features: FeatureStore | None
) -> list[Said]:
    room = new_tokens + EXTRA_PADDING
    inputs, _ = asked(model, batch, features, new_tokens=room)
    length = inputs["input_ids"].shape[1]
    if variant.batch > 1:
        inputs, _ = asked(model, batch, features, length + EXTRA_PADDING, room)
        length += EXTRA_PADDING
    with finite_logits(model, batch):
        output = model.generate(
            **inputs,
            max_new_tokens=new_tokens,
            num_beams=1,
            do_sample=False,
            use_cache=variant.cached,
            output_logits=True,
            return_dict_in_generate=True,
        )
    logits = torch.stack(output.logits, dim=1).float().cpu()
    tokens = output.sequences[:, length:].cpu()
    rows = [until_end(model, row) for row in tokens.tolist()]
    return [Said(row, scores[: len(row)]) for row, scores in zip(rows, logits, strict=True)]


def _difference(
    model: DehvfModel, variant: Variant, samples: Sequence[Sample], alone: Sequence[Said], found: Sequence[Said]
) -> Difference:
    largest, at, changed = 0.0, samples[0].id, []
    for sample, one, other in zip(samples, alone, found, strict=True):
        pairs = zip(one.tokens, other.tokens, strict=False)
        same = next((place for place, (a, b) in enumerate(pairs) if a != b), None)
        shared = min(len(one.tokens), len(other.tokens)) if same is None else same + 1
        difference = (one.logits[:shared] - other.logits[:shared]).abs().max().item()
        if not difference <= largest:  # also where it is not a number
            largest, at = difference, sample.id
        if one.tokens != other.tokens:
            before, now = model.processor.batch_decode([one.tokens, other.tokens], skip_special_tokens=True)
            changed.append({"id": sample.id, "alone": before.strip(), "now": now.strip()})
    return Difference(variant.name, largest, at, tuple(changed))
