"""Short answers: ask the model, keep what it says."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from dehvf_kit.data.encoding import distinct, encode_pairs, stack
from dehvf_kit.data.images import open_image
from dehvf_kit.data.metrics.exact_match import Prediction, accuracy, tidy
from dehvf_kit.data.metrics.intervals import share
from dehvf_kit.data.processing import DehvfProcessor
from dehvf_kit.data.samples import PromptConfig, Sample
from dehvf_kit.data.tokens import embedded_tokens, require_tokenizer
from dehvf_kit.errors import DataError
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
    processor = model.processor
    prompt = PromptConfig(**processor.prompt) if processor.prompt else None
    require_tokenizer(processor.tokenizer, prompt, embedded_tokens(model), learns=False)
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
    with finite_logits(model, batch):
        tokens = model.generate(**inputs, **generation)
    said = tokens[:, inputs["input_ids"].shape[1] :].tolist()
    rows = [start + until_end(model, row) for start, row in zip(starts, said, strict=True)]
    return model.processor.batch_decode(rows, skip_special_tokens=True)


def until_end(model: DehvfModel, row: Sequence[int]) -> list[int]:
    """The new tokens of one answer up to its end token, that one included; what follows in a batch is padding."""
    given = model.generation_config.eos_token_id
    ends = {given} if isinstance(given, int) else set(given or ())
    count = next((place + 1 for place, token in enumerate(row) if token in ends), len(row))
    return list(row[:count])


@contextlib.contextmanager
def finite_logits(model: DehvfModel, batch: Sequence[Sample]) -> Iterator[None]:
    """Inside, the decoder's scores of each next token are looked at.

    Raises: DataError naming the first sample of which they are not finite (`-inf` rules a token out, and is allowed).
    """

    def look(module: Any, inputs: Any, output: Any) -> None:
        scores = output.logits[:, -1]
        bad = scores.isnan().any(-1) | (scores == torch.inf).any(-1) | (scores == -torch.inf).all(-1)
        if bad.any():
            row = int(bad.nonzero()[0]) * len(batch) // len(bad)  # with beams a question has several rows
            raise DataError(
                f"sample '{batch[row].id}': the model's scores of the next token are not finite, so it has no answer; if "
                "the decoder is loaded in float16, set decoder.dtype=bfloat16 or float32; else the adapter's weights are "
                "too large: train again with a lower training.base_learning_rate"
            )

    handle = model.decoder.register_forward_hook(look)
    try:
        yield
    finally:
        handle.remove()


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
