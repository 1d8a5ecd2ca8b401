"""What the fuser's weights are worth: accuracy with the weights replaced by their means, by one layer, by another image's.

A trained adapter answers the same questions again and again, each time with one part of the choice taken away. Where accuracy does
not fall, that part carries nothing for these questions.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import sqrt
from typing import Any

import torch
from torch import Tensor, nn

from dehvf_kit.api.shapes import GroupLayers
from dehvf_kit.components.base import Fuser
from dehvf_kit.data.metrics.exact_match import Prediction, exact_match
from dehvf_kit.data.metrics.intervals import share
from dehvf_kit.data.samples import Sample, each_image
from dehvf_kit.errors import DataError, DehvfError
from dehvf_kit.evaluation.answers import BATCH, answer, answer_tokens, asked_rows, batches
from dehvf_kit.model.model import DehvfModel
from dehvf_kit_report.fuser_weights import EncodedImages, FeatureSource, fuser_of, graph_outputs

REPLACEMENTS = {
    "own": "as trained",
    "images": "their mean over the images",
    "layers": "their mean over the decoder layers of each group",
    "kv": "their mean over keys and values",
    "uniform": "the plain mean of each group",
    "largest": "one for the largest, zero for the others",
    "other": "another image's",
}
"""What takes the weights' place: each takes one part of the choice away."""
ALL = "all"
Z_975 = 1.959964
Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class Worth:
    """Accuracy of one kind of question with one replacement, with its 95% Wilson interval.

    lost: accuracy as trained less this one, over the same questions; half: half of its 95% interval.
    """

    accuracy: float
    low: float
    high: float
    questions: int
    lost: float
    half: float


@dataclass(frozen=True, kw_only=True)
class WeightWorth:
    """scores[replacement][kind of question, `all` first]; spread: standard deviations of the weights as trained.

    not_asked: questions without exactly one image, which cannot be given one image's weights.
    """

    images: int
    questions: int
    not_asked: int
    scores: Mapping[str, Mapping[str, Worth]]
    spread: Mapping[str, float]
    largest: float

    def as_dict(self) -> dict[str, Any]:
        """Every figure as plain data."""
        return asdict(self)


def weight_worth(
    model: DehvfModel,
    samples: Sequence[Sample],
    features: FeatureSource | None = None,
    batch_size: int | None = None,
    progress: Progress = lambda *_: None,
) -> WeightWorth:
    """Ask a trained model the same questions with its fuser's weights replaced.

    Cost: each question is answered once for every replacement. An answer is right as the recipe's data set counts it.

    Args:
        model: a trained model with a fuser.
        samples: the questions; those without exactly one image are not asked, and are counted.
        features: a filled store; without one the encoder runs for every answer.
        batch_size: questions asked together; None: as many as `answer` asks.
        progress: called with answers found and wanted.

    Raises:
        DehvfError: where the graph has no fuser of the kit's kind, or its weights are the same for all by construction.
        DataError: where fewer than two images are left, or the data set does not count right answers.
    """
    module = _fuser(model)
    asked = [one for one in samples if len(one.images) == 1]
    images = each_image(asked)
    if len(images) < 2:
        raise DataError(f"the worth of a fuser's weights: {len(images)} images among the questions; at least two are needed")
    source = EncodedImages(model) if features is None else features
    weights, levels = _weights(model, images, source, batch_size or BATCH)
    given = _replacements(weights, levels)
    place = {one.image: row for row, one in enumerate(images)}
    together = list(batches(asked_rows(model, asked), asked, answer_tokens(model), batch_size))
    order = [asked[number] for places in together for number in places]
    rights: dict[str, list[bool]] = {}
    kinds: list[str] = []
    for number, name in enumerate(REPLACEMENTS):
        said: list[Prediction] = []
        for places in together:
            batch = [asked[number] for number in places]
            rows = [place[one.image] for one in batch]
            with replaced(module, None if name == "own" else given[name][rows]):  # in the order of the batch, which `answer` keeps
                said += answer(model, batch, len(batch), features)  # type: ignore[arg-type]
            progress(number * len(order) + len(said), len(REPLACEMENTS) * len(order))
        rights[name] = [_right(model, one) for one in said]
        kinds = [one.kind for one in said]
    shown = [one.image for one in order]
    scores = {name: _by_kind(found, rights["own"], kinds, shown) for name, found in rights.items()}
    spread = {axis: float(weights.std(at, correction=0).mean()) for at, axis in enumerate(("images", "decoder layers", "kv"))}
    largest = float(weights.amax(-1).mean())
    return WeightWorth(
        images=len(images), questions=len(order), not_asked=len(samples) - len(asked), scores=scores, spread=spread, largest=largest
    )


