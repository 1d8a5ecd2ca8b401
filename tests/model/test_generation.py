"""Generation with a KV cache, beams and samples: what it writes is what a pass without cache would write."""

from __future__ import annotations

import pytest
import torch
from helpers import pixels, randomise, tiny_decoder, tiny_model, tokens
from transformers import GenerationConfig

from dehvf_kit.errors import ShapeError
from dehvf_kit.testing import tiny_models

NEW = 6
WAYS = {
    "greedy": {},
    "beams": {"num_beams": 3},
    "several beams back": {"num_beams": 4, "num_return_sequences": 3},
    "sampled": {"do_sample": True, "temperature": 1.5},
    "several samples": {"do_sample": True, "num_return_sequences": 3},
    "sampled beams": {"do_sample": True, "num_beams": 2, "num_return_sequences": 2},
}


def model_with_words(**sections):
    """Tiny logits are nearly flat; a larger output head makes words that depend on the picture."""
    decoder = tiny_decoder()
    with torch.no_grad():
        decoder.lm_head.weight.mul_(40)
    return tiny_model(decoder, **sections)


def generate(model, input_ids, mask=None, **way):
    torch.manual_seed(13)
    mask = torch.ones_like(input_ids) if mask is None else mask
    fixed = {"max_new_tokens": NEW, "min_new_tokens": NEW, "pad_token_id": 0}
    return model.generate(input_ids=input_ids, attention_mask=mask, **{**fixed, **way})


@pytest.mark.parametrize("way", WAYS)
def test_cached_equals_uncached(way):
    model = model_with_words()
    settings = {"pixel_values": pixels(), "has_image": torch.tensor([True, False, True]), **WAYS[way]}
    cached = generate(model, tokens(), **settings)

    assert cached.shape == (3 * WAYS[way].get("num_return_sequences", 1), 7 + NEW)
    assert torch.equal(cached, generate(model, tokens(), use_cache=False, **settings))
    assert not torch.equal(cached, generate(model, tokens(), **WAYS[way])), "the pictures change what is said"


@pytest.mark.parametrize("kind", ["factored", "built"])
def test_greedy_equals_one_forward_pass_a_token(kind):
    model = model_with_words(graph={"injector": {"form": kind}})
    input_ids, pixel_values = tokens(), pixels()
    written = input_ids
    for _ in range(NEW):
        logits = model(written, pixel_values=pixel_values).logits[:, -1].clone()
        logits[:, model.decoder.generation_config.eos_token_id] = -torch.inf
        written = torch.cat([written, logits.argmax(-1, keepdim=True)], dim=1)

    assert torch.equal(generate(model, input_ids, pixel_values=pixel_values), written)


@pytest.mark.parametrize("way", ["greedy", "beams", "several beams back"])
def test_memory_follows_its_row_under_beams(way):
    """Every row alone writes what it writes in the batch; left padding included."""
    model = model_with_words()
    input_ids, pixel_values = tokens(), pixels()
    mask = torch.ones_like(input_ids)
    mask[1, :3] = 0
    input_ids[1, :3] = 0
    together = generate(model, input_ids, mask, pixel_values=pixel_values, **WAYS[way])
    back = WAYS[way].get("num_return_sequences", 1)

    for row in range(3):
        start = 3 if row == 1 else 0
        alone = generate(model, input_ids[row, None, start:], pixel_values=pixel_values[row, None], **WAYS[way])
        assert torch.equal(together[row * back : (row + 1) * back, 7:], alone[:, 7 - start :])
    swapped = generate(model, input_ids, mask, pixel_values=pixel_values.flip(0), **WAYS[way])
    assert not torch.equal(swapped[:back], together[:back])
    assert torch.equal(swapped[back : 2 * back], together[back : 2 * back]), "the middle row keeps its picture"


def test_pictures_of_flagged_rows_and_features_generate_the_same():
    model = model_with_words()
    flags = torch.tensor([True, False, True])
    expected = generate(model, tokens(), pixel_values=pixels(), has_image=flags)
    features = model.vision_features(pixels())

    assert torch.equal(expected, generate(model, tokens(), pixel_values=pixels()[flags], has_image=flags))
    assert torch.equal(expected, generate(model, tokens(), vision_features=features, has_image=flags))


