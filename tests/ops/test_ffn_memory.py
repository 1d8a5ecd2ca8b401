"""The factored and the built form of an FFN's memory against the paper's equation with concatenated weights."""

from __future__ import annotations

import itertools

import pytest
import torch
from helpers import worst
from torch import Tensor
from torch.nn import functional as F

from dehvf_kit.ops.ffn_memory import LayerMemory, build_keys_values, built_memory, choose_form, factored_memory, literal_ffn

BATCH, TOKENS, HIDDEN, CODE, PATCHES, SLOTS = 3, 5, 12, 4, 6, 9
ACTIVATIONS = {"silu": F.silu, "gelu": F.gelu, "relu": F.relu}


def memory(key=True, value=True, positions=True, bias=True, flags=True, seed: int = 0) -> LayerMemory:
    draw = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw).requires_grad_()

    return LayerMemory(
        random(BATCH, PATCHES, CODE) if key else None,
        random(BATCH, PATCHES, CODE) if value else None,
        random(HIDDEN, CODE),
        random(HIDDEN) if bias else None,
        random(SLOTS, HIDDEN) if positions else None,
        random(SLOTS, HIDDEN) if positions else None,
        visual_scale=0.3,
        has_image=torch.tensor([1.0, 0.0, 1.0]) if flags else None,
    )


def tables(held: LayerMemory, row: int) -> tuple[Tensor, Tensor]:
    """K and M of one sample: slot by slot."""
    slots = PATCHES if held.position_keys is None else SLOTS
    pair = []
    for codes, positions in ((held.key_codes, held.position_keys), (held.value_codes, held.position_values)):
        rows = []
        for slot in range(slots):
            vector = torch.zeros(HIDDEN) if positions is None else positions[slot]
            if codes is not None and slot < PATCHES and (held.has_image is None or held.has_image[row]):
                projected = held.weight @ codes[row, slot] + (0 if held.bias is None else held.bias)
                vector = vector + held.visual_scale * projected
            rows.append(vector)
        pair.append(torch.stack(rows))
    return pair[0], pair[1]


CASES = [
    dict(zip(("key", "value", "positions", "bias", "flags"), case, strict=True))
    for case in itertools.product([True, False], repeat=5)
    if case[0] or case[1]
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(name for name, on in case.items() if on))
def test_factored_and_built_equal_slot_by_slot(case):
    """Forward and gradients. Worst errors measured: outputs 5.8e-6, gradients 5.8e-6."""
    held = memory(**case)
    x = torch.randn(BATCH, TOKENS, HIDDEN, generator=torch.Generator().manual_seed(9))
    expected = torch.stack([0.7 * F.silu(x[row] @ tables(held, row)[0].T) @ tables(held, row)[1] for row in range(BATCH)])
    factored = factored_memory(x, held, F.silu, 0.7)
    built = built_memory(x, *build_keys_values(held), F.silu, 0.7)

    if factored is None:
        assert not expected.any() and not built.any(), "keys without any values"
        return
    with torch.no_grad():  # adds in place where no gradient is kept
        in_place = factored_memory(x, held, F.silu, 0.7)
    assert max(worst(found, expected) for found in (factored, in_place, built)) < 2e-5
    parameters = [tensor for tensor in [*held.tensors(), held.bias] if tensor is not None]
    seed = torch.randn(expected.shape, generator=torch.Generator().manual_seed(4))
    wanted = torch.autograd.grad(expected, parameters, seed, retain_graph=True, allow_unused=True)
    for output in (factored, built):
        found = torch.autograd.grad(output, parameters, seed, retain_graph=True, allow_unused=True)
        for ours, theirs in zip(found, wanted, strict=True):
            assert worst(zero_if_none(ours, theirs), zero_if_none(theirs, ours)) < 2e-5


def zero_if_none(gradient: Tensor | None, other: Tensor | None) -> Tensor:
    if gradient is not None:
        return gradient
    return torch.zeros(()) if other is None else torch.zeros_like(other)


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("gated", [True, False])
def test_literal_ffn_is_the_ffn_plus_its_memory(gated, name):
    """The reference itself: FFN(x) + output_scale * act(x K^T) M. Worst error measured: 1.2e-7."""
    draw = torch.Generator().manual_seed(3)
    x, up, gate, down, keys, values = (
        torch.randn(*shape, generator=draw) / 3 for shape in ((5, 12), (20, 12), (20, 12), (12, 20), (9, 12), (9, 12))
    )
    act = ACTIVATIONS[name]
    inner = act(x @ gate.T) * (x @ up.T) if gated else act(x @ up.T)
    expected = inner @ down.T + 0.7 * act(x @ keys.T) @ values
    assert worst(literal_ffn(x, up, gate if gated else None, down, keys, values, act, 0.7), expected) < 1e-6


def test_a_memory_of_nothing_adds_nothing():
    assert factored_memory(torch.randn(1, 2, HIDDEN), LayerMemory(None, None, None, None, None, None), F.silu, 0.7) is None


def test_dropout_acts_on_slots_and_keeps_the_mean():
    held, x = memory(), torch.randn(BATCH, TOKENS, HIDDEN, generator=torch.Generator().manual_seed(9))
    torch.manual_seed(0)
    for run in (
        lambda dropout: factored_memory(x, held, F.silu, 0.7, dropout),
        lambda dropout: built_memory(x, *build_keys_values(held), F.silu, 0.7, dropout),
    ):
        with torch.no_grad():
            mean = torch.stack([run(0.2) for _ in range(3000)]).mean(0)
            assert worst(mean, run(0.0)) < 0.05 * run(0.0).abs().max().item(), "worst measured: 0.016 of the largest"
            assert not torch.equal(run(0.2), run(0.2))


@pytest.mark.parametrize("tokens", [1, 8, 64, 512, 4096])
@pytest.mark.parametrize(("patches", "code", "hidden"), [(256, 128, 4096), (16, 8, 32), (256, 64, 576)])
def test_the_chosen_form_is_the_cheaper_one(tokens, patches, code, hidden):
    """FLOPs of the visual part: the codes' products, or building K and M; the position slots cost both the same."""
    factored = 4 * tokens * code * (hidden + patches)
    built = 4 * patches * code * hidden
    assert choose_form(tokens, patches, code, hidden) == ("built" if built < factored else "factored")
