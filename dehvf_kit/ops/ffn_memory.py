"""Key/value memory beside a feed-forward network: the factored form, the built form, and the literal reference.

For FFN input x and S memory slots, method.md's injection adds

    output_scale * dropout(phi(x K^T)) M,   K = visual_scale * P(U_key) + p_K,   M = visual_scale * P(U_value) + p_V.

With P's last step linear (weight W, bias b) and H its activated codes, K and M need not exist:

    x K^T = visual_scale * ((x W) H_key^T + x b) + x p_K^T
    a M   = visual_scale * ((a H_value) W^T + (sum a) b) + a p_V

where the visual terms touch the first N slots only, of samples that have an image. Source: DEHVF, equations 10 to 13;
the factored form is exact algebra on them. Per layer, sample and token the factored form costs
4 * (hidden * code + code * patch + hidden * slot) FLOPs and holds patch * code numbers a role; the built form costs
4 * hidden * slot a token after 4 * patch * code * hidden once, and holds slot * hidden numbers a role.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Activation = Callable[[Tensor], Tensor]
Form = Literal["auto", "factored", "built"]


@dataclass
class LayerMemory:
    """One decoder layer's memory in factored form.

    key_codes, value_codes: activated codes [batch, patch, code], or None where the picture is not written into that
    role. weight [hidden, code], bias [hidden] or None: the projector's last step. position_keys, position_values
    [slot, hidden] or None. has_image [batch] of 0/1 in the dtype of the codes, or None where every sample has one.
    """

    key_codes: Tensor | None
    value_codes: Tensor | None
    weight: Tensor | None
    bias: Tensor | None
    position_keys: Tensor | None
    position_values: Tensor | None
    visual_scale: float = 0.01
    has_image: Tensor | None = None

    def tensors(self) -> list[Tensor]:
        """The tensors this memory consists of."""
        found = (self.key_codes, self.value_codes, self.position_keys, self.position_values, self.weight)
        return [tensor for tensor in found if tensor is not None]


def factored_memory(
    x: Tensor, memory: LayerMemory, activation: Activation, output_scale: float, dropout: float = 0.0
) -> Tensor | None:
    """What the memory adds to FFN(x), without building keys or values.

    Shapes: x [batch, token, hidden] -> [batch, token, hidden]; None where the memory holds nothing at all.
    """
    scores = _scores(x, memory)
    if scores is None:
        return None
    weights = activation(scores)
    if dropout:
        weights = F.dropout(weights, dropout)
    weights = output_scale * weights
    output: Tensor | None = None
    if memory.position_values is not None:
        output = weights @ memory.position_values
    if memory.value_codes is not None:
        visual = _visual_values(weights[..., : memory.value_codes.shape[1]], memory)
        output = visual if output is None else output + visual
    return output


def _scores(x: Tensor, memory: LayerMemory) -> Tensor | None:
    """x K^T, [batch, token, slot]."""
    scores = None if memory.position_keys is None else x @ memory.position_keys.T
    if memory.key_codes is None:
        if scores is None and memory.value_codes is not None:
            return x.new_zeros(*x.shape[:-1], memory.value_codes.shape[1])
        return scores
    narrow = memory.visual_scale * (x @ memory.weight)
    visual = narrow @ memory.key_codes.transpose(1, 2)
    if memory.bias is not None:
        visual = visual + memory.visual_scale * (x @ memory.bias).unsqueeze(-1)
    if memory.has_image is not None:
        visual = visual * memory.has_image[:, None, None]
    if scores is None:
        return visual
    missing = scores.shape[-1] - visual.shape[-1]
    return scores + (F.pad(visual, (0, missing)) if missing else visual)


def _visual_values(weights: Tensor, memory: LayerMemory) -> Tensor:
    """a M_visual for the weights a [batch, token, patch] of the visual slots."""
    scale = memory.visual_scale
    if memory.has_image is not None:
        weights = weights * memory.has_image[:, None, None]
    output = (scale * (weights @ memory.value_codes)) @ memory.weight.T
    if memory.bias is not None:
        output = output + (scale * weights.sum(-1, keepdim=True)) * memory.bias
    return output


def build_keys_values(memory: LayerMemory) -> tuple[Tensor, Tensor]:
    """K and M of one layer, each [batch, slot, hidden]."""
    return (
        _build(memory.key_codes, memory.position_keys, memory, memory.value_codes),
        _build(memory.value_codes, memory.position_values, memory, memory.key_codes),
    )


def _build(codes: Tensor | None, positions: Tensor | None, memory: LayerMemory, other: Tensor | None) -> Tensor:
    if codes is None:
        if positions is not None:
            return positions.unsqueeze(0)
        return memory.weight.new_zeros(1, other.shape[1], memory.weight.shape[0])
    visual = memory.visual_scale * F.linear(codes, memory.weight, memory.bias)
    if memory.has_image is not None:
        visual = visual * memory.has_image[:, None, None]
    if positions is None:
        return visual
    missing = positions.shape[0] - visual.shape[1]
    return (F.pad(visual, (0, 0, 0, missing)) if missing else visual) + positions


def built_memory(
    x: Tensor, keys: Tensor, values: Tensor, activation: Activation, output_scale: float, dropout: float = 0.0
) -> Tensor:
    """output_scale * dropout(act(x K^T)) V. Shapes: x [batch, token, hidden], keys and values [batch or 1, slot, hidden]."""
    weights = activation(x @ keys.transpose(1, 2))
    if dropout:
        weights = F.dropout(weights, dropout)
    return (output_scale * weights) @ values


def choose_form(tokens: int, patches: int, code: int, hidden: int) -> Literal["factored", "built"]:
    """The form with fewer FLOPs for one pass of `tokens` text tokens a sample.

    The position slots cost both forms the same. For the visual part the factored form pays 4 * tokens * code *
    (hidden + patches); the built one 4 * patches * code * hidden before the pass (its per-token work on the visual slots
    is part of the product with the position slots).
    """
    return "built" if tokens * (hidden + patches) > patches * hidden else "factored"


def literal_ffn(
    x: Tensor,
    up: Tensor,
    gate: Tensor | None,
    down: Tensor,
    keys: Tensor,
    values: Tensor,
    activation: Activation,
    output_scale: float,
) -> Tensor:
    """The paper's equation read literally, for one sample: keys and values are concatenated into the FFN's own weights.

    Shapes: x [token, hidden], up and gate [intermediate, hidden], down [hidden, intermediate], keys and values
    [slot, hidden] -> [token, hidden]. A gated FFN's memory slots have no gate. Slow; tests compare the fast forms with it.
    Source: DEHVF, equation 13.
    """
    wide = torch.cat([up if gate is None else gate, keys])
    inner = activation(x @ wide.T)
    if gate is not None:
        linear = torch.cat([x @ up.T, x.new_ones(x.shape[0], keys.shape[0])], dim=-1)
        inner = inner * linear
    return inner @ torch.cat([down.T, output_scale * values])
