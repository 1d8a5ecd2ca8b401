"""A linear map over patches that lie between other tokens in memory."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

MOST_EXTRA = 1 / 16  # of the rows: below it, computing rows that are thrown away costs less than copying the others


def linear_of_slice(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """F.linear(x, weight, bias), where x is a slice of contiguous rows: [..., 1:, :] of [..., row, width], say.

    `F.linear` copies such a slice together first, and keeps the copy for backward. Here the rows before it, where they
    are few, are computed too and dropped from the narrower result. Frozen features only: a slice that wants a gradient
    is left to `F.linear`.
    Shapes: x [..., row, width], weight [out, width], bias [out] -> [..., row, out].
    """
    dropped = _rows_before(x)
    if not dropped:
        return F.linear(x, weight, bias)
    *lead, rows, width = x.shape
    whole = x.as_strided((*lead, dropped + rows, width), x.stride(), x.storage_offset() - dropped * width)
    return F.linear(whole, weight, bias)[..., dropped:, :]


def _rows_before(x: Tensor) -> int:
    """Rows that lie before each run of x's, where x is evenly spaced runs of rows and they are few; else 0."""
    if x.requires_grad or x.ndim < 3 or x.is_contiguous() or torch.compiler.is_compiling():
        return 0
    *lead, rows, width = x.shape
    step = x.stride(-3)
    spaced = [step]
    for size in reversed(lead[1:]):
        spaced.insert(0, spaced[0] * size)
    if list(x.stride()) != [*spaced, width, 1] or step % width:
        return 0
    before = step // width - rows
    return before if 0 < before <= rows * MOST_EXTRA and x.storage_offset() >= before * width else 0
