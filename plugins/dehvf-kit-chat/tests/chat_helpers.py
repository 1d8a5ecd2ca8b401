"""Adapters with random weights, and a stand-in for one where the page is tested rather than the answer."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

from dehvf_kit_chat.answering import Turn, Upload
from helpers import randomise

import dehvf_kit

NEW_TOKENS = 12


def save(world: Path, folder: Path, *overrides: str, seed: int = 7) -> Path:
    """An adapter with random weights."""
    recipe = dehvf_kit.load_recipe(world / "tiny.yaml", [f"generation.max_new_tokens={NEW_TOKENS}", *overrides])
    model = dehvf_kit.build(recipe)
    randomise(model.nodes, seed)
    model.save_pretrained(folder)
    return folder


class Speaker:
    """Says `a`, then `a b`. error: raised after the first word; words: how many more to say, a twentieth of a second each."""

    name, temperature = "speaker <1>", 0.0

    def __init__(self, error: Exception | None = None, words: int = 0) -> None:
        self.error, self.words = error, words
        self.asked: list[tuple[str, Upload | None, float]] = []
        self.speaking = self.most = self.said = 0

    def answer(self, question: str, picture: Upload | None, temperature: float) -> Iterator[Turn]:
        self.asked.append((question, picture, temperature))
        self.speaking += 1
        self.most = max(self.most, self.speaking)
        try:
            yield Turn("", why="nothing was weighed")
            yield Turn("a")
            if self.error is not None:
                raise self.error
            for number in range(self.words):
                time.sleep(0.05)
                self.said = number + 1
                yield Turn(f"a {number}")
            yield Turn("a b")
        finally:
            self.speaking -= 1
