"""Short answers: generate, tidy, compare with the reference."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from dehvf_kit.data.encoding import open_picture, stack
from dehvf_kit.data.features import FeatureStore
from dehvf_kit.data.samples import Sample
from dehvf_kit.model import DehvfModel


@dataclass(frozen=True)
class Prediction:
    """One answered question."""

    id: str
    kind: str
    question: str
    image: str
    answer: str
    prediction: str

    @property
    def right(self) -> bool:
        return tidy(self.prediction) == tidy(self.answer)

    def row(self) -> dict[str, Any]:
        return {**asdict(self), "right": self.right}


def tidy(text: str) -> str:
    """An answer as it is compared: first line, lower case, no closing punctuation."""
    lines = text.strip().splitlines()
    return lines[0].strip().rstrip(".!").strip().lower() if lines else ""


def answer(
    model: DehvfModel,
    samples: Sequence[Sample],
    batch_size: int = 32,
    features: FeatureStore | None = None,
    progress: Callable[[int, int], None] | None = None,
    **generation: Any,
) -> list[Prediction]:
    """Ask the model every question and keep what it says, in the order of the samples.

    generation: keywords for `generate` beyond the recipe's own. Questions of like length share a batch.
    """
    order = sorted(range(len(samples)), key=lambda index: len(samples[index].question))
    found: dict[int, Prediction] = {}
    for start in range(0, len(order), batch_size):
        places = order[start : start + batch_size]
        batch = [samples[place] for place in places]
        for place, text in zip(places, _answers(model, batch, features, generation), strict=True):
            sample = samples[place]
            found[place] = Prediction(
                sample.id, sample.kind, sample.question, str(sample.image or ""), sample.answer, text.strip()
            )
        if progress is not None:
            progress(len(found), len(samples))
    return [found[place] for place in range(len(samples))]


def _answers(
    model: DehvfModel, batch: Sequence[Sample], features: FeatureStore | None, generation: dict[str, Any]
) -> list[str]:
    device = next(model.decoder.parameters()).device
    inputs = dict(model.processor(text=[sample.question for sample in batch], padding=True))
    with_picture = [sample for sample in batch if sample.image is not None]
    if with_picture and model.reads_pictures:
        inputs["has_image"] = torch.tensor([sample.image is not None for sample in batch])
        if features is not None:
            inputs["vision_features"] = stack([features.read(sample) for sample in with_picture])
        else:
            pictures = [open_picture(sample) for sample in with_picture]
            inputs["pixel_values"] = model.processor.image_processor(pictures, return_tensors="pt")["pixel_values"]
    inputs = {name: _move(value, device) for name, value in inputs.items()}
    tokens = model.generate(**inputs, **generation)
    return model.processor.batch_decode(tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def _move(value: Any, device: torch.device) -> Any:
    return (
        value.to(device) if isinstance(value, Tensor) else {name: tensor.to(device) for name, tensor in value.items()}
    )


def accuracy(predictions: Sequence[Prediction]) -> dict[str, Any]:
    """Share of right answers in all and by kind, each with its count and 95% Wilson interval."""
    groups: dict[str, list[bool]] = defaultdict(list)
    for prediction in predictions:
        if prediction.kind:
            groups[prediction.kind].append(prediction.right)
    everything = [prediction.right for prediction in predictions]
    return {"all": share(everything), "by_kind": {kind: share(rights) for kind, rights in sorted(groups.items())}}


def share(rights: Sequence[bool]) -> dict[str, Any]:
    """{"accuracy", "questions", "low", "high"}: the share of True with its 95% Wilson interval."""
    count, right = len(rights), sum(rights)
    if not count:
        return {"accuracy": math.nan, "questions": 0, "low": math.nan, "high": math.nan}
    z, p = 1.959964, right / count
    middle = (p + z * z / (2 * count)) / (1 + z * z / count)
    half = z * math.sqrt(p * (1 - p) / count + z * z / (4 * count * count)) / (1 + z * z / count)
    return {"accuracy": p, "questions": count, "low": max(0.0, middle - half), "high": min(1.0, middle + half)}
