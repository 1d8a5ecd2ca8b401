"""The model as a whole: the literal reference, what stays bit-identical, whose picture is whose, and what is refused."""

from __future__ import annotations

import json

import pytest
import torch
from helpers import (
    MIXED,
    PATCHES,
    VISION_CLASSES,
    VISION_HIDDEN,
    VISION_LAYERS,
    literal_logits,
    pixels,
    raw_recipe,
    tiny_decoder,
    tiny_model,
    tiny_recipe,
    tiny_vision,
    tokens,
    worst,
)

import dehvf_kit
from dehvf_kit.errors import DehvfError, ShapeError
from dehvf_kit.recipe.files import merge

VARIANTS = {
    "plain": {},
    "uneven groups": {"graph": {"grouper": {"num_groups": 3}}},
    "keys only": {"graph": {"injector": {"visual_in": ["key"]}}},
    "values only": {"graph": {"injector": {"visual_in": ["value"]}}},
    "shared kv": {"graph": {"layer_query": {"separate_kv": False}}},
}


def form(name: str) -> dict:
    return {"graph": {"injector": {"form": name}}}


@pytest.mark.parametrize("kind", ["factored", "built"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_equals_the_literal_reference_forward_and_gradients(variant, kind):
    """K and M concatenated into every LLaMA FFN's weights, sample by sample; one row of the batch has no image.

    Float32. Worst errors measured: logits 1.8e-7 (the memory moves them by 0.55 to 0.69); gradients 2.3e-6 of the
    largest entry of each weight's gradient, or of 1 where that is smaller.
    """
    model = tiny_model(**merge(VARIANTS[variant], form(kind)))
    input_ids, pixel_values = tokens(), pixels()
    features = model.vision_features(pixel_values)
    logits = model(input_ids, torch.ones_like(input_ids), vision_features=features, has_image=MIXED).logits
    expected = literal_logits(model, tiny_decoder(), input_ids, [features[0], None, features[2]])

    assert worst(logits, expected) < 1e-6
    assert worst(expected, tiny_decoder()(input_ids=input_ids).logits) > 0.1, "the memory must matter for this to say anything"

    weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(5))
    trained = model.named_trainable_parameters()
    found = torch.autograd.grad((logits * weights).sum(), list(trained.values()), retain_graph=True)
    wanted = torch.autograd.grad((expected * weights).sum(), list(trained.values()))
    for name, ours, theirs in zip(trained, found, wanted, strict=True):
        scale = max(1.0, theirs.abs().max().item())
        assert worst(ours / scale, theirs / scale) < 5e-6, name
        assert "to_key.bias" in name or theirs.abs().max() > 1e-5, f"{name}: no gradient to compare"


@pytest.mark.parametrize("vision", VISION_CLASSES)
def test_every_vision_family_equals_the_literal_reference(vision):
    """Worst error measured: 1.6e-7."""
    model = tiny_model(vision=tiny_vision(vision))
    input_ids = tokens(2)
    features = model.vision_features(pixels(2))
    logits = model(input_ids, vision_features=features).logits

    assert worst(logits, literal_logits(model, tiny_decoder(), input_ids, list(features))) < 1e-6


def test_zero_memory_leaves_the_decoder_bit_identical():
    decoder, input_ids = tiny_decoder(), tokens()
    before = decoder(input_ids=input_ids).logits
    model = tiny_model(decoder)
    with torch.no_grad():
        model.nodes.position.keys.zero_()
        model.nodes.position.values.zero_()
        model.nodes.projector.fc2.weight.zero_()
        model.nodes.projector.fc2.bias.zero_()

    for kind in ("factored", "built"):
        model.nodes.injector.form = kind
        assert torch.equal(model(input_ids, pixel_values=pixels()).logits, before)
        assert torch.equal(model(input_ids).logits, before)


def test_detach_gives_the_untouched_towers_back():
    decoder, vision, input_ids, pixel_values = tiny_decoder(), tiny_vision(), tokens(), pixels()
    before, seen = decoder(input_ids=input_ids).logits, vision(pixel_values).last_hidden_state
    weights = {name: tensor.clone() for name, tensor in (decoder.state_dict() | vision.state_dict()).items()}
    hooks = _hooks(decoder) + _hooks(vision)
    model = tiny_model(decoder, vision)
    assert not torch.equal(model(input_ids, pixel_values=pixel_values).logits, before)
    assert not torch.equal(vision(pixel_values).last_hidden_state, seen), "the vision adapter is at work"

    model.detach()
    model.detach()

    assert torch.equal(decoder(input_ids=input_ids).logits, before)
    assert torch.equal(vision(pixel_values).last_hidden_state, seen)
    assert _hooks(decoder) + _hooks(vision) == hooks
    assert all(torch.equal(weights[name], tensor) for name, tensor in (decoder.state_dict() | vision.state_dict()).items())
    with pytest.raises(DehvfError, match="this model was detached from its decoder; build or load it again"):
        model(input_ids)


def test_detach_restores_what_was_trainable_and_training():
    decoder, vision = tiny_decoder(), tiny_vision()
    decoder.train()
    decoder.model.layers[1].eval()
    list(vision.modules())[3].train()
    decoder.lm_head.requires_grad_(False)
    parts = [*decoder.modules(), *vision.modules()]
    parameters = [*decoder.parameters(), *vision.parameters()]
    modes, flags = [part.training for part in parts], [parameter.requires_grad for parameter in parameters]
    model = tiny_model(decoder, vision)
    assert not any(parameter.requires_grad for parameter in parameters)
    model.train()
    model.gradient_checkpointing_enable()

    model.detach()

    assert [part.training for part in parts] == modes
    assert [parameter.requires_grad for parameter in parameters] == flags
    assert not any(getattr(part, "gradient_checkpointing", False) for part in parts)


def test_models_built_again_name_the_first_and_are_all_found(caplog):
    decoder, vision = tiny_decoder(), tiny_vision()
    hooks = _hooks(decoder) + _hooks(vision)
    with tiny_model(decoder, vision):
        assert not caplog.messages
    for _ in range(3):
        tiny_model(decoder, vision)
    warned = [message for message in caplog.messages if "attached already: a model with vision_adapter, injector" in message]
    assert len(warned) == 4, "decoder and encoder, from the second on"
    assert len(dehvf_kit.detach_all(decoder)) == 3
    assert _hooks(decoder) + _hooks(vision) == hooks
    assert all(parameter.requires_grad for parameter in (*decoder.parameters(), *vision.parameters()))


def test_a_decoder_that_cannot_be_attached_is_left_alone():
    decoder, vision = tiny_decoder(), tiny_vision()
    with pytest.raises(DehvfError):
        dehvf_kit.build(tiny_recipe(graph={"position": {"num_slots": 3}}), decoder=decoder, vision=vision)

    assert all(parameter.requires_grad for parameter in decoder.parameters())
    assert _hooks(decoder) == [] and _hooks(vision) == []


@pytest.mark.parametrize("kind", ["factored", "built"])
def test_an_image_does_not_depend_on_its_batch_neighbours(kind):
    """Worst difference measured between a row in a batch and the same row alone: 8.9e-8 (other matrix shapes)."""
    model = tiny_model(**form(kind))
    input_ids, pixel_values = tokens(4), pixels(4)
    together = model(input_ids, pixel_values=pixel_values).logits
    for row in range(4):
        alone = model(input_ids[row, None], pixel_values=pixel_values[row, None]).logits
        assert worst(together[row, None], alone) < 2e-6
    others = torch.cat([pixel_values[:1], pixels(3, seed=9)])
    assert torch.equal(model(input_ids, pixel_values=others).logits[0], together[0]), "other neighbours, same shapes"
    assert not torch.equal(model(input_ids, pixel_values=others).logits[1], together[1])


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_no_row(side):
    """Worst difference measured: 6.0e-8."""
    model = tiny_model()
    input_ids, pixel_values = tokens(3), pixels(3)
    lengths = (7, 4, 2)
    padded, mask = torch.zeros_like(input_ids), torch.zeros_like(input_ids)
    places = [slice(7 - length, 7) if side == "left" else slice(0, length) for length in lengths]
    for row, (length, place) in enumerate(zip(lengths, places, strict=True)):
        padded[row, place], mask[row, place] = input_ids[row, :length], 1
    position_ids = (mask.cumsum(1) - 1).clamp(min=0)
    together = model(padded, mask, pixel_values=pixel_values, position_ids=position_ids).logits

    for row, (length, place) in enumerate(zip(lengths, places, strict=True)):
        alone = model(input_ids[row, None, :length], pixel_values=pixel_values[row, None]).logits
        assert worst(together[row, None, place], alone) < 2e-6


def test_pictures_for_flagged_rows_equal_pictures_for_all():
    """Worst difference measured: 1.5e-7 (the tower sees another batch)."""
    model = tiny_model()
    input_ids, pixel_values = tokens(), pixels()
    everywhere = model(input_ids, pixel_values=pixel_values, has_image=MIXED).logits
    flagged = model(input_ids, pixel_values=pixel_values[MIXED], has_image=MIXED).logits
    by_features = model(input_ids, vision_features=model.vision_features(pixel_values)[MIXED], has_image=[1, 0, 1]).logits

    assert worst(everywhere, flagged) < 2e-6
    assert worst(everywhere, by_features) < 2e-6
    assert worst(everywhere[1], model(input_ids).logits[1]) < 2e-6, "the row without a picture reads as text alone"
    assert worst(everywhere[0], model(input_ids).logits[0]) > 1e-3


def test_vision_features_stand_for_the_pictures():
    model = tiny_model()
    input_ids, pixel_values = tokens(), pixels()
    features = model.vision_features(pixel_values)

    assert features.shape == (3, VISION_LAYERS, 1 + PATCHES, VISION_HIDDEN)
    assert torch.equal(model(input_ids, vision_features=features).logits, model(input_ids, pixel_values=pixel_values).logits)


def test_text_alone_keeps_the_position_tables():
    """Without any picture the memory is p_K, p_V (method: a sample without image keeps them). Worst error: 1.1e-7."""
    model, input_ids = tiny_model(), tokens()
    logits = model(input_ids).logits

    assert worst(logits, literal_logits(model, tiny_decoder(), input_ids, [None] * 3)) < 1e-6
    assert torch.equal(logits, model(input_ids, pixel_values=pixels(0), has_image=torch.zeros(3)).logits)
    assert worst(logits, model(input_ids, pixel_values=pixels(), has_image=[False] * 3).logits) < 1e-6


@pytest.mark.parametrize("kind", ["auto", "factored", "built"])
def test_without_position_tables_text_alone_is_the_untouched_decoder(kind):
    decoder, input_ids = tiny_decoder(), tokens()
    before = decoder(input_ids=input_ids).logits
    model = tiny_model(decoder, **merge({"graph": {"position": None}}, form(kind)))

    assert torch.equal(model(input_ids).logits, before)
    mixed = model(input_ids, pixel_values=pixels(), has_image=MIXED).logits
    assert torch.equal(mixed[1], before[1]) and worst(mixed[0], before[0]) > 1e-3


REFUSED = {
    "both": (
        lambda: {"pixel_values": pixels(), "vision_features": torch.zeros(3, 8, 17, 24)},
        "give pixel_values or vision_features, not both",
    ),
    "no tokens": (lambda: {"input_ids": None, "pixel_values": pixels()}, "give input_ids or inputs_embeds"),
    "one picture for three rows": (lambda: {"pixel_values": pixels(1)}, r"1 images for 3 rows of text$"),
    "flags and pictures differ": (
        lambda: {"pixel_values": pixels(1), "has_image": MIXED},
        "1 images for 3 rows of text, of which 2 have an image by has_image",
    ),
    "too few flags": (
        lambda: {"pixel_values": pixels(), "has_image": MIXED[:2]},
        r"has_image is \(2,\); wants one flag for each of 3 rows",
    ),
    "flags without pictures": (lambda: {"has_image": MIXED}, "has_image flags 2 of 3 rows, but no images were given"),
    "grey pictures": (
        lambda: {"pixel_values": pixels()[:, :1]},
        r"pixel_values is \(3, 1, 32, 32\); wants \[images, 3, height, width\]",
    ),
    "a list of pictures": (lambda: {"pixel_values": [pixels()]}, "pixel_values is a list; give a tensor, or a mapping with vision"),
    "another encoder": (lambda: {"pixel_values": {"clip": pixels()}}, r"pixel_values: given for \['clip'\]; wants \['vision'\]"),
    "features of another width": (
        lambda: {"vision_features": torch.zeros(3, 8, 17, 23)},
        r"vision_features of 'vision' is \(3, 8, 17, 23\); wants \[images, 8, 1 \+ patches, 24\]",
    ),
    "features of too few layers": (lambda: {"vision_features": torch.zeros(3, 7, 17, 24)}, r"wants \[images, 8, 1 \+ patches"),
    "more patches than slots": (
        lambda: {"vision_features": torch.zeros(3, 8, 26, 24)},
        "25 patches do not fit into 20 memory slots",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_inputs_that_do_not_fit_are_refused(case):
    make, message = REFUSED[case]
    with pytest.raises(ShapeError, match=message):
        tiny_model()(**{"input_ids": tokens(), **make()})


def test_a_picture_smaller_than_a_patch_is_refused():
    with pytest.raises(DehvfError, match=r"an image of \(4, 4\) pixels is smaller than a patch of \(8, 8\)"):
        tiny_model()(tokens(), pixel_values=pixels(size=4))


def _hooks(module: torch.nn.Module) -> list[tuple[str, int]]:
    """Where hooks are and how many."""
    counts = [(name, len(part._forward_hooks) + len(part._forward_pre_hooks)) for name, part in module.named_modules()]
    return [(name, number) for name, number in counts if number]


def test_what_notebooks_ask_of_a_model(tmp_path, capsys):
    file = tmp_path / "recipe.yaml"
    file.write_text(json.dumps(raw_recipe()))
    for recipe in (raw_recipe(), str(file), file):
        model = dehvf_kit.build(recipe, decoder=tiny_decoder(), vision=tiny_vision())
    model.print_trainable_parameters()
    total = sum(parameter.numel() for parameter in model.parameters())
    assert f"trainable params: {model.num_trainable_parameters():,} || all params: {total:,} ||" in capsys.readouterr().out
    with pytest.raises(DehvfError, match=r"save_pretrained\(folder\) writes the adapter alone"):
        torch.save(model, tmp_path / "model.pt")
    model.save_pretrained(tmp_path / "adapter")
    again = dehvf_kit.load(tmp_path / "adapter", decoder=tiny_decoder(), vision=tiny_vision(), device="meta")
    assert {parameter.device.type for parameter in again.parameters()} == {"meta"}
