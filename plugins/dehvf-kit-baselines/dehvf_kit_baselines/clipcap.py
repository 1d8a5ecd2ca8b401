"""ClipCap: an image's one embedding becomes a prefix of tokens before the text, by an MLP or a small transformer.

Source: ClipCap, arXiv:2111.09734 (rmokady/CLIP_prefix_caption 1ad805a). Its MLP form also trains the decoder, which is frozen here.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from dehvf_kit.api import BuildContext, ComponentConfig, ConfigMismatchError, Cost
from dehvf_kit.model.input_tokens import InputTokens
from dehvf_kit_baselines.perceiver import attend


class ClipCapConfig(ComponentConfig):
    """The last global token -> tokens of the input: through one hidden layer, or with learned tokens through a transformer."""

    role: ClassVar[str] = "visual_tokens"
    takes: ClassVar[tuple[str, ...]] = ("globals: batch layer vision_hidden", "has_image?: batch")
    attaches: ClassVar[str] = "input"
    type: Literal["clipcap"] = "clipcap"
    mapping: Literal["transformer", "mlp"] = Field("transformer", description="what maps the embedding to tokens")
    num_tokens: int = Field(10, ge=1, description="tokens of the prefix")
    image_tokens: int = Field(10, ge=1, description="tokens that the transformer reads the embedding as")
    num_blocks: int = Field(8, ge=1, description="blocks of the transformer")
    num_heads: int = Field(8, ge=1, description="its heads")
    expansion: int = Field(2, ge=1, description="width of its MLP, in widths of the decoder")

    def vision_layers(self, num_layers: int) -> tuple[int, ...]:
        return (num_layers - 1,)

    def resolve(self, context: BuildContext) -> dict[str, int | None]:
        if self.mapping == "transformer" and context.decoder.hidden_size % self.num_heads:
            raise ConfigMismatchError(f"{self.num_heads} heads do not divide {context.decoder.hidden_size}", "num_heads")
        return {}

    def input_tokens(self, context: BuildContext) -> int:
        return self.num_tokens

    def num_params(self, context: BuildContext) -> dict[str, int]:
        width, hidden = context.size("vision_hidden"), context.decoder.hidden_size
        if self.mapping == "mlp":
            outer = hidden * self.num_tokens
            return {"mlp": (width + 1) * (outer // 2) + (outer // 2 + 1) * outer}
        inner = self.expansion * hidden
        block = 4 * hidden + 4 * hidden * hidden + hidden + 2 * hidden * inner + inner + hidden
        read = (width + 1) * hidden * self.image_tokens
        return {"read": read, "prefix": self.num_tokens * hidden, "blocks": self.num_blocks * block}

    def cost(self, context: BuildContext) -> Cost:
        counts, tokens = self.num_params(context), self.num_tokens + self.image_tokens
        if self.mapping == "mlp":
            return Cost(per_image=2 * counts["mlp"])
        attended = 4 * self.num_blocks * tokens * tokens * context.decoder.hidden_size
        return Cost(per_image=2 * counts["read"] + 2 * tokens * counts["blocks"] + attended)

    def build(self, context: BuildContext) -> ClipCap:
        width, hidden = context.size("vision_hidden"), context.decoder.hidden_size
        if self.mapping == "mlp":
            outer = hidden * self.num_tokens
            layers = nn.Linear(width, outer // 2), nn.Tanh(), nn.Linear(outer // 2, outer)
            return ClipCap(nn.Sequential(*layers, nn.Unflatten(-1, (self.num_tokens, hidden))))
        sizes = self.num_tokens, self.image_tokens, self.num_blocks, self.num_heads, self.expansion
        return ClipCap(PrefixTransformer(width, hidden, *sizes))


class PrefixTransformer(nn.Module):
    """Shapes: [batch, width] -> [batch, num_tokens, hidden]: learned tokens ~ N(0, 1) behind the embedding's."""

    def __init__(self, width: int, hidden: int, num_tokens: int, read: int, blocks: int, heads: int, expansion: int) -> None:
        super().__init__()
        self.read = nn.Linear(width, read * hidden)
        self.prefix = nn.Parameter(torch.randn(num_tokens, hidden))
        self.blocks = nn.ModuleList(PrefixBlock(hidden, heads, expansion) for _ in range(blocks))

    def forward(self, embedding: Tensor) -> Tensor:
        image = self.read(embedding).unflatten(-1, (-1, self.prefix.shape[1]))
        x = torch.cat([image, self.prefix.expand(len(image), -1, -1)], 1)
        for block in self.blocks:
            x = block(x)
        return x[:, image.shape[1] :]


class PrefixBlock(nn.Module):
    """x += Attn(LN x), x += W2 ReLU(W1 LN x); no biases on queries, keys and values."""

    def __init__(self, hidden: int, num_heads: int, expansion: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm, self.mlp_norm = nn.LayerNorm(hidden), nn.LayerNorm(hidden)
        self.query = nn.Linear(hidden, hidden, bias=False)
        self.key_value = nn.Linear(hidden, 2 * hidden, bias=False)
        self.output = nn.Linear(hidden, hidden)
        self.up, self.down = nn.Linear(hidden, expansion * hidden), nn.Linear(expansion * hidden, hidden)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(x)
        x = x + self.output(attend(self.query(normed), *self.key_value(normed).chunk(2, -1), self.num_heads))
        return x + self.down(F.relu(self.up(self.mlp_norm(x))))


class ClipCap(nn.Module):
    """Shapes: globals [batch, layer, vision_hidden], of which the last layer's is read -> `InputTokens`, none where no image is."""

    def __init__(self, mapping: nn.Module) -> None:
        super().__init__()
        self.mapping = mapping

    def attach(self, decoder: nn.Module, tokenizer: Any) -> None:
        """Nothing to learn of the decoder."""

    def forward(self, globals: Tensor, has_image: Tensor | None = None) -> InputTokens:
        embedding = globals[:, -1].to(next(self.mapping.parameters()).dtype)
        tokens = self.mapping(embedding)
        mask = None if has_image is None else has_image.to(tokens.device)[:, None].expand(tokens.shape[:2])
        return InputTokens(tokens, mask)
