"""Tokens that a component puts into the decoder's input, and a batch's inputs with them in it.

They stand after each row's beginning-of-sequence token, or in front where it has none or they say so, whatever side is padded.
The decoder is given placeholder ids there, and a hook on its embedding puts the tokens in their place, so prefill, cached
and uncached generation and beams all see the same sequence. No loss is taken on them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dehvf_kit.backbones.attached import run_eagerly
from dehvf_kit.errors import ShapeError

if TYPE_CHECKING:
    from transformers import GenerationConfig

IGNORED = -100


@dataclass(frozen=True)
class InputTokens:
    """What a component with `attaches = "input"` returns.

    embeds [batch or 1, token, decoder_hidden]; mask [batch or 1, token], True where a row has that token (None: all do);
    numbers [token], of an image's tokens their number in it, -1 for words (None: components at the decoder are not told).
    before_bos: whether they stand before the beginning-of-sequence token too.
    """

    embeds: Tensor
    mask: Tensor | None = None
    numbers: Tensor | None = None
    before_bos: bool = False


class ExtendedInputs:
    """A batch's text with inserted tokens: every text token after the insertion moves right by `count` columns.

    Shapes: text [batch, token] or [batch, token, hidden], attention_mask [batch, token] or None (all real); bos: the id, or its
    embedding, that the tokens stand after. Rows that have fewer inserted tokens are padded on the left: columns of text agree.
    """

    def __init__(
        self,
        inserted: Sequence[InputTokens],
        text: Tensor,
        attention_mask: Tensor | None,
        bos: int | Tensor | None,
        placeholder: int = 0,
    ) -> None:
        rows, length = text.shape[:2]
        device = text.device
        embeds, mask, numbers = _one_block(inserted, rows, device)
        self.count, self.rows, self.text_length = embeds.shape[1], rows, length
        real = torch.ones(rows, length, device=device) if attention_mask is None else attention_mask
        if real.shape != (rows, length):
            raise ShapeError(f"attention_mask is {tuple(real.shape)}; wants [{rows}, {length}], as the text has")
        self._embeds = embeds
        self._first = (real != 0).long().argmax(1, keepdim=True)
        self._source = source = self._sources(text, mask, bos)
        self.attention_mask = torch.cat([real.long(), mask.long()], 1).gather(1, source)
        self.position_ids = positions(self.attention_mask)
        none = torch.full((rows, length), -1, device=device)
        self.places: Tensor | None = None if numbers is None else torch.cat([none, numbers], 1).gather(1, source)
        self.input_ids: Tensor | None = None
        if text.ndim == 2:
            padding = text.new_full((rows, self.count), placeholder)
            self.input_ids = torch.cat([text, padding], 1).gather(1, source)

    def _sources(self, text: Tensor, mask: Tensor, bos: int | Tensor | None) -> Tensor:
        """[batch, text + inserted]: the column of `text ++ inserted` that each new column takes."""
        length, first = self.text_length, self._first
        column = torch.arange(self.length, device=text.device)[None]
        after_bos = torch.zeros_like(first)
        if bos is not None:
            after_bos = (
                (text[torch.arange(len(text), device=text.device), first[:, 0]] == bos).view(len(text), -1).all(1, True).long()
            )
        self._predicts_first = (after_bos == 0) & mask.any(1, keepdim=True)
        gap = self.count - mask.long().sum(1, keepdim=True)
        block = first + after_bos
        index = torch.where(column < block + self.count, length + column - block, column - self.count)
        index = torch.where(column < first + gap + after_bos, column - gap, index)
        index = torch.where(column < first + gap, length + column - first, index)
        return torch.where(column < first, column, index)

    @property
    def length(self) -> int:
        """Columns of text and inserted tokens together."""
        return self.text_length + self.count

    def fill(self, embeds: Tensor) -> Tensor:
        """Text embeddings [rows, token, hidden], rows a multiple of the batch, with the inserted tokens in their place."""
        repeats = embeds.shape[0] // self.rows
        place = (self._source - self.text_length).clamp(min=0)[..., None]
        block = self._embeds.to(embeds).expand(self.rows, -1, -1)
        block = block.gather(1, place.expand(-1, -1, block.shape[-1]))
        here = (self._source >= self.text_length)[..., None]
        if repeats > 1:
            block, here = block.repeat_interleave(repeats, 0), here.repeat_interleave(repeats, 0)
        head, tail = embeds[:, : self.length], embeds[:, self.length :]
        filled = torch.where(here, block, head)
        return filled if tail.shape[1] == 0 else torch.cat([filled, tail], 1)

    def extend(self, embeds: Tensor) -> Tensor:
        """Embeddings of the text alone [batch, token, hidden] -> those of the whole sequence."""
        width = embeds.shape[-1]
        wide = torch.cat([embeds, embeds.new_zeros(self.rows, self.count, width)], 1)
        return self.fill(wide.gather(1, self._source[..., None].expand(-1, -1, width)))

    def labels(self, labels: Tensor) -> Tensor:
        """Labels [batch, token] -> [batch, text + inserted]; the row's first token is predicted where inserted ones precede it."""
        place = self._first.to(labels.device)
        first = labels.gather(1, place).where(self._predicts_first.to(labels.device), IGNORED)
        labels = labels.scatter(1, place, first)
        return torch.cat([labels.new_full((self.rows, self.count), IGNORED), labels], 1)

    @contextmanager
    def embedded(self, embedding: nn.Module, tell: Callable[[Tensor | None], None]) -> Iterator[None]:
        """Inside, the decoder's embedding gives the inserted tokens wherever it is given this batch's ids.

        tell: called at each pass with the place of an image's tokens [row, token] (their number, else -1), or None without any.
        """

        def hook(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
            ids = args[0]
            tell(None)
            if ids.ndim != 2 or ids.shape[1] < self.length or ids.shape[0] % self.rows:
                return None
            own = self.input_ids.repeat_interleave(ids.shape[0] // self.rows, 0)
            if not torch.equal(ids[:, : self.length], own):
                return None
            if self.places is not None:
                places = self.places.repeat_interleave(ids.shape[0] // self.rows, 0)
                tell(nn.functional.pad(places, (0, ids.shape[1] - self.length), value=-1))
            return self.fill(output)

        handle = embedding.register_forward_hook(hook)
        try:
            with run_eagerly():
                yield
        finally:
            handle.remove()
            tell(None)

    def arguments(self, decoder: nn.Module, inputs_embeds: Tensor | None, given: dict[str, Any]) -> dict[str, Any]:
        """Keywords of the decoder's forward for the whole sequence; labels and `logits_to_keep` in `given` move along.

        Raises: ShapeError for position_ids, which are made here.
        """
        if given.get("position_ids") is not None:
            raise ShapeError("position_ids: this model puts tokens into the input and numbers the positions itself")
        arguments = dict(given)
        if inputs_embeds is None:
            arguments["input_ids"] = self.input_ids
        else:
            arguments["inputs_embeds"] = self.extend(inputs_embeds)
        arguments["attention_mask"] = self.attention_mask
        if "position_ids" in inspect.signature(decoder.forward).parameters:
            arguments["position_ids"] = self.position_ids
        if given.get("labels") is not None:
            arguments["labels"] = self.labels(given["labels"])
        if isinstance(kept := given.get("logits_to_keep"), Tensor):
            arguments["logits_to_keep"] = torch.where(kept < 0, kept, kept + self.count)  # -1: a row has fewer
        return arguments

    def generate(
        self,
        decoder: nn.Module,
        prompt: Tensor,
        config: GenerationConfig,
        given: dict[str, Any],
        tell: Callable[[Tensor | None], None],
    ) -> Any:
        """transformers' `generate` on the whole sequence; what comes back is the prompt [batch, token] and the new tokens."""
        for name in ("max_length", "min_length"):
            if getattr(config, name):
                setattr(config, name, getattr(config, name) + self.count)
        arguments = {**given, "inputs": self.input_ids, "attention_mask": self.attention_mask}
        with self.embedded(decoder.get_input_embeddings(), tell):
            output = decoder.generate(generation_config=config, **arguments)
        whole = output if isinstance(output, Tensor) else output.sequences
        before = prompt.repeat_interleave(whole.shape[0] // self.rows, 0)
        sequences = torch.cat([before, whole[:, self.length :]], 1)
        if isinstance(output, Tensor):
            return sequences
        output.sequences = sequences
        return output


def _one_block(inserted: Sequence[InputTokens], rows: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor | None]:
    """All inserted tokens as one block: [rows, token, hidden], mask and numbers [rows, token], each row's own tokens last."""
    blocks, masks, numbers = [], [], []
    for tokens in inserted:
        if tokens.embeds.shape[0] not in (1, rows):
            raise ShapeError(f"inserted tokens for {tokens.embeds.shape[0]} rows; the text has {rows}")
        mask = torch.ones(tokens.embeds.shape[:2], dtype=torch.bool) if tokens.mask is None else tokens.mask
        blocks.append(tokens.embeds.to(device).expand(rows, -1, -1))
        masks.append(mask.to(device).bool().expand(rows, -1))
        count = torch.full(mask.shape[1:], -1) if tokens.numbers is None else tokens.numbers
        numbers.append(count.to(device).expand(rows, -1))
    block, mask, number = torch.cat(blocks, 1), torch.cat(masks, 1), torch.cat(numbers, 1)
    order = mask.long().argsort(dim=1, stable=True)
    mask = mask.gather(1, order)
    keep = mask.any(0)
    number = number.gather(1, order).masked_fill(~mask, -1)
    told = any(tokens.numbers is not None for tokens in inserted)
    block = block.gather(1, order[..., None].expand_as(block))
    return block[:, keep], mask[:, keep], number[:, keep] if told else None


def continued(cache: Any, attention_mask: Tensor | None, rows: int, new: int) -> dict[str, Tensor]:
    """Mask and positions of `new` columns behind a cache that holds inserted tokens; nothing for another cache, or a whole mask.

    attention_mask [row, token]: of the text so far, without the inserted tokens. Raises: ShapeError for one of another length.
    """
    text, known = getattr(cache, "dehvf_columns", (0, None))
    held = cache.get_seq_length() if known is not None else 0
    if known is None or held < known.shape[1] or (attention_mask is not None and attention_mask.shape == (rows, held + new)):
        return {}
    length = held + new - known.shape[1] + text
    given = torch.ones(rows, length, device=known.device) if attention_mask is None else attention_mask
    if given.shape != (rows, length) or len(known) != rows:
        raise ShapeError(
            f"attention_mask is {tuple(given.shape)}; wants [{len(known)}, {length}]: all text so far and the new tokens"
        )
    mask = torch.cat([known, given[:, text:].to(known)], 1)
    return {"attention_mask": mask, "position_ids": positions(mask)[:, -new:]}


def positions(attention_mask: Tensor) -> Tensor:
    """Each token's place in its own row [batch, token], padding not counted, as `generate` numbers them."""
    return (attention_mask.long().cumsum(1) - 1).clamp(min=0)


def bos_token(tokenizer: Any, decoder: nn.Module) -> int | None:
    """The id that every prompt begins with: the one the tokenizer puts there, else (no tokenizer) the decoder's."""
    if tokenizer is None:
        found = getattr(getattr(decoder, "config", None), "bos_token_id", None)
        return found if isinstance(found, int) else None
    ids = tokenizer("")["input_ids"]
    return ids[0] if ids else None
