"""The model taken apart and put together: several encoders, several adapters, plain Python, the public signatures."""

from __future__ import annotations

import copy
import inspect

import pytest
import torch
from helpers import MIXED, pixels, randomise, raw_recipe, tiny_decoder, tiny_model, tiny_vision, tokens, worst

import dehvf_kit
from dehvf_kit.errors import DehvfError, ShapeError


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
    assert {name: tuple(tensor.shape) for name, tensor in features.items()} == {"clip": (3, 8, 17, 24), "dino": (3, 2, 5, 16)}
    assert torch.equal(model(input_ids, vision_features=features).logits, output.logits)
    for name, size in (("clip", 32), ("dino", 28)):
        changed = {**pictures, name: torch.cat([pictures[name][:2], pixels(1, seed=40, size=size)])}
        logits = model(input_ids, pixel_values=changed).logits
        assert torch.equal(logits[:2], output.logits[:2]) and worst(logits[2], output.logits[2]) > 1e-4, name
    assert [name for name, p in model.named_trainable_parameters().items() if p.grad is None or not p.grad.any()] == []
    mixed = model(input_ids, pixel_values={name: value[MIXED] for name, value in pictures.items()}, has_image=MIXED).logits
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
