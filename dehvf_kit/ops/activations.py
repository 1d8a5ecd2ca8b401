"""The activations a recipe can name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

ActivationName = Literal["silu", "gelu", "gelu_tanh", "relu", "tanh", "identity"]

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": torch.nn.functional.silu,
    "gelu": torch.nn.functional.gelu,
    "gelu_tanh": lambda x: torch.nn.functional.gelu(x, approximate="tanh"),
    "relu": torch.nn.functional.relu,
    "tanh": torch.tanh,
    "identity": lambda x: x,
}
