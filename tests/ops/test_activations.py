"""The activations a recipe can name are transformers' of the same name."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from transformers.activations import ACT2FN

from dehvf_kit.ops.activations import ACTIVATIONS, ActivationName

THEIRS = {"silu": "silu", "gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh", "relu": "relu", "tanh": "tanh", "identity": "linear"}


@pytest.mark.parametrize("name", get_args(ActivationName))
def test_equals_transformers(name):
    x = torch.linspace(-4, 4, 33)
    assert torch.equal(ACTIVATIONS[name](x), ACT2FN[THEIRS[name]](x))
