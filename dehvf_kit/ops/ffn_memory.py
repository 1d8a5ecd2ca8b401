"""Key/value memory beside a feed-forward network: the factored form, the built form, and the literal reference.

For FFN input x and S memory slots, method.md's injection adds

    output_scale * dropout(phi(x K^T)) M,   K = visual_scale * P(U_key) + p_K,   M = visual_scale * P(U_value) + p_V.

With P's last step linear (weight W, bias b) and H its activated codes, K and M need not exist:

    x K^T = visual_scale * ((x W) H_key^T + x b) + x p_K^T
    a M   = visual_scale * ((a H_value) W^T + (sum a) b) + a p_V

where the visual terms touch the first N slots only, of samples that have an image. Source: DEHVF, equations 10 to 13;
the factored form is exact algebra on them. Per layer, sample and token the factored form costs
4 * (hidden * code + code * patch + hidden * slot) FLOPs and stores patch * code numbers for each of K and M; the built form
costs 4 * hidden * slot per token after 4 * patch * code * hidden once, and stores slot * hidden numbers for each.
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

    key_codes, value_codes: activated codes [batch, patch, code], or None where the image is not written into
    keys or values. weight [hidden, code], bias [hidden] or None: the projector's last step. position_keys, position_values
    [slot, hidden] or None. has_image [batch] of 0/1 in the dtype of the codes, or None where every sample has one.
    Several images a row: `batch` then counts images (and rows without one), text_row [batch] says whose each is; None: one a row.
    order [batch, image]: 1 at an image's number in its row, 0 elsewhere and without an image; order_keys, order_values
    [image, hidden]: what every key and value of the image with that number gains.
    """

    key_codes: Tensor | None
    value_codes: Tensor | None
    weight: Tensor | None
    bias: Tensor | None
    position_keys: Tensor | None
    position_values: Tensor | None
    visual_scale: float = 0.01
    has_image: Tensor | None = None
    text_row: Tensor | None = None
    order: Tensor | None = None
    order_keys: Tensor | None = None
    order_values: Tensor | None = None

    def by_image(self, by_row: Tensor) -> Tensor:
        """What rows of text have [row, ...], for each of their images [batch, ...]."""
        return by_row if self.text_row is None else by_row[self.text_row]

    def by_row(self, by_image: Tensor, rows: int) -> Tensor:
        """Sums over each row's images [batch, ...] -> [row, ...]."""
        if self.text_row is None:
            return by_image
        return by_image.new_zeros(rows, *by_image.shape[1:]).index_add(0, self.text_row, by_image)

    def tensors(self) -> list[Tensor]:
        """The tensors this memory consists of."""
        found = (self.key_codes, self.value_codes, self.position_keys, self.position_values, self.weight)
        return [tensor for tensor in found if tensor is not None]


@dataclass(frozen=True)
class JoinedTable:
    """What keys, or values, need of the shared tables, stacked so that one matrix product a layer serves all of it.

    rows [code (+ 1) + slot, hidden]: the projector's last step (scaled), its bias where `bias_row`, the slots. Where every
    sample has an image the visual slots already contain the bias. Made once a batch: all decoder layers share it.
    """

    rows: Tensor
    code: int
    bias_row: bool

    @property
    def sizes(self) -> list[int]:
        """Lengths of the three parts of `rows`."""
        return [self.code, int(self.bias_row), self.rows.shape[0] - self.code - self.bias_row]


def join_tables(memory: LayerMemory, output_scale: float) -> tuple[JoinedTable | None, JoinedTable | None]:
    """The tables of keys and of values; `output_scale` goes into those of the values. None: there are none."""
    keys = _join(memory, memory.key_codes, memory.position_keys, 1.0)
    return keys, _join(memory, memory.value_codes, memory.position_values, output_scale)


def _join(memory: LayerMemory, codes: Tensor | None, positions: Tensor | None, scale: float) -> JoinedTable | None:
    positions = positions if positions is None or scale == 1.0 else scale * positions
    if codes is None:
        return None if positions is None else JoinedTable(positions, 0, False)
    visual = scale * memory.visual_scale
    rows, bias_row = [visual * memory.weight.T], False
    if memory.bias is not None:
        bias = (visual * memory.bias).unsqueeze(0)
        bias_row = memory.has_image is not None
        if bias_row:
            rows.append(bias)
        elif positions is None:
            positions = bias.expand(codes.shape[1], -1)
        elif positions.shape[0] == codes.shape[1]:
            positions = positions + bias
        else:
            positions = torch.cat([positions[: codes.shape[1]] + bias, positions[codes.shape[1] :]])
    if positions is not None:
        rows.append(positions)
    return JoinedTable(torch.cat(rows), codes.shape[2], bias_row)


