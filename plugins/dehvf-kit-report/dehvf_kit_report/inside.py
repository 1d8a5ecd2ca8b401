"""What only the model itself shows: per-layer vision weights and memory contributions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from dehvf_kit.data.samples import Sample, each_image
from dehvf_kit.errors import DehvfError
from dehvf_kit.model.feature_files import cached_features
from dehvf_kit.model.model import DehvfModel
from dehvf_kit_report.fuser_weights import EncodedImages, FeatureSource, ReadLayers, fuser_of, read_layers
from dehvf_kit_report.memory_maps import MemoryMap, memory_map, writes_memory
from dehvf_kit_report.weight_worth import WeightWorth, weight_worth

Kind = TypeVar("Kind")


@dataclass(frozen=True)
class Inside:
    """What `look_inside` found.

    layers: None without a fuser; worth: None where no question was asked with replaced weights; maps: empty where no key/value
    memory is written; why: the reason for what is missing.
    """

    layers: ReadLayers | None = None
    worth: WeightWorth | None = None
    maps: list[MemoryMap] = field(default_factory=list)
    why: dict[str, str] = field(default_factory=dict)


def look_inside(
    model: DehvfModel,
    samples: Sequence[Sample],
    limit: int = 64,
    maps: int = 6,
    features: FeatureSource | None = None,
    progress: Callable[[str, int, int], None] = lambda *_: None,
    worth: int = 0,
) -> Inside:
    """Run the model on the images of some samples.

    Args:
        model: a trained model.
        samples: the samples whose images are taken.
        limit: images that the fuser's weights are averaged over.
        maps: images that a memory map is made of.
        features: a filled store; without one the encoder runs.
        progress: takes a stage, what is done of it, and how much there is.
        worth: questions that are asked again with replaced weights (`weight_worth`); 0 asks none.

    Raises:
        DataError: where an image cannot be read.
    """
    with_image = each_image(samples)
    if not model.reads_images or not with_image:
        why = "This graph reads no image." if not model.reads_images else "The test split has no images."
        return Inside(why={"layers": why, "maps": why, "worth": why})
    why = {}
    layers = None
    asked = evenly(samples, worth) if worth else []
    wanted = evenly(with_image, limit)
    if features is None and fuser_of(model) is not None:
        features = _features(model, [*wanted, *asked], progress)
    if fuser_of(model) is None:
        why["layers"] = "This graph has no fuser: no decoder layer weighs several vision layers."
    else:
        layers = read_layers(model, wanted, features)
    found_worth = _worth(model, asked, features, why, progress) if asked else None
    found = []
    if not writes_memory(model):
        why["maps"] = "This method writes no key/value memory, so there is no slot for each patch."
    else:
        mapped = evenly(sorted(with_image, key=lambda sample: sample.kind), maps)
        for number, sample in enumerate(mapped):
            found.append(memory_map(model, sample))
            progress("mapping memory contributions", number + 1, len(mapped))
        if any(one is None for one in found):
            why["maps"] = "The patches of this graph are no square grid, so they cannot be laid over the image."
    return Inside(layers, found_worth, [one for one in found if one is not None], why)


def _worth(
    model: DehvfModel,
    samples: Sequence[Sample],
    features: FeatureSource | None,
    why: dict[str, str],
    progress: Callable[[str, int, int], None],
) -> WeightWorth | None:
    """What the weights are worth, or in `why` the reason why that cannot be told."""
    try:
        return weight_worth(model, samples, features, progress=lambda *done: progress("asking with replaced weights", *done))
    except DehvfError as error:
        why["worth"] = str(error)
        return None


def _features(model: DehvfModel, samples: Sequence[Sample], progress: Callable[[str, int, int], None]) -> FeatureSource:
    if model.image_is_trained:
        return EncodedImages(model)
    features = cached_features(model, model.recipe.training)
    features.fill(samples, progress=lambda done, total: progress("encoding images", done, total))
    return features


def evenly(items: Sequence[Kind], count: int) -> list[Kind]:
    """At most `count` of some items, spread evenly over all of them."""
    if len(items) <= count:
        return list(items)
    return [items[number * len(items) // count] for number in range(count)]
