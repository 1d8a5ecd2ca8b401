"""The model in training: who is trained, seeds, dropout, gradient checkpointing, half precision, compilation, copies."""

from __future__ import annotations

import copy

import pytest
import torch
from helpers import MIXED, pixels, randomise, reference_groups, tiny_decoder, tiny_model, tiny_recipe, tiny_vision, tokens, worst
from torch import Tensor

import dehvf_kit
from dehvf_kit.errors import DehvfError
from dehvf_kit.testing import tiny_decoder as family_decoder


def test_every_node_is_trained_and_no_tower_is():
    model = tiny_model()
    model.train()
    input_ids = tokens()
    model(input_ids, labels=input_ids, pixel_values=pixels(), has_image=MIXED).loss.backward()

    trained = model.named_trainable_parameters()
    assert {name.split(".")[0] for name in trained} == {"vision_adapter", "layer_query", "projector", "fuser", "position"}
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
    assert (weights[:, 3, :, 3] == 0).all() and (weights[:, :3] > 0).all(), "the short group's missing place weighs nothing"
    for axis in range(3):
        assert (weights.select(axis, 0) - weights.select(axis, 1)).abs().max() > 1e-4


def test_dropout_works_in_training_only():
    model = tiny_model(graph={"injector": {"dropout": 0.5}, "vision_adapter": {"dropout": 0.5}})
    input_ids, pixel_values = tokens(), pixels()
    assert torch.equal(model(input_ids, pixel_values=pixel_values).logits, model(input_ids, pixel_values=pixel_values).logits)
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


@pytest.mark.parametrize("family", ["opt", "bart", pytest.param("xglm", marks=pytest.mark.nightly)])
def test_gradient_checkpointing_brings_no_dropout_of_the_frozen_decoder(family: str) -> None:
    """OPT's, BART's and XGLM's layers drop out by their own flag `training`, by which transformers chooses what to run again.

    With BART's, the stack above them drops its embeddings too. Bit-identical to no checkpointing, also after an evaluation between
    forward and backward.
    """
    decoder = family_decoder(family, dropout=0.5, attention_dropout=0.5, activation_dropout=0.5)
    model = tiny_model(decoder, graph={"grouper": {"num_groups": 2}})
    input_ids, pixel_values = tokens() % decoder.config.vocab_size, pixels()

    def step(evaluated: bool = False) -> dict[str, Tensor]:
        model.train()
        torch.manual_seed(11)
        loss = model(input_ids, labels=input_ids, pixel_values=pixel_values, has_image=MIXED, use_cache=False).loss
        if evaluated:
            model.eval()
        return {"loss": loss.detach(), **gradients(loss, model)}

    plain = step()
    model.gradient_checkpointing_enable()
    for found in (step(), step(evaluated=True)):
        assert all(torch.equal(found[name], plain[name]) for name in plain)
    assert not any(part.training for part in decoder.modules())
    assert all(torch.equal(one, plain[name]) for name, one in step().items())
    assert model.is_gradient_checkpointing


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


def test_gradient_checkpointing_keeps_nothing_of_the_graph_but_runs_it_again():
    model = tiny_model()
    model.train()
    runs: list[int] = []
    model.nodes["fuser"].register_forward_pre_hook(lambda *_: runs.append(1))
    ids = tokens(2)
    for enabled, expected in ((False, 1), (True, 2)):
        if enabled:
            model.gradient_checkpointing_enable()
        runs.clear()
        model(ids, labels=ids, pixel_values=pixels(2), use_cache=False).loss.backward()
        assert len(runs) == expected


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
