"""The model as a whole: the literal reference, what stays bit-identical, whose picture is whose, and who is trained."""

from __future__ import annotations

import copy
import inspect

import pytest
import torch
from helpers import (
    PATCHES,
    VISION_CLASSES,
    VISION_HIDDEN,
    VISION_LAYERS,
    literal_logits,
    pixels,
    randomise,
    raw_recipe,
    reference_groups,
    tiny_decoder,
    tiny_model,
    tiny_recipe,
    tiny_vision,
    tokens,
    worst,
)
from torch import Tensor

import dehvf_kit
from dehvf_kit.errors import DehvfError, ShapeError
from dehvf_kit.recipe_files import merge

VARIANTS = {
    "plain": {},
    "uneven groups": {"graph": {"grouper": {"num_groups": 3}}},
    "keys only": {"graph": {"injector": {"visual_in": ["key"]}}},
    "values only": {"graph": {"injector": {"visual_in": ["value"]}}},
    "shared kv": {"graph": {"layer_query": {"separate_kv": False}}},
}
MIXED = torch.tensor([True, False, True])


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
    assert worst(expected, tiny_decoder()(input_ids=input_ids).logits) > 0.1, (
        "the memory must matter for this to say anything"
    )

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
    assert all(
        torch.equal(weights[name], tensor) for name, tensor in (decoder.state_dict() | vision.state_dict()).items()
    )
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
    by_features = model(
        input_ids, vision_features=model.vision_features(pixel_values)[MIXED], has_image=[1, 0, 1]
    ).logits

    assert worst(everywhere, flagged) < 2e-6
    assert worst(everywhere, by_features) < 2e-6
    assert worst(everywhere[1], model(input_ids).logits[1]) < 2e-6, "the row without a picture reads as text alone"
    assert worst(everywhere[0], model(input_ids).logits[0]) > 1e-3


def test_vision_features_stand_for_the_pictures():
    model = tiny_model()
    input_ids, pixel_values = tokens(), pixels()
    features = model.vision_features(pixel_values)

    assert features.shape == (3, VISION_LAYERS, 1 + PATCHES, VISION_HIDDEN)
    assert torch.equal(
        model(input_ids, vision_features=features).logits, model(input_ids, pixel_values=pixel_values).logits
    )


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
    "one picture for three rows": (lambda: {"pixel_values": pixels(1)}, r"1 pictures for 3 rows of text$"),
    "flags and pictures differ": (
        lambda: {"pixel_values": pixels(1), "has_image": MIXED},
        "1 pictures for 3 rows of text, of which 2 have a picture by has_image",
    ),
    "too few flags": (
        lambda: {"pixel_values": pixels(), "has_image": MIXED[:2]},
        r"has_image is \(2,\); wants one flag for each of 3 rows",
    ),
    "flags without pictures": (
        lambda: {"has_image": MIXED},
        "has_image flags 2 of 3 rows, but no pictures were given",
    ),
    "grey pictures": (
        lambda: {"pixel_values": pixels()[:, :1]},
        r"pixel_values is \(3, 1, 32, 32\); wants \[images, 3, height, width\]",
    ),
    "a list of pictures": (
        lambda: {"pixel_values": [pixels()]},
        "pixel_values is a list; give a tensor, or a mapping with vision",
    ),
    "another encoder": (
        lambda: {"pixel_values": {"clip": pixels()}},
        r"pixel_values: given for \['clip'\]; wants \['vision'\]",
    ),
    "features of another width": (
        lambda: {"vision_features": torch.zeros(3, 8, 17, 23)},
        r"vision_features of 'vision' is \(3, 8, 17, 23\); wants \[images, 8, 1 \+ patches, 24\]",
    ),
    "features of too few layers": (
        lambda: {"vision_features": torch.zeros(3, 7, 17, 24)},
        r"wants \[images, 8, 1 \+ patches",
    ),
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


