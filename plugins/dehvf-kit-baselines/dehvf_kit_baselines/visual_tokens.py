"""Images as tokens of the input: after the beginning-of-sequence token stand, where the recipe says so, a few words,
then the projected tokens, then the text.

Source: LLaVA, arXiv:2304.08485 (patches, no words); LaVIN, arXiv:2305.15023 ("Image: " and six class tokens, "Image: N/A").
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from dehvf_kit.api import BuildContext, ComponentConfig, ConfigMismatchError, Cost, DehvfError, Readout
from dehvf_kit.api.config import MAX_SIZE
from dehvf_kit.model.input_tokens import InputTokens


class VisualTokensConfig(ComponentConfig):
    """The projected tokens of an image in the decoder's input, without loss on them; no parameters of its own."""

    role: ClassVar[str] = "visual_tokens"
    takes: ClassVar[tuple[str, ...]] = ("codes?: batch layer patch code", "readout?: code decoder_hidden", "has_image?: batch")
    attaches: ClassVar[str] = "input"
    type: Literal["visual_tokens"] = "visual_tokens"
    words_before: str = Field("", description="text before an image's tokens")
    words_without: str = Field("", description="text in their place for a sample without image")

    before_bos: bool = Field(False, description="put the tokens before the beginning-of-sequence token too, as BLIP-2 does")
    level: int | None = Field(
        None, ge=0, description="the one of the codes' layers whose tokens are taken; null: all, one after another"
    )

    def resolve(self, context: BuildContext) -> dict[str, int | None]:
        if "codes" not in context.wires or "readout" not in context.wires:
            raise ConfigMismatchError("needs an image's codes and readout; add a projector", "inputs")
        if self.level is not None and self.level >= (context.axes.get("layer") or MAX_SIZE):
            raise ConfigMismatchError(f"there is no layer {self.level} of {context.axes['layer']} in the codes", "level")
        return {}

    def input_tokens(self, context: BuildContext) -> int:
        """Tokens of an image; the words before them, which only a tokenizer can count, are left out."""
        layers = 1 if self.level is not None else context.axes.get("layer") or 0
        return layers * (context.axes.get("patch") or 0)

    def cost(self, context: BuildContext) -> Cost:
        width = (context.axes.get("code") or 0) * context.decoder.hidden_size
        return Cost(per_image=2 * self.input_tokens(context) * width)

    def build(self, context: BuildContext) -> VisualTokens:
        return VisualTokens(self.words_before, self.words_without, self.level, self.before_bos)


class VisualTokens(nn.Module):
    """Shapes: codes [batch, layer, patch, code] and a readout -> `InputTokens` of layer * patch tokens and the words.

    Raises: DehvfError where there are words and no tokenizer. Cost: the readout.
    """

    def __init__(self, words_before: str = "", words_without: str = "", level: int | None = None, before_bos: bool = False) -> None:
        super().__init__()
        self.before_bos = before_bos
        self.words, self.level = (words_before, words_without), level
        self._embedding: list[nn.Module] = []  # in a list: the decoder's own module is no part of this one
        self._tokenizer: Any = None

    def attach(self, decoder: nn.Module, tokenizer: Any) -> None:
        """Learn where words become tokens."""
        self._embedding, self._tokenizer = [decoder.get_input_embeddings()], tokenizer

    def detach(self) -> None:
        """Forget the decoder."""
        self._embedding, self._tokenizer = [], None

    def forward(
        self, codes: Tensor | None = None, readout: Readout | None = None, has_image: Tensor | None = None
    ) -> InputTokens | None:
        before, without = (self._embed(words) for words in self.words)
        if codes is None or readout is None:
            return InputTokens(without[None], before_bos=self.before_bos) if len(without) else None
        rows = codes.shape[0]
        codes = codes if self.level is None else codes[:, self.level : self.level + 1]
        tokens = nn.functional.linear(readout.activation(codes), readout.weight, readout.bias).flatten(1, 2)
        device = tokens.device
        seen = torch.ones(rows, dtype=torch.bool) if has_image is None else has_image.bool()
        seen = seen.to(device)[:, None]
        words = torch.cat([without, before]).to(tokens)
        shown = torch.cat([(~seen).expand(-1, len(without)), seen.expand(-1, len(before) + tokens.shape[1])], dim=1)
        numbers = torch.cat([torch.full((len(words),), -1), torch.arange(tokens.shape[1])])
        return InputTokens(torch.cat([words.expand(rows, -1, -1), tokens], 1), shown, numbers, self.before_bos)

    def _embed(self, words: str) -> Tensor:
        """Words -> the decoder's own embeddings [token, decoder_hidden]."""
        embedding = self._embedding[0]
        device = embedding.weight.device
        if not words:
            return embedding.weight.new_zeros(0, embedding.weight.shape[1])
        if self._tokenizer is None:
            raise DehvfError(f"the words {words!r} need a tokenizer; hand one over to build(..., tokenizer=...)")
        ids = self._tokenizer(words, add_special_tokens=False)["input_ids"]
        return embedding(torch.tensor(ids, device=device)).detach()
