"""LaVIN's mixture-of-modality adapter: two small grouped maps, mixed by a router that looks at one token.

Source: LaVIN, arXiv:2305.15023, and its public code. What the code does by mistake is not done here: its CLIP router reads
sample 0 of the batch for all samples (axes swapped), so that features depend on batch neighbours; here each sample has its
own weights. Its cached decoding is one rotary position off; here cached and uncached generation agree.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from dehvf_kit.api import ComponentConfig

EXPERTS = 2


class MixtureConfig(ComponentConfig):
    """Settings of the adapter, wherever it stands."""

    width: int = Field(8, ge=1, description="width of the adapters")
    groups: int = Field(2, ge=1, description="groups that the expanding maps are cut into")
    temperature: float = Field(10.0, gt=0, description="of the router's softmax: LaVIN has 10 at 7B, 5 at 13B")
    scale: float = Field(1.0, gt=0, description="scale of what an adapter adds")
    dropout: float = Field(0.1, ge=0, lt=1, description="dropout inside the adapters, in training")


class MixtureAdapter(nn.Module):
    """out = x + scale * (w_0 B z + w_1 C z), z = dropout(A x), w = softmax(R token / temperature).

    A: hidden -> width; B, C: width -> hidden in groups (the first part of the outputs sees the first part of z); all with
    biases. A is Xavier, B and C are zero, so the adapter starts as the identity.
    Shapes: x [rows, token, hidden], weights [rows, 2] -> x's. Parameters: (2 + 2 * width) * hidden + width + 2 and
    2 * hidden biases, less where groups share.
    """

    def __init__(self, hidden_size: int, width: int, groups: int, temperature: float, scale: float, dropout: float) -> None:
        super().__init__()
        self.groups, self.temperature, self.scale, self.dropout = groups, temperature, scale, dropout
        self.router = nn.Linear(hidden_size, EXPERTS)
        self.down = nn.Linear(hidden_size, width)
        self.up = nn.ModuleList(nn.Conv1d(width, hidden_size, 1, groups=groups) for _ in range(EXPERTS))
        nn.init.xavier_uniform_(self.down.weight)
        nn.init.zeros_(self.down.bias)
        for expert in self.up:
            nn.init.zeros_(expert.weight)
            nn.init.zeros_(expert.bias)

    def weigh(self, token: Tensor) -> Tensor:
        """The experts' weights from one token [rows, hidden] -> [rows, 2], summing to one."""
        scores = F.linear(token, self.router.weight.to(token.dtype), self.router.bias.to(token.dtype))
        return (scores.float() / self.temperature).softmax(-1).to(token.dtype)

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        inner = F.linear(x, self.down.weight.to(x.dtype), self.down.bias.to(x.dtype))
        inner = F.dropout(inner, self.dropout, self.training)
        parts = inner.unflatten(-1, (self.groups, -1))
        mixed = torch.stack([self._expand(parts, place) for place in range(EXPERTS)], dim=1)
        return x + self.scale * (weights[:, :, None, None] * mixed).sum(1)

    def _expand(self, parts: Tensor, place: int) -> Tensor:
        """One expert on z in its groups [rows, token, group, part] -> [rows, token, hidden]."""
        expert = self.up[place]
        weight = expert.weight.squeeze(-1).unflatten(0, (self.groups, -1)).to(parts.dtype)
        grown = torch.einsum("rtgp,gop->rtgo", parts, weight)
        return grown.flatten(2) + expert.bias.to(parts.dtype)


def mixture_params(hidden_size: int, width: int, groups: int) -> int:
    """Parameters of one adapter: 81,930 for a width of 4096, 20,490 for 1024."""
    router = EXPERTS * hidden_size + EXPERTS
    down = width * hidden_size + width
    up = EXPERTS * (hidden_size * width // groups + hidden_size)
    return router + down + up


def check_groups(hidden_size: int, width: int, groups: int) -> None:
    """Raises: ConfigMismatchError where the groups do not divide both widths."""
    from dehvf_kit.api import ConfigMismatchError

    if width % groups or hidden_size % groups:
        raise ConfigMismatchError(f"{groups} groups do not divide a width of {width} and a hidden size of {hidden_size}", "groups")
