"""A router of a mixture of experts is told from attention, though both call softmax and multiply matrices."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from dehvf_kit.backbones.ffn.sites import ffn_sites
from dehvf_kit.backbones.ffn.structure import mixes_tokens
from dehvf_kit.errors import DecoderError

WIDTH, INNER, EXPERTS = 8, 16, 3


class Experts(nn.Module):
    """Stacked weights of experts and a router's."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.randn(WIDTH, EXPERTS))
        self.up = nn.Parameter(torch.randn(EXPERTS, WIDTH, INNER))
        self.down = nn.Parameter(torch.randn(EXPERTS, INNER, WIDTH))


class MatmulRouter(Experts):
    def forward(self, x):
        shares = torch.softmax(torch.matmul(x, self.gate), dim=-1)
        best, index = shares.topk(1, dim=-1)
        rows = x.reshape(-1, 1, WIDTH)
        chosen = index.reshape(-1)
        out = torch.bmm(F.silu(torch.bmm(rows, self.up[chosen])), self.down[chosen])
        return out.reshape(x.shape) * best


class EinsumRouter(Experts):
    def forward(self, x):
        shares = F.softmax(torch.einsum("bth,he->bte", x, self.gate), dim=-1)
        inner = F.gelu(torch.einsum("bth,ehf->btef", x, self.up))
        return torch.einsum("bte,bteh->bth", shares, torch.einsum("btef,efh->bteh", inner, self.down))


class OperatorRouter(Experts):
    def route(self, x):
        weight = self.gate
        return (x @ weight).softmax(-1)

    def forward(self, x):
        shares = self.route(x)
        outs = [F.relu(x @ up) @ down for up, down in zip(self.up, self.down, strict=True)]
        return torch.matmul(shares.unsqueeze(-2), torch.stack(outs, dim=-2)).squeeze(-2)


class NoisyRouter(Experts):
    def forward(self, x):
        clean = x.matmul(self.gate)
        noise = torch.randn_like(clean) * F.softplus(x.matmul(self.gate))
        shares = nn.functional.softmax((clean + noise).float(), dim=-1)
        out = torch.zeros_like(x)
        for index in range(EXPERTS):
            out = out + shares[..., index : index + 1] * torch.matmul(F.silu(torch.matmul(x, self.up[index])), self.down[index])
        return out


class CosineRouter(Experts):
    def forward(self, x):
        shares = torch.softmax(F.normalize(x, dim=-1) @ F.normalize(self.gate, dim=0) * 10, -1)
        outs = []
        for index in range(EXPERTS):
            outs.append(torch.matmul(F.silu(torch.matmul(x, self.up[index])), self.down[index]))
        return torch.einsum("bte,bthe->bth", shares, torch.stack(outs, -1))


class ModuleList(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(WIDTH, EXPERTS)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(WIDTH, INNER), nn.GELU(), nn.Linear(INNER, WIDTH)) for _ in range(EXPERTS)
        )

    def forward(self, x):
        shares = self.router(x).softmax(dim=-1)
        outs = torch.stack([expert(x) for expert in self.experts], dim=-2)
        return torch.einsum("bte,bteh->bth", shares, outs)


class Capacity(Experts):
    """Switch's dispatch: a running sum counts the tokens that each expert has."""

    def forward(self, x):
        shares = torch.softmax(torch.matmul(x, self.gate), dim=-1)
        chosen = F.one_hot(shares.argmax(-1), EXPERTS)
        kept = chosen * (torch.cumsum(chosen, dim=-2) <= 4)
        inner = F.relu(torch.einsum("bth,ehf->btef", x, self.up))
        return torch.einsum("bte,btef,efh->bth", kept * shares, inner, self.down)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, x):
        scores = torch.matmul(self.query(x), self.key(x).transpose(-1, -2)) / 3
        return self.out(torch.matmul(torch.softmax(scores, dim=-1), self.value(x)))


