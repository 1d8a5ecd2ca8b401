"""Short answers: ask the model, keep what it says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from dehvf_kit.data.encoding import distinct, encode_pairs, stack
from dehvf_kit.data.images import open_image
from dehvf_kit.data.metrics.exact_match import Prediction, accuracy, tidy
from dehvf_kit.data.metrics.intervals import share
from dehvf_kit.data.processing import DehvfProcessor
from dehvf_kit.data.samples import Sample
from dehvf_kit.model.features import FeatureStore
from dehvf_kit.model.model import DehvfModel

__all__ = ["Prediction", "accuracy", "answer", "share", "tidy"]


def answer(
    model: DehvfModel,
    samples: Sequence[Sample],
    batch_size: int = 32,
    features: FeatureStore | None = None,
    progress: Callable[[int, int], None] | None = None,
    **generation: Any,
) -> list[Prediction]:
    """Ask the model every question and keep what it says, in the order of the samples, with the `answer_start` it was given.

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
    inputs, starts = asked(model, batch, features)
    tokens = model.generate(**inputs, **generation)
    said = tokens[:, inputs["input_ids"].shape[1] :].tolist()
    rows = [start + row for start, row in zip(starts, said, strict=True)]
    return model.processor.batch_decode(rows, skip_special_tokens=True)


def asked(
    model: DehvfModel, batch: Sequence[Sample], features: FeatureStore | None = None, length: int | None = None
) -> tuple[dict[str, Any], list[list[int]]]:
    """Model inputs of some questions, padded on the left, and the tokens of each one's `answer_start` among them.

    length: columns to pad to; None: those of the longest.
    """
    device = next(model.decoder.parameters()).device
    inputs, starts = prompts(model.processor, batch, length)
    with_picture = [sample for sample in batch if sample.image is not None]
    if with_picture and model.reads_images:
        if len(with_picture) < len(batch):
            inputs["has_image"] = torch.tensor([sample.image is not None for sample in batch])
        places, index = distinct([sample.image for sample in with_picture])
        with_picture = [with_picture[place] for place in places]
        if index is not None:
            inputs["image_index"] = index
        if features is not None:
            inputs["vision_features"] = stack([features.read(sample) for sample in with_picture])
        else:
            pictures = [open_image(sample) for sample in with_picture]
            inputs["pixel_values"] = model.processor.image_processor(pictures, return_tensors="pt")["pixel_values"]
    return {name: _move(value, device) for name, value in inputs.items()}, starts


def prompts(
    processor: DehvfProcessor, batch: Sequence[Sample], length: int | None = None
) -> tuple[dict[str, Any], list[list[int]]]:
    """Model inputs of the prompts, each followed by the `answer_start` of its sample, padded on the left; and those starts."""
    padding = {"padding": True} if length is None else {"padding": "max_length", "max_length": length}
    if not any(sample.answer_start for sample in batch):
        return dict(processor(text=[sample.question for sample in batch], **padding)), [[] for _ in batch]
    texts = [processor.with_prompt(sample.question) for sample in batch]
    special = not (processor.prompt and processor.prompt.get("chat"))
    pairs = encode_pairs(processor.tokenizer, texts, [sample.answer_start for sample in batch], special)
    rows = {"input_ids": [prompt + start for prompt, start in pairs]}
    inputs = processor.tokenizer.pad(rows, padding_side="left", return_tensors="pt", **padding)
    return dict(inputs), [start for _, start in pairs]


def _move(value: Any, device: torch.device) -> Any:
    return (
        value.to(device) if isinstance(value, Tensor) else {name: tensor.to(device) for name, tensor in value.items()}
    )
