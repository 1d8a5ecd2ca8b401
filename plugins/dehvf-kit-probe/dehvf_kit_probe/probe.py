"""Linear probes of every encoder layer: which layers tell the answers to which kind of question.

For each kind of question, a ridge classifier (scikit-learn's `RidgeClassifierCV`, its strength by leave-one-out on the training
images) is fitted to an image's global token, to the mean of its patch tokens, and to both, at every layer; it is scored on the test
split.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dehvf_kit.api import plugin_code
from dehvf_kit.data.images import open_image
from dehvf_kit.data.metrics.intervals import share
from dehvf_kit.data.processing import build_image_processor
from dehvf_kit.data.samples import Sample, samples_of
from dehvf_kit.errors import DataError, DehvfError
from dehvf_kit.model.features import FeatureStore
from dehvf_kit.recipe.files import encoder_path
from dehvf_kit.recipe.plugin_manager import plugins
from dehvf_kit.recipe.recipe import Recipe

READ = ("global", "patches", "both")
"""What a probe reads of a layer: the global token, the mean of the patch tokens, or the two side by side."""
ALPHAS = (1.0, 10.0, 100.0, 1e3, 1e4)
BATCH = 32
MAX_ANSWERS = 50
MIN_PER_ANSWER = 5

Progress = Callable[[int, int], None]
Array = np.ndarray


@dataclass(frozen=True)
class Layer:
    """Accuracy of the probes of one layer. right: for each test question whether the probe on `both` was right."""

    layer: int
    scores: Mapping[str, Mapping[str, Any]]
    right: Array

    @property
    def accuracy(self) -> float:
        return float(self.scores["both"]["accuracy"])


@dataclass(frozen=True)
class Kind:
    """The probes of one kind of question. chance: the share of the most frequent answer of the test split."""

    name: str
    answers: int
    train: int
    test: int
    chance: float
    layers: Sequence[Layer]

    @property
    def best(self) -> Layer:
        """The most accurate layer; of equal ones the shallowest."""
        return max(self.layers, key=lambda one: (one.accuracy, -one.layer))

    def lost_by(self, layer: int) -> tuple[float, float]:
        """(best - that layer, half of its 95% interval) of accuracy, over the same questions."""
        other = next(one for one in self.layers if one.layer == layer)
        difference = self.best.right.astype(float) - other.right
        return float(difference.mean()), 1.959964 * float(difference.std()) / sqrt(len(difference))


@dataclass(frozen=True)
class Probed:
    """What `probe` found of one encoder. skipped: kinds of questions that were not probed, with the reason."""

    encoder: str
    num_layers: int
    images: int
    kinds: Sequence[Kind]
    skipped: Mapping[str, str]

    @property
    def penultimate(self) -> int:
        return self.num_layers - 2

    def wanted_layers(self) -> list[int]:
        """The fewest layers, deepest first, of which one is within its interval of the best for each kind of question."""
        open_kinds = {kind.name: {one.layer for one in kind.layers if _as_good(kind, one.layer)} for kind in self.kinds}
        chosen: list[int] = []
        while open_kinds:
            count = Counter(layer for layers in open_kinds.values() for layer in layers)
            layer = max(count, key=lambda one: (count[one], one))
            chosen.append(layer)
            open_kinds = {name: layers for name, layers in open_kinds.items() if layer not in layers}
        return sorted(chosen)


def probe(
    recipe: Recipe,
    encoder: str,
    images: int | None = None,
    progress: Progress | None = None,
    features: FeatureStore | None = None,
    reads: Sequence[str] = READ,
) -> Probed:
    """Probe one encoder of a recipe on the recipe's data; the decoder is not built.

    Args:
        recipe: must have a vision encoder and data.
        encoder: its name under `vision`; `vision` where the recipe has one.
        images: at most that many training images and that many test images; None takes all.
        progress: called as `progress(images done, images)`.
        features: a store that holds every layer of this one encoder for all images; without one the encoder is loaded and run.
        reads: which of `READ` are probed; `both`, by which layers are compared, always is.

    Raises: DehvfError where the recipe has no such encoder, no data or no question that can be probed; DataError for an image
        that cannot be read.
    """
    config = recipe.vision.get(encoder)
    if config is None:
        raise DehvfError(f"{recipe.name}: has no encoder '{encoder}'; it has {', '.join(recipe.vision) or 'none'}")
    if recipe.data is None:
        raise DehvfError(f"{recipe.name}: has no `data` section; a probe asks the questions of a data set")
    splits = {split: _with_image(samples_of(recipe.data, split), images) for split in ("train", "test")}
    kinds, skipped = _usable(splits["train"], splits["test"])
    if not kinds:
        raise DataError("probe: no kind of question can be probed: " + "; ".join(f"{name}: {why}" for name, why in skipped.items()))
    found = list({one.image: one for split in splits.values() for one in split}.values())
    if features is None:
        with plugin_code(config, encoder_path(encoder)):
            tower = config.tower(config.load(plugins().registry.sources))
        processor = build_image_processor({encoder: config.image})

        def encode(batch: Sequence[Sample]) -> Tensor:
            return tower(processor([open_image(one) for one in batch], return_tensors="pt")["pixel_values"])

    else:

        def encode(batch: Sequence[Sample]) -> Tensor:
            return torch.cat([features.read(one) for one in batch])

    read = _read(encode, found, progress)
    place = {one.image: number for number, one in enumerate(found)}
    probed_parts = {part: read[part] for part in READ if part in (*reads, "both")}
    probed = [_kind(name, *kinds[name], probed_parts, place) for name in kinds]
    return Probed(str(config.model), read["global"].shape[1], len(found), probed, skipped)


def _with_image(samples: Sequence[Sample], images: int | None) -> list[Sample]:
    """The samples with an image, of the first so many images."""
    kept = [one for one in samples if one.image is not None]
    if images is None:
        return kept
    first = set(list(dict.fromkeys(one.image for one in kept))[:images])
    return [one for one in kept if one.image in first]


def _name(sample: Sample) -> str:
    return sample.kind or "all"


def _usable(train: Sequence[Sample], test: Sequence[Sample]) -> tuple[dict[str, tuple[list[Sample], list[Sample]]], dict[str, str]]:
    """({kind: (training questions, test questions)} that an image alone can answer, {other kind: why not}).

    A kind's training questions are those in the same words as its test questions: a test split may tell apart kinds that the
    training split does not, such as questions about unseen objects.
    """
    usable, skipped = {}, {}
    for kind in dict.fromkeys(one.kind for one in test):
        asked = [one for one in test if one.kind == kind]
        words = {one.question for one in asked}
        learned = [one for one in train if one.question in words]
        answers = Counter(one.answer for one in learned)
        if len(answers) < 2:
            why = "the training split has no such question" if not learned else "all answers are the same"
        elif _depends_on_words(learned):
            why = "the answer depends on the question's words, not on the image alone"
        elif len(answers) > MAX_ANSWERS:
            why = f"{len(answers):,} different answers; at most {MAX_ANSWERS} are probed"
        elif (rarest := min(answers.items(), key=lambda one: one[1]))[1] < MIN_PER_ANSWER:
            why = f"'{rarest[0]}' is the answer of {rarest[1]} training questions; {MIN_PER_ANSWER} are needed"
        else:
            usable[kind or "all"] = learned, asked
            continue
        skipped[kind or "all"] = why
    return usable, skipped


def _depends_on_words(samples: Sequence[Sample]) -> bool:
    """Whether an image has several answers, or differently worded questions are answered by yes and no."""
    by_image: dict[Any, set[str]] = {}
    for one in samples:
        by_image.setdefault(one.image, set()).add(one.answer)
    several = len({one.question for one in samples}) > 1
    closed = {one.answer.casefold() for one in samples} <= {"yes", "no", "true", "false"}
    return any(len(answers) > 1 for answers in by_image.values()) or (several and closed)


@torch.inference_mode()
def _read(encode: Callable[[Sequence[Sample]], Tensor], samples: Sequence[Sample], progress: Progress | None) -> dict[str, Array]:
    """{"global", "patches", "both"}: features [image, layer, size] of every image, in float32."""
    parts: dict[str, list[Array]] = {"global": [], "patches": []}
    for start in range(0, len(samples), BATCH):
        batch = samples[start : start + BATCH]
        features = encode(batch).float()
        parts["global"].append(features[:, :, 0].numpy())
        parts["patches"].append(features[:, :, 1:].mean(dim=2).numpy())
        if progress is not None:
            progress(start + len(batch), len(samples))
    read = {name: np.concatenate(rows) for name, rows in parts.items()}
    return {**read, "both": np.concatenate([read["global"], read["patches"]], axis=-1)}


def _kind(name: str, train: Sequence[Sample], test: Sequence[Sample], read: Mapping[str, Array], place: Mapping[Any, int]) -> Kind:
    rows, asked = [place[one.image] for one in train], [place[one.image] for one in test]
    answers, wanted = np.array([one.answer for one in train]), np.array([one.answer for one in test])
    layers = []
    for layer in range(read["both"].shape[1]):
        right = {part: _right(one[rows, layer], answers, one[asked, layer], wanted) for part, one in read.items()}
        layers.append(Layer(layer, {part: share(found.tolist()) for part, found in right.items()}, right["both"]))
    chance = max(Counter(wanted.tolist()).values()) / len(wanted)
    return Kind(name, len(set(answers.tolist())), len(train), len(test), chance, layers)


def _right(features: Array, answers: Array, asked: Array, wanted: Array) -> Array:
    """Whether a probe fitted to some images tells the answers of others, for each of these."""
    from sklearn.linear_model import RidgeClassifierCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    fitted = make_pipeline(StandardScaler(), RidgeClassifierCV(alphas=ALPHAS)).fit(features, answers)
    return np.asarray(fitted.predict(asked) == wanted)


def _as_good(kind: Kind, layer: int) -> bool:
    """Whether a layer is not worse than the best beyond the 95% interval of the difference."""
    lost, half = kind.lost_by(layer)
    return lost <= half
