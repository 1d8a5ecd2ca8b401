"""Short answers: ask the model, keep what it says."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dehvf_kit.backbones.attached import run_eagerly
from dehvf_kit.data.encoding import encode_pairs, stack
from dehvf_kit.data.images import in_threads, open_image
from dehvf_kit.data.metrics.exact_match import Prediction, accuracy, tidy
from dehvf_kit.data.metrics.intervals import share
from dehvf_kit.data.processing import DehvfProcessor, image_places
from dehvf_kit.data.samples import PromptConfig, Sample
from dehvf_kit.data.tokens import embedded_tokens, longest_prompt, require_tokenizer
from dehvf_kit.errors import DataError
from dehvf_kit.evaluation.kept_answers import KeptAnswers, Said
from dehvf_kit.model.features import FeatureStore
from dehvf_kit.model.model import DehvfModel
from dehvf_kit.model.run import to_device

__all__ = ["Prediction", "accuracy", "answer", "share", "tidy"]
BATCH, TOKENS = 32, 2048
"""Rows of a batch; of one length up to four times as many, while they have so many tokens: small products fill no processor."""


def answer(
    model: DehvfModel,
    samples: Sequence[Sample],
    batch_size: int | None = None,
    features: FeatureStore | None = None,
    progress: Callable[[int, int], None] | None = None,
    kept: KeptAnswers | None = None,
    each: bool = False,
    **generation: Any,
) -> list[Prediction]:
    """Ask the model every question and keep what it says, in the order of the samples, with the `answer_start` it was given.

    Questions of the same words that no image tells apart are asked once, unless answers are sampled.

    Args:
        model: the model.
        samples: the questions; those of like length share a batch, and among them those about one image.
        batch_size: questions asked together; None: 32, or up to 128 of one length if they and their answers have 2,048 tokens.
            If there are no more samples than a given `batch_size`, they are asked in one batch, in the order given.
        features: a store of image features to use.
        progress: called with answers found and wanted after each batch.
        kept: a file of answers; those that are in it are not asked again, and the others are appended as they come.
        each: ask every question, whatever the others are, as a measurement of time per question wants.
        generation: keywords for `generate` beyond the recipe's own.

    Raises:
        DataError: for scores that are not finite, or an answer longer than the decoder has positions for.
    """
    new_tokens = generation.get("max_new_tokens")
    rows = asked_rows(model, samples, new_tokens)
    first = list(range(len(rows))) if each else _first_alike(model, rows, samples, generation)
    asked, counts = sorted(set(first)), Counter(first)
    said: dict[int, Said] = {}
    for batch in batches([rows[n] for n in asked], [samples[n] for n in asked], answer_tokens(model, new_tokens), batch_size):
        places = [asked[n] for n in batch]
        if kept is None or not kept.known.keys() >= set(places):  # the batch as a whole, so that its answers are the same
            texts = _say(model, [samples[n] for n in places], [rows[n] for n in places], features, generation)
            found = dict(zip(places, texts, strict=True))
            if kept is not None:
                kept.add(found)
        else:
            found = {place: kept.known[place] for place in places}
        said |= found
        if progress is not None:
            progress(sum(counts[place] for place in said), len(samples))
    return [_prediction(sample, said[place]) for sample, place in zip(samples, first, strict=True)]


def _first_alike(
    model: DehvfModel, rows: Sequence[PromptRow], samples: Sequence[Sample], generation: Mapping[str, Any]
) -> list[int]:
    """For each question the place of the first that has its answer: the same tokens, no image to tell them apart, no chance."""
    if generation.get("do_sample", model.generation_config.do_sample):
        return list(range(len(rows)))
    first: dict[Any, int] = {}
    return [
        place if sample.images and model.reads_images else first.setdefault((tuple(row.tokens), tuple(row.start), row.cut), place)
        for place, (row, sample) in enumerate(zip(rows, samples, strict=True))
    ]


def _prediction(sample: Sample, said: Said) -> Prediction:
    image, more = ", ".join(map(str, sample.images)), {"cut": said.cut, "references": sample.references}
    return Prediction(
        sample.id, kind=sample.kind, question=sample.question, image=image, answer=sample.answer, prediction=said.text, **more
    )


def asked_rows(model: DehvfModel, samples: Sequence[Sample], new_tokens: int | None = None) -> list[PromptRow]:
    """The prompts that `answer` asks. new_tokens: as in `asked`. Raises: DataError for a tokenizer that cannot make them."""
    processor = model.processor
    prompt = PromptConfig(**processor.prompt) if processor.prompt else None
    require_tokenizer(processor.tokenizer, prompt, embedded_tokens(model), learns=False)
    return prompt_rows(processor, samples, longest(model, new_tokens))


def batches(rows: Sequence[PromptRow], samples: Sequence[Sample], new_tokens: int, size: int | None = None) -> Iterator[list[int]]:
    """Places of the questions that are asked together, by the number of their tokens: without padding, and each image once.

    size: as `batch_size` in `answer`; what fits into one batch keeps its order.
    """
    if size is not None and 0 < len(rows) <= size:
        yield list(range(len(rows)))
        return
    images: dict[Any, int] = {}
    first = [images.setdefault(sample.images, len(images)) for sample in samples]
    order = sorted(range(len(rows)), key=lambda place: (len(rows[place].tokens), first[place]))
    while order:
        tokens = len(rows[order[0]].tokens)
        most = min(4 * BATCH, TOKENS // (tokens + new_tokens))
        count = size or max(BATCH, sum(len(rows[place].tokens) == tokens for place in order[:most]))
        yield order[:count]
        order = order[count:]


def _say(
    model: DehvfModel, batch: Sequence[Sample], rows: Sequence[PromptRow], features: FeatureStore | None, generation: dict[str, Any]
) -> list[Said]:
    inputs = _inputs(model, batch, rows, features, None)
    with finite_logits(model, batch):
        tokens = model.generate(**inputs, **generation)
    said = tokens[:, inputs["input_ids"].shape[1] :].tolist()
    texts = model.processor.batch_decode(
        [row.start + until_end(model, new) for row, new in zip(rows, said, strict=True)], skip_special_tokens=True
    )
    return [Said(text.strip(), row.cut) for text, row in zip(texts, rows, strict=True)]


def longest(model: DehvfModel, new_tokens: int | None) -> int | None:
    """Tokens a prompt may have, beside `new_tokens` of an answer; None: as many as the model's own settings say."""
    trained = model.recipe.training.max_length if model.recipe is not None else None
    return longest_prompt(trained, model.graph, answer_tokens(model, new_tokens))


