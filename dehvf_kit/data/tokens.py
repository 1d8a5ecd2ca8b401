"""Prompt and answer -> token ids, cut where the prompt ends, alike in training and in generation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def encode_pairs(
    tokenizer: Any, prompts: Sequence[str], answers: Sequence[str], special: bool
) -> list[tuple[list[int], list[int]]]:
    """Token ids of each prompt and of the answer that follows it. special: whether prompts get the tokenizer's own marks.

    Both are tokenised as one text, as the official MemVP and LaVIN scripts do, where that text begins with the prompt's
    own tokens, which are what generation sees; where a token would straddle the border, each is tokenised alone.
    """
    if not prompts:
        return []
    before = tokenizer(list(prompts), add_special_tokens=special)["input_ids"]
    texts = [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)]
    whole = tokenizer(texts, add_special_tokens=special)["input_ids"]
    end = [tokenizer.eos_token_id] if special and _ends(tokenizer) else []
    pairs = []
    for prompt, joined, answer in zip(before, whole, answers, strict=True):
        if end and prompt[-1:] == end:
            prompt, joined = prompt[:-1], joined[:-1]
        if joined[: len(prompt)] == prompt:
            pairs.append((prompt, joined[len(prompt) :]))
        else:
            pairs.append((prompt, tokenizer(answer, add_special_tokens=False)["input_ids"]))
    return pairs


def _ends(tokenizer: Any) -> bool:
    """Whether the tokenizer closes every text with its end token."""
    return tokenizer("", add_special_tokens=True)["input_ids"][-1:] == [tokenizer.eos_token_id]
