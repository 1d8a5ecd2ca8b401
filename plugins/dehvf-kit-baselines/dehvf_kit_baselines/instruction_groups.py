"""IGVA's reader: groups of vision layers, weighted by the question, stand beside the patches of one layer.

Source: Instruction-Guided Visual Aggregator (YiZheng-zy/IGVA 6fa8d84). Its code adds the weights' entropy to the loss (and takes
their softmax twice there), which is not added here. Its query is a frozen sentence encoder's embedding of the question; here it is
the mean of the decoder's own embeddings of it (choice), averaged down to `sentence_size` numbers where that is given.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from dehvf_kit.api import BuildContext, ComponentConfig, ConfigMismatchError, Cost
from dehvf_kit.components.base import runs
from dehvf_kit_baselines.readers import check_layer, places_of


class InstructionGroupsReaderConfig(ComponentConfig):
    """[V_base ; sum_k w_k mean of group k] by channel, w from the question through cross-attention to the groups' global tokens."""

    role: ClassVar[str] = "reader"
    takes: ClassVar[tuple[str, ...]] = (
        "patches: batch layer patch vision_hidden",
        "globals: batch layer vision_hidden",
        "prompt: batch token decoder_hidden",
        "prompt_mask: batch token",
    )
    gives: ClassVar[tuple[str, ...]] = ("patches: batch layer patch vision_hidden",)
    type: Literal["instruction_groups"] = "instruction_groups"
    num_groups: int = Field(4, ge=1, description="groups that the vision layers are cut into")
    layer: int = Field(-2, description="vision layer beside the mix: 0 is the first block, -1 the last")
    hidden_size: int = Field(1024, ge=1, description="width of the blocks")
    num_blocks: int = Field(4, ge=1, description="blocks of cross-attention and feed-forward network")
    num_heads: int = Field(4, ge=1, description="heads of the attention")
    sentence_size: int | None = Field(None, ge=1, description="numbers that the question's mean is averaged down to; null: all")

    def vision_layers(self, num_layers: int) -> tuple[int, ...]:
        return tuple(range(num_layers))

    def resolve(self, context: BuildContext) -> dict[str, int | None]:
        check_layer(context, self.layer)
        if context.vision is not None and self.num_groups > context.vision.num_layers:
            raise ConfigMismatchError(f"{self.num_groups} groups of {context.vision.num_layers} vision layers", "num_groups")
        if self.hidden_size % self.num_heads:
            raise ConfigMismatchError(f"{self.num_heads} heads do not divide {self.hidden_size}", "num_heads")
        if self.sentence_size is not None and self.sentence_size > context.decoder.hidden_size:
            most = context.decoder.hidden_size
            raise ConfigMismatchError(
                f"{self.sentence_size} numbers of an embedding of {most}; use {most} or less", "sentence_size"
            )
        return {"layer": 1, "vision_hidden": 2 * _width(context)}

    def num_params(self, context: BuildContext) -> dict[str, int]:
        width, sentence = self.hidden_size, self.sentence_size or context.decoder.hidden_size
        block = 4 * (width * width + width) + 2 * (width * width + width) + 4 * width
        return {
            "query": sentence * width + width,
            "globals": _width(context) * width + width,
            "blocks": self.num_blocks * block,
            "score": width * self.num_groups + self.num_groups,
        }

    def cost(self, context: BuildContext) -> Cost:
        counts, layers = self.num_params(context), context.vision.num_layers if context.vision else 0
        patches = context.axes.get("patch") or 0
        mixed = 2 * layers * patches * _width(context)
        return Cost(per_image=2 * counts["query"] + 2 * self.num_groups * (counts["globals"] + counts["blocks"]) + mixed)

    def build(self, context: BuildContext) -> InstructionGroups:
        count = context.vision.num_layers if context.vision else 0
        groups = [places_of(context, group) for group in runs(count, self.num_groups)]
        sizes = _width(context), self.sentence_size or context.decoder.hidden_size, self.hidden_size
        return InstructionGroups(groups, places_of(context, [self.layer])[0], *sizes, self.num_blocks, self.num_heads)


def _width(context: BuildContext) -> int:
    """Channels that come in (`context.axes` has those that come out once this node is resolved)."""
    return context.wires["patches"][0]["vision_hidden"] or 0


class InstructionGroups(nn.Module):
    """Shapes: patches [batch, layer, patch, width], globals [batch, layer, width], prompt [batch, token, hidden] and its mask
    -> [batch, 1, patch, 2 * width].
    """

    def __init__(
        self, groups: list[list[int]], place: int, width: int, sentence: int, hidden: int, num_blocks: int, num_heads: int
    ) -> None:
        super().__init__()
        self.groups, self.place, self.sentence = groups, place, sentence
        self.query, self.globals = nn.Linear(sentence, hidden), nn.Linear(width, hidden)
        self.blocks = nn.ModuleList(InstructionBlock(hidden, num_heads) for _ in range(num_blocks))
        self.score = nn.Linear(hidden, len(groups))

    def weights(self, sentence: Tensor, means: Tensor) -> Tensor:
        """Weights of the groups [batch, group] from the question [batch, sentence] and global tokens [batch, group, width]."""
        query, keys = self.query(sentence)[:, None], self.globals(means)
        for block in self.blocks:
            query = block(query, keys)
        return self.score(query[:, 0]).softmax(-1)

    def mix(self, patches: Tensor, weights: Tensor) -> Tensor:
        """[V_base ; sum_k w_k mean_k] by channel."""
        means = torch.stack([patches[:, group].mean(1) for group in self.groups], 1)
        return torch.cat([patches[:, self.place], torch.einsum("bg,bgpd->bpd", weights, means)], -1)

    def forward(self, patches: Tensor, globals: Tensor, prompt: Tensor, prompt_mask: Tensor) -> Tensor:
        dtype = self.score.weight.dtype
        seen = prompt_mask.to(prompt.device)[..., None]
        mean = prompt.to(dtype).where(seen, 0.0).sum(1) / seen.sum(1).clamp(min=1)
        means = torch.stack([globals[:, group].mean(1) for group in self.groups], 1)
        weights = self.weights(F.adaptive_avg_pool1d(mean, self.sentence), means.to(dtype))
        return self.mix(patches.to(dtype), weights)[:, None]


class InstructionBlock(nn.Module):
    """q <- LN(q + CrossAttention(q, keys)); q <- LN(q + W2 ReLU(W1 q)).

    Shapes: query [batch, 1, width], keys [batch, group, width].
    """

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, num_heads, batch_first=True)
        self.up, self.down = nn.Linear(width, width), nn.Linear(width, width)
        self.norm, self.ffn_norm = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, query: Tensor, keys: Tensor) -> Tensor:
        query = self.norm(query + self.attention(query, keys, keys, need_weights=False)[0])
        return self.ffn_norm(query + self.down(F.relu(self.up(query))))
