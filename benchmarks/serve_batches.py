"""Batches of `dehvf-kit serve` in CPU seconds of one thread, which other work on the machine hardly changes.

One row at a time, 16 rows held by `generate` until the longest answer ends, and 16 rows that join and leave.

python benchmarks/serve_batches.py recipes/smollm2_dinov2_easyvqa.yaml --questions 64
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable, Sequence

import torch
from dehvf_kit_serve.adapters import Adapter, Prompt
from dehvf_kit_serve.batching import JOIN_EVERY, many_wait
from dehvf_kit_serve.generation import Row, Settings
from dehvf_kit_serve.running import RunningBatch

import dehvf_kit

ROWS, PROMPT_TOKENS = 16, 20


def prompts(adapter: Adapter, lengths: Sequence[int], size: int) -> list[Prompt]:
    """A question of random tokens and an image of noise for each answer, which has so many tokens and no end token."""
    dice = torch.Generator().manual_seed(0)
    found = []
    for length in lengths:
        ids = torch.randint(5, 40_000, (PROMPT_TOKENS,), generator=dice).tolist()
        row = Row(adapter.model.processor.tokenizer, frozenset(), Settings(length), lambda _: None)
        found.append(Prompt(adapter, ids, [torch.randn(1, 3, size, size, generator=dice)], row))
    return found


def held(adapter: Adapter, asked: list[Prompt], rows: int) -> None:
    for start in range(0, len(asked), rows):
        adapter.generate(asked[start : start + rows])


def joining(adapter: Adapter, asked: list[Prompt], rows: int) -> None:
    batch, waiting = RunningBatch(adapter.model), list(asked)
    while waiting or batch.rows:
        new, waiting = waiting[: rows - len(batch.rows)], waiting[rows - len(batch.rows) :]
        if new:
            batch.join(new)
        for count in range(JOIN_EVERY):
            if not batch.rows or (count and many_wait(len(waiting), len(batch.rows), rows)):
                break
            batch.step()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe")
    parser.add_argument("--questions", type=int, default=64)
    parser.add_argument("--image-size", type=int, default=56)
    given = parser.parse_args()
    torch.set_num_threads(1)
    adapter = Adapter("subject", dehvf_kit.build(given.recipe).eval())
    dice = random.Random(1)
    mixed = [dice.choice([2, 3, 4, 6, 8, 16, 32]) for _ in range(given.questions)]
    ways: dict[str, tuple[Callable[..., None], int]] = {"one": (held, 1), "16 held": (held, ROWS), "16 joining": (joining, ROWS)}
    for name, lengths in (("16 tokens each", [16] * given.questions), ("2 to 32 tokens", mixed)):
        alone = 0.0
        for way, (answer, rows) in ways.items():
            asked = prompts(adapter, lengths, given.image_size)
            began = time.process_time()
            answer(adapter, asked, rows)
            rate = sum(lengths) / (time.process_time() - began)
            alone = alone or rate
            print(f"{name}, {way}: {rate:.1f} tokens per CPU second, {rate / alone:.1f} times one", flush=True)


if __name__ == "__main__":
    main()
