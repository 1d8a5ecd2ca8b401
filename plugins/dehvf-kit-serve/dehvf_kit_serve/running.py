"""A batch that rows join and leave between two tokens, over the decoder's key-value cache.

`generate` holds every row until the longest answer has ended, and begins with nothing new before that; here a row costs what its
own answer needs. Decoders whose cache is not one of plain layers, and graphs that put tokens into the input or read the question,
are answered by `generate` (`can_join`).
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from dehvf_kit.data.encoding import stack
from dehvf_kit.data.processing import image_places
from dehvf_kit.model.attachment import MemoryScope
from dehvf_kit.model.input_tokens import positions
from dehvf_kit.model.run import by_encoder, per_encoder, reads_prompt, to_device
from dehvf_kit_serve.generation import choose_tokens

if TYPE_CHECKING:
    from dehvf_kit.model.model import DehvfModel
    from dehvf_kit_serve.adapters import Prompt

IMAGES = 16
"""Images that an encoder reads at once."""
KNOWN = {"position_ids", "attention_mask", "past_key_values"}
PLAIN_SETTINGS = {
    *("do_sample", "temperature", "top_p", "top_k", "min_p", "num_beams", "early_stopping", "length_penalty", "max_new_tokens"),
    *("max_length", "eos_token_id", "bos_token_id", "pad_token_id", "use_cache", "transformers_version"),
}
"""Settings of generation that a row has itself, or that mean nothing here."""


def can_join(model: DehvfModel) -> bool:
    """Whether this model's rows can join a running batch and leave it."""
    if reads_prompt(model.graph) or any(model.graph.nodes[name].config.attaches == "input" for name in model.nodes):
        return False
    decoder: Any = model.decoder
    settings = {name for name, value in model.generation_config.to_diff_dict().items() if value and name[0] != "_"}
    if KNOWN - inspect.signature(decoder.forward).parameters.keys() or settings - PLAIN_SETTINGS:
        return False
    try:
        layers = DynamicCache(config=decoder.config).layers
    except Exception:  # whatever a family's config lacks for such a cache
        return False
    return bool(layers) and all(type(layer) is DynamicLayer for layer in layers)


@dataclass(eq=False)
class Joined:
    """A prompt in the batch, and the features of its images, read once."""

    prompt: Prompt
    features: list[Any]


class RunningBatch:
    """Rows of one adapter that are being answered."""

    def __init__(self, model: DehvfModel) -> None:
        self.model = model
        self.rows: list[Joined] = []
        self._device = next(model.decoder.parameters()).device
        self._cache: Any = None
        self._mask = self._tokens = torch.empty(0)
        self._scope: MemoryScope | None = None
        self._takes_last = "logits_to_keep" in inspect.signature(model.decoder.forward).parameters  # type: ignore[arg-type]

    @torch.no_grad()
    def join(self, prompts: Sequence[Prompt]) -> None:
        """Read prompts and choose the first token of each answer; the rows that run are not touched where that fails."""
        new = [Joined(prompt, features) for prompt, features in zip(prompts, self._features(prompts), strict=True)]
        longest = max(len(prompt.ids) for prompt in prompts)
        tokens = torch.tensor([[0] * (longest - len(prompt.ids)) + prompt.ids for prompt in prompts], device=self._device)
        mask = torch.tensor([[0] * (longest - len(one.ids)) + [1] * len(one.ids) for one in prompts], device=self._device)
        cache = DynamicCache(config=self.model.decoder.config)
        chosen = self._choose(new, self._memory(new), tokens, mask, cache)
        if self.rows:
            width = max(self._mask.shape[1], longest)
            mask = torch.cat([pad(one, (width - one.shape[1], 0)) for one in (self._mask, mask)])
            chosen = torch.cat([self._tokens, chosen])
            for own, other in zip(self._cache.layers, cache.layers, strict=True):
                _each(own, lambda kept, added: torch.cat([_widened(kept, width), _widened(added, width)]), other)
            cache = self._cache
        self.rows, self._cache, self._mask, self._tokens = [*self.rows, *new], cache, mask, chosen
        self._leave()
        self._scope = self._memory(self.rows) if self.rows else None

    @torch.no_grad()
    def step(self) -> None:
        """One token of every row."""
        assert self._scope is not None
        self._mask = pad(self._mask, (0, 1), value=1)
        self._tokens = self._choose(self.rows, self._scope, self._tokens, self._mask, self._cache)
        if self._leave():
            self._scope = self._memory(self.rows) if self.rows else None

    def _features(self, prompts: Sequence[Prompt]) -> list[list[Any]]:
        """The features of each prompt's images, read together."""
        pixels, found = [one for prompt in prompts for one in prompt.pixels], []
        for start in range(0, len(pixels), IMAGES):
            read = self.model.vision_features(to_device(stack(pixels[start : start + IMAGES]), self._device))
            count = len(next(iter(by_encoder(read).values())))
            found += [per_encoder(lambda tensor, place=place: tensor[place : place + 1], read) for place in range(count)]
        each = iter(found)
        return [list(islice(each, len(prompt.pixels))) for prompt in prompts]

    def _memory(self, rows: Sequence[Joined]) -> MemoryScope:
        """What the decoder reads for these rows."""
        found = [one for row in rows for one in row.features]
        given: dict[str, Any] = {}
        if found:
            numbers = iter(range(len(found)))
            given = {"vision_features": stack(found)} | image_places([[next(numbers) for _ in row.features] for row in rows])[1]
        return MemoryScope(self.model.nodes, self.model.memory(len(rows), **to_device(given, self._device)))

    def _choose(self, rows: Sequence[Joined], scope: MemoryScope, tokens: Tensor, mask: Tensor, cache: Any) -> Tensor:
        """The next token of each row [row, 1] after `tokens` [row, token]; mask [row, cached and given token]."""
        given: dict[str, Any] = {"position_ids": positions(mask)[:, -tokens.shape[1] :], "past_key_values": cache}
        given |= {"logits_to_keep": 1} if self._takes_last else {}
        with scope:
            logits = self.model.decoder(input_ids=tokens, attention_mask=mask, use_cache=True, **given).logits
        chosen = choose_tokens([row.prompt.row for row in rows], logits[:, -1].float(), 0)
        return torch.tensor(chosen, device=self._device).unsqueeze(1)

    def _leave(self) -> bool:
        """Take out the rows whose answers have ended, and columns that no row has any more; whether there were such rows."""
        staying = [place for place, row in enumerate(self.rows) if not row.prompt.row.done]
        if len(staying) == len(self.rows):
            return False
        self.rows = [self.rows[place] for place in staying]
        if not staying:
            self._cache = None
            return True
        kept = torch.tensor(staying, device=self._device)
        self._mask, self._tokens = self._mask[kept], self._tokens[kept]
        first = int(self._mask.any(0).long().argmax())
        self._mask = self._mask[:, first:]
        for layer in self._cache.layers:
            _each(layer, lambda held, _: held[kept][:, :, first:].contiguous())
        return True


def _widened(held: Tensor, width: int) -> Tensor:
    """Keys or values [row, head, token, channel] with as many columns of zeros in front as make up the width."""
    return pad(held, (0, 0, width - held.shape[2], 0))


def _each(layer: Any, change: Any, other: Any = None) -> None:
    """Change the keys and values of a layer that holds some."""
    if layer.is_initialized:
        layer.keys = change(layer.keys, other and other.keys)
        layer.values = change(layer.values, other and other.values)
