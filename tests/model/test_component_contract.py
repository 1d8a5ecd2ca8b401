"""A plugin's component that attaches to a tower: its contract, and the kit's own error where it does not keep it."""

from __future__ import annotations

from typing import ClassVar, Literal

import pytest
import torch
from helpers import pixels, raw_recipe, tiny_decoder, tiny_vision, tokens
from torch import nn

import dehvf_kit
from dehvf_kit.api import BuildContext, ComponentConfig, DecoderComponent, DecoderError, PluginError
from dehvf_kit.model.builder import component_faults
from dehvf_kit.recipe.plugin_manager import plugins
from dehvf_kit.testing import Broken, check_component

MODULE: list[type[nn.Module]] = []


class ShiftConfig(ComponentConfig):
    """Adds a learned vector in every layer."""

    role: ClassVar[str] = "decoder_adapter"
    takes: ClassVar[tuple[str, ...]] = ("has_image?: batch",)
    attaches: ClassVar[str] = "decoder"
    type: Literal["shift"] = "shift"

    def num_params(self, context: BuildContext) -> dict[str, int]:
        return {"shift": context.decoder.hidden_size}

    def build(self, context: BuildContext) -> nn.Module:
        return MODULE[-1](context.decoder.hidden_size)


class Plain(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.ones(size))

    def attach(self, decoder: nn.Module) -> None:
        raise KeyError("no such layer")

    def forward(self, has_image=None):
        return self.shift


class Shift(DecoderComponent):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.ones(size))

    def hook(self, decoder: nn.Module):
        for layer in decoder.model.layers:
            yield layer.register_forward_hook(lambda module, args, output: output if self.memory is None else output + self.memory)

    def forward(self, has_image=None):
        return self.shift


class Failing(Shift):
    def hook(self, decoder: nn.Module):
        yield from super().hook(decoder)
        raise KeyError("no such layer")


class OtherPorts(Shift):
    def forward(self, image_flags):
        return self.shift


def build(module: type[nn.Module]) -> tuple[dehvf_kit.DehvfModel, nn.Module]:
    if ("decoder_adapter", "shift") not in plugins().registry.configs:
        plugins().registry.register(ShiftConfig)
    MODULE[:] = [module]
    decoder = tiny_decoder()
    recipe = dehvf_kit.parse_recipe(raw_recipe(graph={"shift": {"role": "decoder_adapter", "type": "shift"}}))
    return dehvf_kit.build(recipe, decoder=decoder, vision=tiny_vision()), decoder


@pytest.mark.parametrize(
    ("module", "says"),
    [
        (Plain, r"graph.shift \(shift\): attaches = 'decoder', but its module has no detach, holding, memory; .*DecoderComponent"),
        (OtherPorts, r"graph.shift \(shift\): its ports here are has_image, .*image_flags"),
        (Failing, r"graph.shift: the plugin's 'shift' raised KeyError: 'no such layer' \(.*in hook\)"),
    ],
)
def test_what_does_not_keep_the_contract_is_named(module, says):
    with pytest.raises(PluginError, match=says):
        build(module)


def test_hooks_placed_before_an_error_are_taken_off():
    decoder = tiny_decoder()
    with pytest.raises(KeyError):
        Failing(32).attach(decoder)
    assert not any(part._forward_hooks for part in decoder.modules())


def test_the_parent_holds_the_memory_also_when_layers_are_recomputed():
    grads = []
    for checkpointing in (False, True):
        model, _ = build(Shift)
        model.train()
        if checkpointing:
            model.activation_checkpointing_enable()
        ids = tokens(2)
        model(input_ids=ids, labels=ids, pixel_values=pixels(2)).loss.backward()
        grads.append(model.nodes["shift"].shift.grad)
    assert grads[0].abs().sum() > 0
    torch.testing.assert_close(grads[1], grads[0])  # worst difference seen 1e-9


def test_detach_gives_the_decoder_back():
    model, decoder = build(Shift)
    with model:
        with_memory = model(input_ids=tokens(2), pixel_values=pixels(2)).logits
        plain = decoder(input_ids=tokens(2)).logits
    assert not torch.equal(with_memory, plain), "it adds where the model runs, and nowhere else"
    assert torch.equal(decoder(input_ids=tokens(2)).logits, tiny_decoder()(input_ids=tokens(2)).logits)


