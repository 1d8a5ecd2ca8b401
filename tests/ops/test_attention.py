"""Attention over the members of a group, and which implementation runs it."""

from __future__ import annotations

import math

import pytest
import torch
from helpers import worst

from dehvf_kit.errors import DehvfError
from dehvf_kit.ops import attention as module
from dehvf_kit.ops.attention import attention, pick_backend


@pytest.mark.parametrize("masked", [False, True])
def test_equals_the_formula(masked):
    """Worst error measured: 2.4e-7."""
    draw = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, length, 3, 4, generator=draw) for length in (5, 6, 6))
    mask = torch.tensor([[True] * 6, [True, False, True, True, False, False]]) if masked else None
    expected = torch.zeros(2, 5, 3, 4)
    for row in range(2):
        kept = range(6) if mask is None else mask[row].nonzero().flatten().tolist()
        for place in range(5):
            for head in range(3):
                scores = torch.stack([q[row, place, head] @ k[row, key, head] / math.sqrt(4) for key in kept])
                weights = scores.softmax(0)
                expected[row, place, head] = sum(w * v[row, key, head] for w, key in zip(weights, kept, strict=True))
    assert worst(attention(q, k, v, mask), expected) < 1e-6


def test_auto_falls_back_and_a_name_is_taken_at_its_word(monkeypatch):
    q = torch.zeros(1, 2, 3, 4)
    assert pick_backend(q, q, masked=False) == pick_backend(q, q, masked=False, backend="sdpa") == "sdpa"
    for installed, reason in ((False, "xformers is not installed"), (True, "the tensors are on cpu, not on cuda")):
        monkeypatch.setattr(module, "xformers_installed", lambda installed=installed: installed)
        with pytest.raises(DehvfError, match=f"'xformers' cannot run here: {reason}; use 'auto' or 'sdpa'"):
            pick_backend(q, q, masked=False, backend="xformers")


def test_a_masked_cuda_tensor_is_refused_by_name():
    class Cuda:
        device = torch.device("cuda")

    assert module._xformers_refusal(Cuda(), Cuda(), masked=True) in (
        "xformers is not installed",
        "groups of different sizes need a mask",
    )