def test_every_node_is_trained_and_no_tower_is():
    model = tiny_model()
    model.train()
    input_ids = tokens()
    model(input_ids, labels=input_ids, pixel_values=pixels(), has_image=MIXED).loss.backward()

    trained = model.named_trainable_parameters()
    assert {name.split(".")[0] for name in trained} == {
        "vision_adapter",
        "layer_query",
        "projector",
        "fuser",
        "position",
    }
    assert all(parameter.requires_grad for parameter in trained.values())
    assert [name for name, p in trained.items() if p.grad is None or not p.grad.any()] == []
    inside = {name for name, _ in model.named_parameters() if name.startswith("nodes.")}
    assert {f"nodes.{name}" for name in trained} == inside
    frozen = {name: p for name, p in model.named_parameters() if name not in inside}
    assert frozen and not any(p.requires_grad or p.grad is not None for p in frozen.values())
    assert model.num_trainable_parameters() == sum(p.numel() for p in trained.values())


def test_parameter_order_and_initial_weights_follow_the_seed_alone():
    models = []
    for noise in (1, 2):
        decoder, vision = tiny_decoder(), tiny_vision()
        torch.manual_seed(noise)
        models.append(dehvf_kit.build(tiny_recipe(), decoder=decoder, vision=vision))
    first, second = (model.named_trainable_parameters() for model in models)
    assert list(first) == list(second)
    assert all(torch.equal(first[name], second[name]) for name in first)

    other = dehvf_kit.build(tiny_recipe(training={"seed": 1}), decoder=tiny_decoder(), vision=tiny_vision())
    assert not torch.equal(other.nodes.position.keys, first["position.keys"])


def test_building_leaves_the_random_state_alone():
    decoder, vision = tiny_decoder(), tiny_vision()
    torch.manual_seed(4)
    before = torch.get_rng_state()
    dehvf_kit.build(tiny_recipe(), decoder=decoder, vision=vision)
    assert torch.equal(torch.get_rng_state(), before)


def test_fuser_weights_sum_to_one_and_differ_by_image_role_and_layer():
    """Worst |sum - 1| measured: 1.2e-7."""
    model = tiny_model(graph={"grouper": {"num_groups": 3}})
    _, weights = model.run_graph(3, pixel_values=pixels())["fuser"]

    assert weights.shape == (3, 4, 2, 4), "[batch, decoder_layer, kv, member]: 8 layers in 3 groups, penultimate added"
    assert worst(weights.sum(-1), torch.ones(3, 4, 2)) < 1e-6
    assert (weights >= 0).all()
    sizes = [len(group) for group in reference_groups(8, 3)]
    assert sizes == [4, 4, 3]
    assert (weights[:, 3, :, 3] == 0).all() and (weights[:, :3] > 0).all(), (
        "the short group's missing place weighs nothing"
    )
    for axis in range(3):
        assert (weights.select(axis, 0) - weights.select(axis, 1)).abs().max() > 1e-4


def test_dropout_works_in_training_only():
    model = tiny_model(graph={"injector": {"dropout": 0.5}, "vision_adapter": {"dropout": 0.5}})
    input_ids, pixel_values = tokens(), pixels()
    assert torch.equal(
        model(input_ids, pixel_values=pixel_values).logits, model(input_ids, pixel_values=pixel_values).logits
    )
    model.train()
    assert not torch.equal(model(input_ids).logits, model(input_ids).logits), "in the memory"
    assert not torch.equal(model.vision_features(pixel_values), model.vision_features(pixel_values)), "in the adapter"
    assert not model.decoder.training and not any(tower.model.training for tower in model.towers.values())


def gradients(loss: Tensor, model: torch.nn.Module) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_trainable_parameters().items()}


def test_gradient_checkpointing_changes_neither_loss_nor_gradients():
    """Bit-identical, dropout included: the random state is kept for the second run."""
    model = tiny_model(graph={"injector": {"dropout": 0.3}})
    model.train()
    input_ids, pixel_values = tokens(), pixels()

    def step() -> tuple[Tensor, dict[str, Tensor]]:
        torch.manual_seed(11)
        loss = model(input_ids, labels=input_ids, pixel_values=pixel_values, has_image=MIXED, use_cache=False).loss
        return loss.detach(), gradients(loss, model)

    plain_loss, plain = step()
    model.gradient_checkpointing_enable()
    assert model.is_gradient_checkpointing
    loss, found = step()
    model.gradient_checkpointing_disable()
    assert not model.is_gradient_checkpointing

    assert torch.equal(loss, plain_loss)
    assert all(torch.equal(found[name], plain[name]) for name in plain)


