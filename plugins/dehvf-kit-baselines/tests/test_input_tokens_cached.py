"""Passes behind inserted tokens that a caller makes itself: cache, padding, rows without image; labels from the first token on."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from baseline_helpers import baseline
from torch import Tensor
from torch.nn import functional as F

import dehvf_kit
from dehvf_kit.api import VisionError
from dehvf_kit.errors import RecipeError, ShapeError
from dehvf_kit.model.model import DehvfModel
from dehvf_kit.testing import tiny_decoder, tiny_vision

GRAPH: dict[str, Any] = {
    "reader": {"type": "channels", "layers": [[-1]]},
    "projector": {"type": "bottleneck_mlp", "bottleneck_size": 8, "inputs": {"patches": "reader"}},
    "visual_tokens": {"type": "visual_tokens"},
}
TEXT, FOLLOWS = torch.tensor([[0, 0, 5, 6, 7], [3, 4, 5, 6, 7], [8, 9, 5, 6, 7]]), torch.tensor([[11, 12], [13, 14], [15, 16]])
MASK = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1], [1, 1, 1, 1, 1]])
WHOLE = torch.cat([MASK, torch.ones(3, 2, dtype=torch.long)], 1)
SHOWN = torch.tensor([True, True, False])


def made(family: str, graph: dict[str, Any], vision: Any = None, **settings: Any) -> DehvfModel:
    decoder, vision = tiny_decoder(family, **settings).eval(), vision or tiny_vision("vit")
    sections = {
        "vision": {"config": vision.config.to_dict(), "image": {"size": vision.config.image_size}},
        "decoder": {"config": decoder.config.to_dict()},
        "graph": graph,
    }
    model = dehvf_kit.build(dehvf_kit.parse_recipe(sections), decoder=decoder, vision=vision)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.trainable_parameters():
            weight.copy_(0.3 * torch.randn(weight.shape, generator=generator))
    return model


def images(model: DehvfModel, count: int) -> Tensor:
    size = next(iter(model.towers.values())).model.config.image_size
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
def test_a_cached_step_with_the_texts_mask_is_the_whole_pass(family: str) -> None:
    """5e-6: float32 sums in another order (worst of these three: 2.2e-7)."""
    model = made(family, GRAPH)
    given = {"pixel_values": images(model, 2), "has_image": SHOWN}
    whole = model(input_ids=torch.cat([TEXT, FOLLOWS], 1), attention_mask=WHOLE, **given).logits[:, -2:]
    cache = model(input_ids=TEXT, attention_mask=MASK, use_cache=True, **given).past_key_values
    steps = [
        model(input_ids=FOLLOWS[:, i : i + 1], attention_mask=WHOLE[:, : 6 + i], past_key_values=cache, **given).logits
        for i in range(2)
    ]
    torch.testing.assert_close(torch.cat(steps, 1), whole, rtol=0, atol=5e-6 * float(whole.abs().max()))


@torch.no_grad()
def test_a_mask_of_another_length_and_generate_with_such_a_cache_are_refused() -> None:
    model = made("llama", GRAPH)
    given = {"pixel_values": images(model, 2), "has_image": SHOWN}
    cache = model(input_ids=TEXT, attention_mask=MASK, use_cache=True, **given).past_key_values
    with pytest.raises(ShapeError, match=r"\(3, 5\); wants \[3, 6\]: all text so far and the new tokens"):
        model(input_ids=FOLLOWS[:, :1], attention_mask=MASK, past_key_values=cache, **given)
    with pytest.raises(ShapeError, match="give generate the whole text without it"):
        model.generate(torch.cat([TEXT, FOLLOWS], 1), past_key_values=cache, max_new_tokens=1, **given)


@torch.no_grad()
def test_without_bos_the_last_inserted_token_predicts_the_first_of_the_text() -> None:
    """ClipCap's loss: every token of the caption is learned. GPT-2's tokenizer puts no token first."""
    model = made("gpt2", {"visual_tokens": {"type": "clipcap", "mapping": "mlp", "num_tokens": 3}}, bos_token_id=None)
    text, pixels = TEXT[1:], images(model, 2)
    loss = model(input_ids=text, labels=text, pixel_values=pixels).loss
    outputs = model.run_graph(2, pixel_values=pixels)
    embeds = torch.cat([outputs["visual_tokens"].embeds, model.get_input_embeddings()(text)], 1)
    with model.hooks_disabled():
        logits = model.decoder(inputs_embeds=embeds).logits
    official = F.cross_entropy(logits[:, 2:-1].flatten(0, 1), text.flatten())
    torch.testing.assert_close(loss, official, rtol=1e-5, atol=0)


@torch.no_grad()
def test_blip2s_tokens_stand_before_the_beginning_of_sequence_and_embeddings_show_it() -> None:
    graph = {**GRAPH, "visual_tokens": {"type": "visual_tokens", "before_bos": True}}
    text = torch.tensor([[2, 5, 6], [2, 7, 8]])
    for settings in (graph, GRAPH):
        model = made("opt", settings, bos_token_id=2)
        pixels, embedding = images(model, 2), model.get_input_embeddings()
        tokens, own = model.run_graph(2, pixel_values=pixels)["visual_tokens"].embeds, embedding(text)
        parts = [tokens, own] if settings is graph else [own[:, :1], tokens, own[:, 1:]]
        with model.hooks_disabled():
            wanted = model.decoder(inputs_embeds=torch.cat(parts, 1)).logits[:, -1]
        for given in ({"input_ids": text}, {"inputs_embeds": own}):
            torch.testing.assert_close(model(**given, pixel_values=pixels).logits[:, -1], wanted, rtol=1e-5, atol=1e-5)


def test_a_decoder_of_narrower_embeddings_and_an_encoder_without_class_token_are_refused() -> None:
    with pytest.raises(RecipeError, match="embeds words in 16 numbers, its layers' states in 32"):
        made("opt", GRAPH, word_embed_proj_dim=16)
    adapter = {"type": "mixture_of_modality", "width": 4}
    with pytest.raises(VisionError, match="has no class token, by which this adapter routes an image"):
        made("llama", {**GRAPH, "vision_adapter": adapter}, vision=tiny_vision("siglip_vision_model"))


@pytest.mark.parametrize("name", ["flamingo", "dense_connector", "deepstack", "vlora"])
@pytest.mark.parametrize("taken", ["loss", "logits"])
def test_a_training_batch_without_images_is_a_step_that_learns_nothing(name: str, taken: str) -> None:
    """All that these train hangs on an image; with a learning rate of any size the weights stay."""
    model = baseline(name).train()
    text = torch.tensor([[1, 5, 6, 7], [1, 8, 9, 10]])
    output = model(input_ids=text, labels=text if taken == "loss" else None)
    (output.loss if taken == "loss" else output.logits.square().mean()).backward()
    assert all(weight.grad is not None and not weight.grad.any() for weight in model.trainable_parameters())