def test_inputs_by_place_and_embeddings():
    model = model_with_words()
    input_ids, pixel_values = tokens(), pixels()
    expected = generate(model, input_ids, pixel_values=pixel_values)
    mask = torch.ones_like(input_ids)
    settings = {"max_new_tokens": NEW, "min_new_tokens": NEW, "pad_token_id": 0, "attention_mask": mask}
    assert torch.equal(expected, model.generate(input_ids, pixel_values=pixel_values, **settings))
    embedded = model.get_input_embeddings()(input_ids)
    found = model.generate(inputs_embeds=embedded, pixel_values=pixel_values, **settings)
    assert torch.equal(expected[:, 7:], found)
    with pytest.raises(ShapeError, match="give input_ids or inputs_embeds"):
        model.generate(pixel_values=pixel_values)


def test_the_recipes_settings_are_the_defaults():
    model = model_with_words(generation={"max_new_tokens": 3, "num_beams": 2})
    assert (model.generation_config.max_new_tokens, model.generation_config.num_beams) == (3, 2)
    mask = torch.ones(3, 7, dtype=torch.long)
    assert model.generate(tokens(), attention_mask=mask, min_new_tokens=3, pad_token_id=0).shape == (3, 10)
    config = GenerationConfig(max_new_tokens=2, min_new_tokens=2, pad_token_id=0)
    assert model.generate(tokens(), attention_mask=mask, generation_config=config).shape == (3, 9)
    assert model.generation_config.max_new_tokens == 3, "a call leaves the defaults alone"


def test_sampling_settings_of_the_base_model_do_not_leak_into_greedy(tmp_path):
    """Chat models ship `do_sample: true` with temperatures; transformers refuses to save them beside do_sample: false."""
    decoder = tiny_decoder()
    for name, value in {"do_sample": True, "temperature": 0.6, "top_k": 7, "min_p": 0.1, "length_penalty": 2.0}.items():
        setattr(decoder.generation_config, name, value)
    model = tiny_model(decoder)
    assert not model.generation_config.do_sample
    model.save_pretrained(tmp_path)
    first, second = (model.generate(tokens(), pixel_values=pixels(), max_new_tokens=4, pad_token_id=0) for _ in range(2))
    assert torch.equal(first, second)


def test_generation_leaves_no_memory_behind():
    decoder = tiny_decoder()
    before = decoder(input_ids=tokens()).logits
    model = tiny_model(decoder)
    generate(model, tokens(), pixel_values=pixels(), num_beams=2)
    assert model.nodes.injector.memory is None
    assert torch.equal(decoder(input_ids=tokens()).logits, before)
    with pytest.raises(ValueError):
        generate(model, tokens(), pixel_values=pixels(), num_return_sequences=5, num_beams=2)
    assert model.nodes.injector.memory is None, "nor after an error"


@pytest.mark.parametrize(
    ("model_type", "mixed", "way", "kept"),
    [
        ("minimax", "beams", {"num_beams": 4}, 3),
        ("recurrent_gemma", "beams", {"num_beams": 4}, 3),
        ("rwkv", "rows", {}, 1),
        ("rwkv", "rows", {"num_beams": 2}, 1),
    ],
)
def test_a_cache_that_mixes_states_is_not_used(model_type, mixed, way, kept, caplog):
    """transformers 5.23.0 keeps states in the last beams' order, or reads another row's; greedy search of `kept` rows is right."""
    decoder = tiny_models.tiny_decoder(model_type)
    randomise(decoder, std=0.4)  # states large enough to tell rows apart
    model = tiny_model(decoder)
    ids = tokens().clamp(max=decoder.config.vocab_size - 1)
    written = generate(model, ids, pixel_values=pixels(), **way)
    said = f"{model_type}'s mixes the states of {mixed}"
    assert torch.equal(written, generate(model, ids, pixel_values=pixels(), use_cache=False, **way))
    assert said in caplog.text
    caplog.clear()
    greedy = generate(model, ids[:kept], pixel_values=pixels()[:kept])
    assert torch.equal(greedy, generate(model, ids[:kept], pixel_values=pixels()[:kept], use_cache=False))
    assert said not in caplog.text