def factored_memory(
    x: Tensor,
    memory: LayerMemory,
    activation: Activation,
    output_scale: float,
    dropout: float = 0.0,
    tables: tuple[JoinedTable | None, JoinedTable | None] | None = None,
) -> Tensor | None:
    """What the memory adds to FFN(x), without building keys or values.

    Shapes: x [batch, token, hidden] -> [batch, token, hidden]; None where the memory holds nothing at all. tables:
    `join_tables` of this batch, where they are at hand already.
    """
    keys, values = join_tables(memory, output_scale) if tables is None else tables
    if values is None:
        return None
    if keys is None:
        patches = values.sizes[2] if memory.value_codes is None else memory.value_codes.shape[1]
        scores = memory.by_image(x.new_zeros(*x.shape[:-1], patches))
    else:
        scores = _scores(x, memory, keys)
    if memory.order is not None:
        scores = scores + memory.by_image(F.linear(x, memory.order_keys)) @ memory.order[:, :, None]
    weights = activation(scores)
    if dropout:
        weights = F.dropout(weights, dropout)
    added = _values(weights, memory, values, x.shape[0])
    if memory.order is None:
        return added
    numbered = memory.by_row(weights.sum(-1, keepdim=True) * memory.order[:, None], x.shape[0])
    return added + output_scale * (numbered @ memory.order_values)


def _scores(x: Tensor, memory: LayerMemory, table: JoinedTable) -> Tensor:
    """x K^T, [batch, token, slot]."""
    products = memory.by_image(F.linear(x, table.rows))
    if memory.key_codes is None:
        return products
    code, bias, slots = table.sizes
    codes, patches = memory.key_codes.transpose(1, 2), memory.key_codes.shape[1]
    narrow, shared = products.split((code, bias + slots), dim=-1)
    if memory.has_image is None:
        if not slots:
            return torch.bmm(narrow, codes)
        if not torch.is_grad_enabled():
            _first(shared, patches).add_(torch.bmm(narrow, codes))
            return shared
        visual = torch.baddbmm(_first(shared, patches), narrow, codes)
    else:
        visual = torch.bmm(narrow, codes)
        if bias:
            bias_products, shared = shared.split((bias, slots), dim=-1)
            visual = visual + bias_products
        visual = visual * memory.has_image[:, None, None]
        if not slots:
            return visual
        visual = visual + _first(shared, patches)
    return visual if slots == patches else torch.cat([visual, shared[..., patches:]], dim=-1)


def _values(weights: Tensor, memory: LayerMemory, table: JoinedTable, rows: int) -> Tensor:
    """a M for the weights a [batch, token, slot], summed over each row's images."""
    code, bias, slots = table.sizes
    if not code:
        return memory.by_row(weights, rows) @ table.rows
    visual = _first(weights, memory.value_codes.shape[1])
    if memory.has_image is not None:
        visual = visual * memory.has_image[:, None, None]
    parts = [torch.bmm(visual, memory.value_codes)]
    if bias:
        parts.append(visual.sum(-1, keepdim=True))
    if slots:
        parts.append(_first(weights, slots))
    return memory.by_row(torch.cat(parts, dim=-1), rows) @ table.rows


def _first(tensor: Tensor, count: int) -> Tensor:
    """The first `count` of the last axis; all of it is the tensor itself, since a slice's backward fills a copy."""
    return tensor if tensor.shape[-1] == count else tensor[..., :count]


def build_keys_values(memory: LayerMemory) -> tuple[Tensor, Tensor]:
    """K and M of one layer, each [batch, slot, hidden]."""
    keys = _build(memory.key_codes, memory.position_keys, memory, memory.value_codes)
    values = _build(memory.value_codes, memory.position_values, memory, memory.key_codes)
    if memory.order is None:
        return keys, values
    return tuple(one + (memory.order @ table)[:, None] for one, table in ((keys, memory.order_keys), (values, memory.order_values)))


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