def test_gradient_checkpointing_with_two_forwards_before_one_backward():
    """The layers of each batch are run again with that batch's memory. Bit-identical to no checkpointing."""
    model = tiny_model()
    model.train()
    batches = [(tokens(2, seed=seed), pixels(2, seed=seed)) for seed in (21, 22)]

    def step() -> dict[str, Tensor]:
        losses = [model(ids, labels=ids, pixel_values=pictures, use_cache=False).loss for ids, pictures in batches]
        return gradients(losses[0] + losses[1], model)

    plain = step()
    model.gradient_checkpointing_enable()
    found = step()
    assert all(torch.equal(found[name], plain[name]) for name in plain)


def test_gradient_checkpointing_survives_a_second_backward():
    model = tiny_model()
    model.train()
    model.gradient_checkpointing_enable()
    ids = tokens(2)
    loss = model(ids, labels=ids, pixel_values=pixels(2), use_cache=False).loss
    parameters = list(model.named_trainable_parameters().values())
    first = torch.autograd.grad(loss, parameters, retain_graph=True)
    second = torch.autograd.grad(loss, parameters)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_reentrant_checkpointing_is_refused():
    with pytest.raises(DehvfError, match=r"use gradient_checkpointing_kwargs=\{'use_reentrant': False\}"):
        tiny_model().gradient_checkpointing_enable({"use_reentrant": True})


def test_bfloat16_decoder_with_float32_components():
    """bfloat16 has 8 bits: worst difference measured to the float32 model 1.4e-2 (logits reach 0.36)."""
    model = tiny_model()
    half = tiny_model(tiny_decoder().to(torch.bfloat16), tiny_vision().to(torch.bfloat16))
    half.nodes.load_state_dict(model.nodes.state_dict())
    input_ids = tokens()
    output = half(input_ids, labels=input_ids, pixel_values=pixels(), has_image=MIXED)
    output.loss.backward()

    assert output.logits.dtype == torch.bfloat16
    assert worst(output.logits.float(), model(input_ids, pixel_values=pixels(), has_image=MIXED).logits) < 0.03
    assert all(p.dtype == torch.float32 and p.grad.isfinite().all() for p in half.named_trainable_parameters().values())


def test_an_adapted_decoder_compiles():
    """The decoder's forward with memory, compiled; eager backend, so that only the tracing is tested. Worst: 0."""
    model = tiny_model(tiny_decoder(num_hidden_layers=2))
    input_ids = tokens()
    expected = model(input_ids, pixel_values=pixels()).logits
    mlp = model.decoder.model.layers[0].mlp
    x = torch.randn(3, 7, 32, generator=torch.Generator().manual_seed(0))
    with model.nodes.injector.holding(model.memory(3, pixels())["injector"]):
        eager = mlp(x)
        assert worst(torch.compile(mlp, backend="eager", fullgraph=True)(x), eager) < 1e-6
    assert worst(eager, mlp(x)) > 1e-3, "the hook was traced with the FFN"

    model.decoder.forward = torch.compile(model.decoder.forward, backend="eager")
    assert worst(model(input_ids, pixel_values=pixels()).logits, expected) < 1e-6
    assert worst(model(input_ids, pixel_values=pixels(seed=8)).logits, expected) > 1e-3, "memory is no constant"


@pytest.mark.parametrize("attached", [True, False])
def test_deepcopy_stands_on_its_own(attached):
    model = tiny_model()
    input_ids, pixel_values = tokens(), pixels()
    before = model(input_ids, pixel_values=pixel_values).logits
    if not attached:
        model.detach()
    twin = copy.deepcopy(model)
    if attached:
        assert torch.equal(twin(input_ids, pixel_values=pixel_values).logits, before)
        randomise(twin.nodes, seed=1)
        assert not torch.equal(twin(input_ids, pixel_values=pixel_values).logits, before)
        twin.detach()
        assert torch.equal(model(input_ids, pixel_values=pixel_values).logits, before)
    base = tiny_decoder()(input_ids=input_ids).logits
    assert torch.equal(twin.decoder(input_ids=input_ids).logits, base)