def test_the_contract_suite_passes_a_component_and_names_what_another_breaks():
    MODULE[:] = [Shift]
    assert {result.status for result in check_component(ShiftConfig)} == {"pass"}

    class AlwaysOn(Shift):
        def hook(self, decoder: nn.Module):
            yield decoder.model.layers[0].register_forward_hook(lambda module, args, output: output + self.shift)

    MODULE[:] = [AlwaysOn]
    with pytest.raises(Broken, match=r"detach: broken \(the decoder alone answers otherwise"):
        check_component(ShiftConfig, items=["detach"])


class Copied(Shift):
    """Reads a copy of the first batch's memory, for ever."""

    def hook(self, decoder: nn.Module):
        yield decoder.model.layers[0].register_forward_hook(lambda module, args, output: output + getattr(self, "copy", 0))

    def forward(self, has_image=None):
        self.copy = self.shift
        return self.shift


class Unmasked(Shift):
    """Adds to every row of a batch in which one has an image."""

    def forward(self, has_image=None):
        return None if has_image is None or not has_image.any() else self.shift


class NotFinite(Shift):
    def forward(self, has_image=None):
        return self.shift / 0


@pytest.mark.parametrize(
    ("module", "item", "says"),
    [
        (Copied, "detach", "the decoder alone answers otherwise while attached; read self.memory"),
        (Unmasked, "rows", "a row without image differs beside one that has; take has_image"),
        (NotFinite, "rows", "the logits are not finite"),
    ],
)
def test_the_contract_suite_names_what_a_component_does_wrong(module, item, says):
    MODULE[:] = [module]
    with pytest.raises(Broken, match=says):
        check_component(ShiftConfig, items=[item])


def test_the_contract_suite_runs_the_class_it_is_given():
    """Not another one that is installed under its type; and one whose type is not what recipes will write is refused."""
    build(Shift)
    installed = plugins().registry.find("decoder_adapter", "shift")

    class Newer(ShiftConfig):
        def build(self, context: BuildContext) -> nn.Module:
            return Copied(context.decoder.hidden_size)

    with pytest.raises(Broken, match="detach"):
        check_component(Newer, items=["detach"])
    assert plugins().registry.find("decoder_adapter", "shift") is installed

    class Unlike(ShiftConfig):
        type: Literal["unlike"] = "shift"

    with pytest.raises(PluginError, match=r"its type is Literal\['unlike'\], and its default 'shift'"):
        check_component(Unlike)


class NoHandles(Shift):
    def hook(self, decoder: nn.Module):
        super().hook(decoder)


class WrongShape(Shift):
    def hook(self, decoder: nn.Module):
        yield decoder.model.layers[0].register_forward_hook(lambda module, args, output: self.added(output))

    def added(self, output):
        return output if self.memory is None else output + self.memory[:3]


def test_what_goes_wrong_in_a_hook_is_one_line_with_its_place():
    with pytest.raises(DecoderError, match="NoHandles.hook returned NoneType; it must yield, or list, its handles"):
        build(NoHandles)
    model, _ = build(WrongShape)
    with pytest.raises(PluginError, match=r"graph.shift: the plugin's 'shift' raised RuntimeError: .*, in added\)"):
        model(input_ids=tokens(2), pixel_values=pixels(2))


def test_a_layer_that_is_recomputed_may_end_inside_a_hook():
    """torch ends the second run by an exception as soon as it has what it kept, here in the component's own code."""

    class Scaled(Shift):
        def hook(self, decoder: nn.Module):
            yield dehvf_kit.hook_ffns(decoder, dehvf_kit.ffn_sites(decoder), self.scaled)

        def scaled(self, index, x):
            return None if self.memory is None else x * self.memory

    MODULE[:] = [Scaled]
    assert check_component(ShiftConfig, graph={}, items=["checkpointing"])[0].status == "pass"


def test_check_compares_ports_with_forward():
    build(Shift)
    MODULE[:] = [OtherPorts]
    recipe = dehvf_kit.parse_recipe(raw_recipe(graph={"shift": {"role": "decoder_adapter", "type": "shift"}}))
    (fault,) = component_faults(recipe.check())
    assert fault.path == "graph.shift" and "its ports here are has_image" in fault.message
    MODULE[:] = [Shift]
    assert component_faults(recipe.check()) == []
