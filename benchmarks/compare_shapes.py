"""The sizes of a comparison, and the one frozen decoder that all its subjects share."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

POSITION_SLOTS = 64


@dataclass(frozen=True)
class Shapes:
    """Sizes of a comparison: LLaMA-7B layers and CLIP ViT-L/14 features, unless told otherwise.

    The vocabulary is small, so that the output head, which every subject pays alike, hides no difference. Every count of
    patches comes with 64 further slots, as 256 patches do in 320 slots at 7B.
    """

    layers: int = 2
    hidden: int = 4096
    intermediate: int = 11008
    heads: int = 32
    vocabulary: int = 1024
    vision_hidden: int = 1024
    vision_layers: int = 24
    groups: int = 4
    code: int = 128
    patches: int = 256
    dtype: str = "float32"
    device: str = "cpu"

    @property
    def slots(self) -> int:
        return self.patches + POSITION_SLOTS

    @property
    def torch_dtype(self) -> torch.dtype:
        return getattr(torch, self.dtype)

    def features(self, batch: int) -> Tensor:
        """Random vision features [batch, vision layer, 1 + patch, vision_hidden] in the decoder's dtype."""
        size = batch, self.vision_layers, 1 + self.patches, self.vision_hidden
        return torch.randn(size, dtype=self.torch_dtype, device=self.device)

    def text(self, batch: int, tokens: int) -> Tensor:
        """Random embeddings of a text [batch, token, hidden]."""
        return torch.randn(batch, tokens, self.hidden, dtype=self.torch_dtype, device=self.device)


QUICK = Shapes(hidden=256, intermediate=688, heads=8, vision_hidden=128, code=32)


def frozen_decoder(shapes: Shapes) -> LlamaForCausalLM:
    """A LLaMA of these sizes with random weights and no gradients."""
    config = LlamaConfig(
        hidden_size=shapes.hidden,
        intermediate_size=shapes.intermediate,
        num_hidden_layers=shapes.layers,
        num_attention_heads=shapes.heads,
        vocab_size=shapes.vocabulary,
        max_position_embeddings=8192,
        dtype=shapes.dtype,
    )
    with torch.device(shapes.device):
        return LlamaForCausalLM(config).to(shapes.torch_dtype).requires_grad_(False).eval()


def shell(decoder: nn.Module, layers: int | None = None) -> LlamaForCausalLM:
    """Another decoder that holds the very same weights, so that each subject has hooks of its own and none its own memory."""
    kept = {id(tensor): tensor for tensor in (*decoder.parameters(), *decoder.buffers())}
    twin = copy.deepcopy(decoder, memo=kept)
    if layers is not None:
        twin.model.layers = twin.model.layers[:layers]
        twin.config.num_hidden_layers = layers
    return twin