def test_two_encoders_of_other_width_and_grid_run_end_to_end():
    """Each encoder's pictures matter, both get gradients, and the merged memory still is per image."""
    model = two_encoders()
    randomise(model.nodes)
    pictures = {"clip": pixels(), "dino": pixels(size=28)}
    input_ids = tokens()
    output = model(input_ids, labels=input_ids, pixel_values=pictures)
    output.loss.backward()

    assert model.graph.layers == {"clip": tuple(range(8)), "dino": (0, 2)}
    features = model.vision_features(pictures)
    assert {name: tuple(tensor.shape) for name, tensor in features.items()} == {
        "clip": (3, 8, 17, 24),
        "dino": (3, 2, 5, 16),
    }
    assert torch.equal(model(input_ids, vision_features=features).logits, output.logits)
    for name, size in (("clip", 32), ("dino", 28)):
        changed = {**pictures, name: torch.cat([pictures[name][:2], pixels(1, seed=40, size=size)])}
        logits = model(input_ids, pixel_values=changed).logits
        assert torch.equal(logits[:2], output.logits[:2]) and worst(logits[2], output.logits[2]) > 1e-4, name
    assert [name for name, p in model.named_trainable_parameters().items() if p.grad is None or not p.grad.any()] == []
    mixed = model(
        input_ids, pixel_values={name: value[MIXED] for name, value in pictures.items()}, has_image=MIXED
    ).logits
    assert worst(mixed[MIXED], output.logits[MIXED]) < 2e-6, "worst measured: 9.0e-8"


def test_two_encoders_are_handed_over_and_asked_by_name():
    recipe = two_encoders_recipe()
    with pytest.raises(DehvfError, match="the recipe has 2 encoders; hand them over by name: clip, dino"):
        dehvf_kit.build(recipe, decoder=tiny_decoder(), vision=tiny_vision())
    with pytest.raises(DehvfError, match=r"vision handed over for \['clip'\]; the recipe names \['clip', 'dino'\]"):
        dehvf_kit.build(recipe, decoder=tiny_decoder(), vision={"clip": tiny_vision()})
    with pytest.raises(ShapeError, match="pixel_values: one tensor for 2 encoders; give a mapping with clip, dino"):
        two_encoders()(tokens(), pixel_values=pixels())


SMALL_DINO = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}


def two_encoders_recipe() -> dehvf_kit.Recipe:
    raw = raw_recipe()
    vision, graph = raw["vision"], raw["graph"]
    raw["vision"] = {"clip": vision, "dino": {"config": {"model_type": "dinov2", **SMALL_DINO}, "image": {"size": 28}}}
    del graph["vision_adapter"], graph["grouper"]
    graph["first"] = {"role": "grouper", "type": "contiguous", "num_groups": 2, "inputs": {"globals": "clip"}}
    graph["second"] = {"role": "grouper", "type": "listed", "groups": [[0], [-2]], "inputs": {"globals": "dino"}}
    both = ["first", "second"]
    graph["merger"] = {
        "type": "concat_levels",
        "hidden_size": 8,
        "inputs": {"patches": ["clip", "dino"], "members": both, "levels": both},
    }
    graph["projector"]["inputs"] = {"patches": "merger"}
    graph["fuser"]["inputs"] = {"members": "merger", "levels": "merger"}
    return dehvf_kit.parse_recipe(raw)


def two_encoders() -> dehvf_kit.DehvfModel:
    dino = tiny_vision("dinov2", **SMALL_DINO)
    return dehvf_kit.build(two_encoders_recipe(), decoder=tiny_decoder(), vision={"clip": tiny_vision(), "dino": dino})


def test_a_decoder_with_two_adapters_reads_each_alone():
    """Two models on one decoder do not see each other's memory."""
    decoder, input_ids = tiny_decoder(), tokens()
    first, second = tiny_model(decoder), tiny_model(decoder)
    randomise(second.nodes, seed=3)
    one = first(input_ids, pixel_values=pixels()).logits
    assert torch.equal(one, tiny_model()(input_ids, pixel_values=pixels()).logits)
    assert not torch.equal(one, second(input_ids, pixel_values=pixels()).logits)
    assert torch.equal(decoder(input_ids=input_ids).logits, tiny_decoder()(input_ids=input_ids).logits)


