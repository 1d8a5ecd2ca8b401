"""Training samples as the model will see them: tokens, label mask, image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dehvf_kit.backbones.decoder import prepare_tokenizer
from dehvf_kit.data.encoding import IGNORED, EncodedSamples
from dehvf_kit.data.images import open_image
from dehvf_kit.data.processing import DehvfProcessor, build_image_processor
from dehvf_kit.data.samples import Sample
from dehvf_kit.data.tokens import longest_sample
from dehvf_kit.model.builder import prompt_of
from dehvf_kit.model.run import by_encoder
from dehvf_kit.recipe.plugin_manager import plugins
from dehvf_kit.recipe.recipe import Recipe


def peek_samples(recipe: Recipe, samples: Sequence[Sample]) -> list[dict[str, Any]]:
    """What training makes of samples, as plain data; a graph that reads no features gets no image.

    Needs the decoder's tokenizer; no weights are loaded.
    `cut`: tokens lost at the beginning because of `training.max_length`. Raises: DataError for an image that cannot be read.
    """
    tokenizer = prepare_tokenizer(recipe.decoder.tokenizer(plugins().registry.sources))
    image_processor = build_image_processor({name: tower.image for name, tower in recipe.vision.items()})
    processor = DehvfProcessor(image_processor, tokenizer, prompt=prompt_of(recipe))
    graph = recipe.check()
    length = longest_sample(recipe.training.max_length, graph)
    reads = any(wire.node in recipe.vision and wire.port != "tower" for wire, _, _ in graph.edges())
    encoded = EncodedSamples(samples, processor=processor, prompt=recipe.data.prompt, max_length=length, images=reads)
    whole = EncodedSamples(samples, processor=processor, prompt=recipe.data.prompt, max_length=1_000_000, images=False)
    return [_peek(sample, encoded[n], len(whole.tokens[n][0]), processor) for n, sample in enumerate(samples)]


def _peek(sample: Sample, item: dict[str, Any], length: int, processor: DehvfProcessor) -> dict[str, Any]:
    tokens = [
        {"id": token, "text": processor.tokenizer.decode([token]), "loss": label != IGNORED}
        for token, label in zip(item["input_ids"], item["labels"], strict=True)
    ]
    image = None
    if "pixel_values" in item:
        image = {
            "path": ", ".join(map(str, sample.images)),
            "size": list(open_image(sample.apart()[0]).size),
            "pixel_values": {name: list(tensor.shape) for name, tensor in by_encoder(item["pixel_values"]).items()},
        }
    return {
        "id": sample.id,
        "kind": sample.kind,
        "image": image,
        "prompt": processor.with_prompt(sample.asked),
        "asked_with": sample.answer_start,
        "answer": sample.answer,
        "cut": length - len(tokens),
        "tokens": tokens,
    }