@contextlib.contextmanager
def replaced(module: Fuser, weights: Tensor | None) -> Iterator[None]:
    """Inside, the fuser mixes by these weights [batch, decoder_layer, kv, member] in place of its own; None changes nothing."""

    def hook(fuser: nn.Module, arguments: Any, given: dict[str, Any], output: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        own = output[1]
        if weights is None:
            return output
        assert len(weights) == len(own), "one image's weights for each row"
        new = weights.to(own)
        return module.mix(new, given["codes"], given["levels"]), new

    handle = module.register_forward_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def _fuser(model: DehvfModel) -> Fuser:
    """Raises: DehvfError where there is none whose weights could be replaced."""
    found = fuser_of(model)
    if found is None:
        raise DehvfError("This graph has no fuser: there are no weights to replace.")
    module = model.nodes[found[0]]
    config = model.graph.nodes[found[0]].config
    if not isinstance(module, Fuser):
        raise DehvfError(f"The fuser '{config.type}' mixes in its own way, so its weights cannot be replaced.")
    if not any(True for _ in module.parameters()):
        raise DehvfError(f"The fuser '{config.type}' has no parameters: its weights are the same for all images by construction.")
    return module


@torch.no_grad()
def _weights(model: DehvfModel, images: Sequence[Sample], source: FeatureSource, batch_size: int) -> tuple[Tensor, GroupLayers]:
    """Weights [image, decoder_layer, kv, member] of every image as trained, and the groups they weigh."""
    found = fuser_of(model)
    assert found is not None
    name, wire = found
    at = list(model.graph.nodes[name].gives).index("weights")
    parts = []
    for start in range(0, len(images), batch_size):
        batch = images[start : start + batch_size]
        outputs = graph_outputs(model, batch, source)
        parts.append(outputs[name][at].expand(len(batch), -1, -1, -1))
        levels = outputs[wire.node][list(model.graph.nodes[wire.node].gives).index(wire.port)]
    return torch.cat(parts), levels


def _replacements(weights: Tensor, levels: GroupLayers) -> dict[str, Tensor]:
    """Weights [image, decoder_layer, kv, member] by the name of what they are replaced by; rows still sum to one."""
    group = levels.group_of_layer.to(weights.device)
    layers = weights.clone()
    for one in group.unique():
        layers[:, group == one] = weights[:, group == one].mean(1, keepdim=True)
    mask = levels.mask.to(weights)
    uniform = (mask / mask.sum(-1, keepdim=True))[group]
    return {
        "own": weights,
        "images": weights.mean(0, keepdim=True).expand_as(weights),
        "layers": layers,
        "kv": weights.mean(2, keepdim=True).expand_as(weights),
        "uniform": uniform[None, :, None, :].expand_as(weights),
        "largest": torch.zeros_like(weights).scatter(-1, weights.argmax(-1, keepdim=True), 1),
        "other": weights[_ring(len(weights))],
    }


def _ring(count: int) -> list[int]:
    """For each image another one: its successor in a random ring, the same at every call."""
    order = list(range(count))
    random.Random(0).shuffle(order)
    after = dict(zip(order, [*order[1:], order[0]], strict=True))
    return [after[image] for image in range(count)]


def _right(model: DehvfModel, one: Prediction) -> bool:
    """Whether the recipe's data set counts an answer as right. Raises: DataError where it has another measure."""
    data = model.recipe.data if model.recipe is not None else None
    score = (exact_match if data is None else data.score)([one]).headline
    if not score.percent or score.value not in (0, 1):
        raise DataError(f"these data are scored by {score.name}, not by the share of right answers")
    return score.value == 1


def _by_kind(rights: Sequence[bool], own: Sequence[bool], kinds: Sequence[str], images: Sequence[Any]) -> dict[str, Worth]:
    groups = {ALL: list(range(len(rights)))}
    for kind in sorted({kind for kind in kinds if kind}):
        groups[kind] = [row for row, other in enumerate(kinds) if other == kind]
    found = {}
    for name, rows in groups.items():
        score = share([rights[row] for row in rows])
        lost, half = paired([own[row] - rights[row] for row in rows], [images[row] for row in rows])
        found[name] = Worth(**score, lost=lost, half=half)
    return found


def paired(differences: Sequence[int], images: Sequence[Any]) -> tuple[float, float]:
    """(mean, half of its 95% interval) of differences of -1, 0 or 1; those about one image count as one observation.

    The normal interval with Agresti and Min's two further questions, of which one differs, so that no difference at all still has a
    width. Source: Agresti and Min, Statistics in Medicine 24 (2005), for questions about an image each.
    """
    count = len(differences)
    mean = sum(differences) / count
    sums: dict[Any, float] = {}
    for image, difference in zip(images, differences, strict=True):
        sums[image] = sums.get(image, 0.0) + difference - mean
    return mean, Z_975 * sqrt(sum(one * one for one in sums.values()) + 1) / (count + 2)