def test_plain_python_can_do_what_a_recipe_does():
    """Components, wired by hand, hooked on a decoder: the same logits, bit for bit."""
    model, input_ids = tiny_model(), tokens()
    nodes, decoder = copy.deepcopy(model).nodes, tiny_decoder()
    nodes.injector.detach()
    nodes.injector.attach(decoder)
    features = model.vision_features(pixels())
    members, levels = nodes.grouper(features[:, :, 0])
    codes, readout = nodes.projector(features[:, :, 1:])
    fused, _ = nodes.fuser(members, levels, nodes.layer_query(), codes)
    keys, values = nodes.position()
    with nodes.injector.holding(nodes.injector(fused, readout, keys, values)):
        by_hand = decoder(input_ids=input_ids).logits

    assert torch.equal(by_hand, model(input_ids, vision_features=features).logits)


PUBLIC = {
    "load_recipe": (dehvf_kit.load_recipe, ["path", "overrides"]),
    "build": (dehvf_kit.build, ["recipe", "decoder", "vision", "tokenizer", "image_processor"]),
    "load": (dehvf_kit.load, ["folder", "decoder", "vision"]),
    "model(...)": (
        dehvf_kit.DehvfModel.forward,
        ["self", "input_ids", "attention_mask", "pixel_values", "vision_features", "labels", "has_image"],
    ),
    "vision_features": (dehvf_kit.DehvfModel.vision_features, ["self", "pixel_values"]),
    "trainable_parameters": (dehvf_kit.DehvfModel.trainable_parameters, ["self"]),
    "save_pretrained": (dehvf_kit.DehvfModel.save_pretrained, ["self", "save_directory"]),
    "detach": (dehvf_kit.DehvfModel.detach, ["self"]),
    "ffn_sites": (dehvf_kit.ffn_sites, ["model"]),
    "attach_memory": (dehvf_kit.attach_memory, ["decoder", "keys", "values", "output_scale", "activation"]),
}


@pytest.mark.parametrize("name", PUBLIC)
def test_public_signature(name):
    """Stable: people's scripts call these by position and by name."""
    function, names = PUBLIC[name]
    assert list(inspect.signature(function).parameters)[: len(names)] == names


def test_generate_takes_the_image_arguments():
    names = inspect.signature(dehvf_kit.DehvfModel.generate).parameters
    assert {"inputs", "pixel_values", "vision_features", "has_image"} <= set(names)


def _hooks(module: torch.nn.Module) -> list[tuple[str, int]]:
    """Where hooks are and how many."""
    counts = [(name, len(part._forward_hooks) + len(part._forward_pre_hooks)) for name, part in module.named_modules()]
    return [(name, number) for name, number in counts if number]


def test_features_made_beforehand_do_not_train_a_vision_adapter():
    model = tiny_model()
    features = model.vision_features(pixels())
    model(input_ids=tokens(), vision_features=features)
    model.train()
    with pytest.raises(DehvfError, match="the vision adapter works inside the encoder"):
        model(input_ids=tokens(), vision_features=features)
    with torch.no_grad():
        model(input_ids=tokens(), vision_features=features)


def test_rows_that_share_a_picture_run_it_once(monkeypatch):
    """image_index: the same as the picture repeated, in forward and in generate, beside a row without one."""
    model, text, shots = tiny_model(), tokens(4), pixels(2)
    index, has_image = torch.tensor([1, 0, 1]), torch.tensor([True, True, False, True])
    repeated = model(text, pixel_values=shots[index], has_image=has_image).logits
    seen = []
    tower = model.towers["vision"]
    forward = tower.forward
    monkeypatch.setattr(tower, "forward", lambda given: (seen.append(len(given)), forward(given))[1])
    shared = model(text, pixel_values=shots, has_image=has_image, image_index=index).logits
    assert seen == [2]
    assert worst(shared, repeated) < 1e-5  # the encoder's batch is another, so its last bits may be; measured 5e-7
    kept = {"max_new_tokens": 3, "do_sample": False}
    once = model.generate(text, pixel_values=shots, has_image=has_image, image_index=index, **kept)
    assert torch.equal(once, model.generate(text, pixel_values=shots[index], has_image=has_image, **kept))
