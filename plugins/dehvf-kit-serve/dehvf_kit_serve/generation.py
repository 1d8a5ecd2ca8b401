"""One row of a batch: how its tokens are chosen, where it ends, and its text as it grows."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

Finish = Literal["stop", "length"]
UNFINISHED = "\ufffd"
"""What a tokenizer gives for the first bytes of a character."""


@dataclass(frozen=True)
class Settings:
    """How one answer is made.

    temperature: 0 takes the likeliest token each time; top_k: 0 leaves all; seed: None draws another answer each time.
    """

    max_tokens: int
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int | None = None
    stops: tuple[str, ...] = ()


@dataclass(eq=False)
class Row:
    """One answer in the making.

    emit: called with each piece of text, in the thread that generates. matcher: an `llguidance.LLMatcher` where the answer has a
    grammar. Another thread may set `cancelled`.
    """

    tokenizer: Any
    ends: frozenset[int]
    settings: Settings
    emit: Callable[[str], None]
    matcher: Any = None
    tokens: list[int] = field(default_factory=list)
    finish: Finish | None = None
    error: str = ""
    cancelled: bool = False

    def __post_init__(self) -> None:
        self._random = torch.Generator()
        if self.settings.seed is None:
            self._random.seed()
        else:
            self._random.manual_seed(self.settings.seed)
        self._said = ""  # the answer so far
        self._sent = 0  # characters of it that were emitted
        self._start = self._read = 0  # the tokens that the next piece is decoded with, and those that are in `_said`

    @property
    def done(self) -> bool:
        return self.cancelled or self.finish is not None or bool(self.error)

    def choose(self, scores: Tensor) -> int | None:
        """The next token of scores [vocabulary]; None where there is none, and `error` says why. The scores are changed."""
        if self.matcher is not None:
            allowed = torch.frombuffer(bytearray(self.matcher.compute_logit_bias()), dtype=torch.uint8) > 0
            known = min(len(allowed), len(scores))
            scores[known:] = -torch.inf
            scores[:known].masked_fill_(~allowed[:known].to(scores.device), -torch.inf)
        highest = float(scores.max())
        if not math.isfinite(highest) or bool(scores.isnan().any()):
            self.error = "the model's scores of the next token are not finite"
            return None
        if self.settings.temperature == 0:
            return int(scores.argmax())
        chances = torch.softmax((scores.cpu().double() - highest) / self.settings.temperature, -1)  # no temperature is too small
        if 0 < self.settings.top_k < len(chances):
            chances[chances < chances.topk(self.settings.top_k).values[-1]] = 0
        if self.settings.top_p < 1:
            ordered, places = chances.sort(descending=True)
            ordered[ordered.cumsum(-1) - ordered >= self.settings.top_p * ordered.sum()] = 0
            chances = torch.zeros_like(chances).scatter(0, places, ordered)
        chances[chances < self.settings.min_p * chances.max()] = 0
        return int(torch.multinomial(chances, 1, generator=self._random))

    def take(self, token: int) -> None:
        """Note a token and emit the text that is certain by now."""
        self.tokens.append(token)
        if token in self.ends:
            self._end("stop")
            return
        if self.matcher is not None and not self.matcher.consume_token(token):
            self.error = f"the grammar cannot go on: {self.matcher.get_error()}"
            return
        self._decode()
        places = [place for stop in self.settings.stops if (place := self._said.find(stop)) >= 0]
        if places:
            self._said = self._said[: min(places)]
            self._end("stop")
        elif self.matcher is not None and self.matcher.is_stopped():
            self._end("stop")
        elif len(self.tokens) >= self.settings.max_tokens:
            self._decode(last=True)
            self._end("length")
        else:
            self._send(self._certain())

    def _decode(self, last: bool = False) -> None:
        """Add to `_said` what the newest tokens say, decoded beside those before them, which decide about spaces."""
        known = self._text(self.tokens[self._start : self._read])
        text = self._text(self.tokens[self._start :])
        if text.endswith(UNFINISHED) and not last:
            return
        self._said += text[len(known) :] if self._read else text.lstrip()
        if self._said:
            self._start, self._read = self._read, len(self.tokens)

    def _text(self, tokens: Sequence[int]) -> str:
        return str(self.tokenizer.decode(tokens, skip_special_tokens=True)) if tokens else ""

    def _certain(self) -> int:
        """Characters that no stop and no trimming of the end can take back."""
        certain = len(self._said.rstrip())
        for stop in self.settings.stops:
            begun = next((n for n in range(min(len(stop) - 1, len(self._said)), 0, -1) if self._said.endswith(stop[:n])), 0)
            certain = min(certain, len(self._said) - begun)
        return certain

    def _send(self, until: int) -> None:
        if until > self._sent:
            self.emit(self._said[self._sent : until])
            self._sent = until

    def _end(self, why: Finish) -> None:
        self._send(len(self._said.rstrip()))
        self.finish = why


def choose_tokens(rows: Sequence[Row], scores: Tensor, pad: int) -> list[int]:
    """The next token of each row of scores [row, vocabulary], which the row takes; `pad` where its answer has ended."""
    chosen = [pad] * len(rows)
    for place, row in enumerate(rows):
        if not row.done:
            token = row.choose(scores[place])
            if token is not None:
                chosen[place] = token
                row.take(token)
    return chosen


class RowByRow:
    """A logits processor of transformers that chooses each row's token by that row's own settings."""

    def __init__(self, rows: Sequence[Row], pad: int) -> None:
        self.rows, self.pad = rows, pad

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """scores [row, vocabulary] -> the same with zero for the chosen tokens and -inf for all others."""
        chosen = choose_tokens(self.rows, scores, self.pad)
        forced = torch.full_like(scores, -torch.inf)
        forced[torch.arange(len(chosen)), torch.tensor(chosen, device=scores.device)] = 0
        return forced


class AllDone:
    """A stopping criterion of transformers: each row ends when its answer has, or nobody waits for it any more."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = rows

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        return torch.tensor([row.done for row in self.rows], device=input_ids.device)