def answer_tokens(model: DehvfModel, new_tokens: int | None = None) -> int:
    """Tokens an answer may have: those asked for, or as the model's own settings say."""
    return new_tokens or model.generation_config.max_new_tokens or 1


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
        bad = ~output.logits[:, -1].amax(-1).isfinite()  # the largest of some is NaN where any is
        if bad.any():
            row = int(bad.nonzero()[0]) * len(batch) // len(bad)  # with beams a question has several rows
            raise DataError(
                f"sample '{batch[row].id}': the model's scores of the next token are not finite, so it has no answer; if "
                "the decoder is loaded in float16, set decoder.dtype=bfloat16 or float32; else the adapter's weights are "
                "too large: train again with a lower training.base_learning_rate"
            )

    handle, before = model.decoder.register_forward_hook(look), model.generation_config.disable_compile
    model.generation_config.disable_compile = True
    try:
        with run_eagerly():
            yield
    finally:
        handle.remove()
        model.generation_config.disable_compile = before


def asked(
    model: DehvfModel,
    batch: Sequence[Sample],
    features: FeatureStore | None = None,
    length: int | None = None,
    new_tokens: int | None = None,
) -> tuple[dict[str, Any], list[list[int]]]:
    """Model inputs of some questions, padded on the left, and the tokens of each one's `answer_start` among them.

    length: columns to pad to; None: those of the longest. new_tokens: tokens an answer may have; None: as the model's own
    settings say.
    """
    rows = prompt_rows(model.processor, batch, longest(model, new_tokens))
    return _inputs(model, batch, rows, features, length), [row.start for row in rows]


def _inputs(
    model: DehvfModel, batch: Sequence[Sample], rows: Sequence[PromptRow], features: FeatureStore | None, length: int | None
) -> dict[str, Any]:
    device = next(model.decoder.parameters()).device
    inputs = _padded(model.processor, rows, length)
    with_image = [one for sample in batch if sample.images for one in sample.apart()]
    if with_image and model.reads_images:
        places, given = image_places([sample.images for sample in batch])
        with_image = [with_image[place] for place in places]
        inputs |= given
        if features is not None:
            inputs["vision_features"] = stack([features.read(sample) for sample in with_image])
        else:
            images = in_threads(open_image, with_image)
            inputs["pixel_values"] = model.processor.image_processor(images, return_tensors="pt")["pixel_values"]
    return to_device(inputs, device)


@dataclass(frozen=True)
class PromptRow:
    """A prompt's tokens, the `answer_start` that stands at their end, and how many the prompt lost at its beginning."""

    tokens: list[int]
    start: list[int]
    cut: int


def prompt_rows(processor: DehvfProcessor, batch: Sequence[Sample], longest: int | None = None) -> list[PromptRow]:
    """Each sample's prompt and `answer_start`, the prompt without its beginning where both are longer than `longest`.

    Raises: DataError for a prompt without a single token.
    """
    texts = [processor.with_prompt(sample.asked) for sample in batch]
    special = not (processor.prompt and processor.prompt.get("chat"))
    rows = []
    for sample, (prompt, start) in zip(
        batch, encode_pairs(processor.tokenizer, texts, [sample.answer_start for sample in batch], special), strict=True
    ):
        room = len(prompt) if longest is None else max(1, longest - len(start))
        if not prompt and not start:
            raise DataError(f"sample '{sample.id}': its prompt has no token; write a question, or a data.prompt.question")
        rows.append(PromptRow(prompt[-room:] + start if prompt else start, start, max(0, len(prompt) - room)))
    return rows


def prompts(
    processor: DehvfProcessor, batch: Sequence[Sample], length: int | None = None
) -> tuple[dict[str, Any], list[list[int]]]:
    """Model inputs of the prompts, each followed by the `answer_start` of its sample, padded on the left; and those starts."""
    rows = prompt_rows(processor, batch)
    return _padded(processor, rows, length), [row.start for row in rows]


def _padded(processor: DehvfProcessor, rows: Sequence[PromptRow], length: int | None) -> dict[str, Any]:
    padding = {"padding": True} if length is None else {"padding": "max_length", "max_length": length}
    ids = {"input_ids": [row.tokens for row in rows]}
    return dict(processor.tokenizer.pad(ids, padding_side="left", return_tensors="pt", **padding))
