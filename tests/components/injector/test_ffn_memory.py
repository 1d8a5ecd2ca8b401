"""The injector: what it holds, where it adds it, what it refuses."""

from __future__ import annotations

import pytest
import torch
from helpers import context, count, tiny_decoder, tokens, worst
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from dehvf_kit.api.config import ConfigMismatchError
from dehvf_kit.api.shapes import Readout
from dehvf_kit.components.injector.ffn_memory import FfnMemoryInjector, FfnMemoryInjectorConfig
from dehvf_kit.errors import DecoderError, ShapeError


def inputs(batch: int = 2, kv: int = 2, patches: int = 6, slots: int = 9):
    draw = torch.Generator().manual_seed(0)
    fused = torch.randn(batch, 4, kv, patches, 8, generator=draw)
    readout = Readout(F.silu, torch.randn(32, 8, generator=draw), torch.randn(32, generator=draw))
    return fused, readout, torch.randn(slots, 32, generator=draw), torch.randn(slots, 32, generator=draw)


@pytest.mark.parametrize("kv", [1, 2])
@pytest.mark.parametrize("visual_in", [("key",), ("value",), ("key", "value")])
@pytest.mark.parametrize("form", ["factored", "built", "auto"])
def test_adds_the_formula_at_every_ffn(form, visual_in, kv):
    """Worst error measured on an FFN's output: 1.6e-5, where the memory adds up to 46."""
    decoder = tiny_decoder()
    injector = FfnMemoryInjector(0.3, 0.7, 0.0, visual_in, form)
    injector.attach(decoder)
    fused, readout, keys, values = inputs(kv=kv)
    x = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(1))
    codes = F.silu(fused)
    for index, layer in enumerate(decoder.model.layers):
        plain = layer.mlp(x)
        with injector.holding(injector(fused, readout, keys, values, torch.tensor([True, False]))):
            found = layer.mlp(x) - plain
        for row in range(2):
            tables = []
            for name, role, table in (("key", 0, keys), ("value", kv - 1, values)):
                table = table.clone()
                if row == 0 and name in visual_in:
                    table[:6] += 0.3 * (codes[row, index, role] @ readout.weight.T + readout.bias)
                tables.append(table)
            expected = 0.7 * F.silu(x[row] @ tables[0].T) @ tables[1]
            assert worst(found[row], expected) < 2e-4
    injector.detach()


def test_rows_repeat_as_beams_do():
    decoder = tiny_decoder()
    injector = FfnMemoryInjector(0.3, 0.7)
    injector.attach(decoder)
    injector.eval()
    input_ids = tokens(2)
    with injector.holding(injector(*inputs())):
        once = decoder(input_ids=input_ids).logits
        repeated = decoder(input_ids=input_ids.repeat_interleave(3, 0)).logits
        assert worst(repeated, once.repeat_interleave(3, 0)) < 2e-5, "worst measured: 7.5e-9"
        with pytest.raises(ShapeError, match="decoder layer 0: 3 rows of text for 2 images; give one image a row"):
            decoder(input_ids=tokens(3))


def test_holding_nests_and_ends_with_an_error():
    injector = FfnMemoryInjector()
    first, second = injector(*inputs()), injector(*inputs())
    with injector.holding(first):
        with injector.holding(second):
            assert injector.memory is second
        assert injector.memory is first
        with pytest.raises(RuntimeError), injector.holding(second):
            raise RuntimeError
        assert injector.memory is first
    assert injector.memory is None


def test_attaching_twice_is_refused_and_detaching_twice_is_not():
    decoder, injector = tiny_decoder(), FfnMemoryInjector()
    injector.attach(decoder)
    with pytest.raises(DecoderError, match=r"attached already; detach\(\) it first"):
        injector.attach(decoder)
    injector.detach()
    injector.detach()
    injector.attach(decoder)


def test_more_patches_than_slots_are_refused():
    with pytest.raises(ShapeError, match="6 patches do not fit into 5 memory slots"):
        FfnMemoryInjector()(*inputs(slots=5))


def test_no_parameters():
    config = FfnMemoryInjectorConfig()
    assert config.num_params(context()) == {} and count(config.build(context())) == 0


WIRES = ("fused", "readout", "position_keys", "position_values", "has_image")


@pytest.mark.parametrize("visual_in", [("key",), ("key", "value")])
def test_cost_equals_counted_flops(visual_in):
    """The factored form's matrix products; the products with the projector's bias (1 / code of them) are not counted."""
    config = FfnMemoryInjectorConfig(visual_in=visual_in, form="factored")
    wired = context(axes={"patch": 6, "code": 8, "slot": 9}, wires=dict.fromkeys(WIRES, ()))
    injector, (fused, readout, keys, values) = config.build(wired), inputs(batch=1)
    decoder = tiny_decoder()
    injector.attach(decoder)
    injector.eval()

    def flops(memory) -> int:
        with FlopCounterMode(display=False) as counter, torch.no_grad(), injector.holding(memory):
            decoder(input_ids=tokens(1))
        return counter.get_total_flops()

    memory = injector(fused, Readout(F.silu, readout.weight, None), keys, values)
    assert flops(memory) - flops(None) == 7 * config.cost(wired).per_token


@pytest.mark.parametrize(
    ("wires", "settings", "axes", "field", "message"),
    [
        (("fused", "position_keys", "position_values"), {}, {}, "inputs", "has fused codes but no readout; wire a projector"),
        (("readout", "position_keys", "position_values"), {}, {}, "inputs", "has a readout but no fused codes; wire a fuser"),
        (("position_keys",), {}, {}, "inputs", "needs both position_keys and position_values, or neither"),
        (("has_image",), {}, {}, "inputs", "has nothing to inject; wire a fuser, a position table, or both"),
        (WIRES, {}, {"patch": 21}, "", "21 patches do not fit into 20 slots; set the position table's num_slots to 21 or more"),
        (WIRES[:2], {"visual_in": ("key",)}, {}, "visual_in", "without position tables the one not named is zero"),
    ],
)
def test_refused_when_wired(wires, settings, axes, field, message):
    with pytest.raises(ConfigMismatchError, match=message) as caught:
        FfnMemoryInjectorConfig(**settings).resolve(context(axes=axes, wires=dict.fromkeys(wires, ())))
    assert caught.value.field == field