class OperatorAttention(Attention):
    def forward(self, x):
        q, k, v = self.query(x), self.key(x), self.value(x)
        scores = q @ k.mT
        scores = scores.masked_fill(torch.ones_like(scores).triu(1).bool(), -1e9)
        return self.out(scores.softmax(-1) @ v)


class SplitAttention(Attention):
    def scores(self, q, k):
        return torch.einsum("bqh,bkh->bqk", q, k)

    def weighted(self, scores, v):
        return torch.bmm(F.softmax(scores, dim=-1), v)

    def forward(self, x):
        return self.out(self.weighted(self.scores(self.query(x), self.key(x)), self.value(x)))


class GatedAttention(Attention):
    """Attention with an activation of its own, as wide as an FFN's matrices: only its softmax tells."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, INNER), nn.Linear(INNER, WIDTH)

    def forward(self, x):
        scores = self.query(x) @ self.key(x).transpose(1, 2)
        return self.down(F.silu(self.up(scores.softmax(dim=-1) @ x)))


class Synthesizer(Attention):
    """Attention weights straight from a linear layer: no product of queries and keys, but one with values."""

    def forward(self, x):
        return self.out(torch.matmul(F.softmax(F.relu(self.query(x)), dim=-1), self.value(x)))


class CachedAttention(Attention):
    def forward(self, x, past):
        key, value = torch.cat([past, self.key(x)], 1), torch.cat([past, self.value(x)], 1)
        return self.out(torch.matmul(torch.softmax(torch.matmul(self.query(x), key.mT), -1), value))


class Compatibility(nn.Module):
    def forward(self, query, key):
        return query @ key.mT


class InnerScores(Attention):
    def __init__(self) -> None:
        super().__init__()
        self.compatibility = Compatibility()

    def forward(self, x):
        shares = self.compatibility(self.query(x), self.key(x)).softmax(-1)
        return self.out(F.relu(torch.matmul(shares, self.value(x))))


class RunningMean(Attention):
    def forward(self, x):
        return self.out(F.relu(torch.cumsum(self.query(x), dim=1)))


class Layer(nn.Module):
    def __init__(self, attention: nn.Module, mlp: nn.Module) -> None:
        super().__init__()
        self.norm1, self.attn, self.norm2, self.mlp = nn.LayerNorm(WIDTH), attention, nn.LayerNorm(WIDTH), mlp

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Decoder(nn.Module):
    def __init__(self, attention: type[nn.Module], mlp: type[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(attention(), mlp()) for _ in range(2))


ROUTERS = [MatmulRouter, EinsumRouter, OperatorRouter, NoisyRouter, CosineRouter, ModuleList, Capacity]
ATTENTIONS = [Attention, OperatorAttention, SplitAttention, GatedAttention, CachedAttention, InnerScores, Synthesizer, RunningMean]


@pytest.mark.parametrize("mixture", ROUTERS)
def test_a_mixture_is_the_layers_ffn(mixture):
    module, x = mixture(), torch.randn(1, 4, WIDTH)
    with torch.no_grad():
        torch.manual_seed(0)
        before = module(x)
        torch.manual_seed(0)
        after = module(torch.cat([x[:, :3], x[:, 3:] + 1], dim=1))
    assert torch.allclose(before[:, :3], after[:, :3], atol=1e-6), "a test's mixture that mixes tokens"
    assert not mixes_tokens(mixture)
    assert [site.path for site in ffn_sites(Decoder(Attention, mixture))] == ["layers.0.mlp", "layers.1.mlp"]


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_attention_is_no_ffn(attention):
    assert mixes_tokens(attention)
    assert [site.path for site in ffn_sites(Decoder(attention, MatmulRouter))] == ["layers.0.mlp", "layers.1.mlp"]
    with pytest.raises(DecoderError, match="no layer holds a feed-forward network"):
        ffn_sites(Decoder(attention, nn.Identity))
