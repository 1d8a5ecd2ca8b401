"""One row's next token, beside transformers' own filters of what may be drawn."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from dehvf_kit_serve.generation import Row, Settings
from transformers.generation import logits_process as own

SCORES = torch.tensor([2.0, 1.6, 0.4, 1.0, -0.5, -2.0, 1.9, 0.1])


@pytest.mark.parametrize(
    "settings",
    [
        {"top_k": 3},
        {"top_p": 0.6},
        {"min_p": 0.3},
        {"top_k": 5, "top_p": 0.7},
        {"top_k": 6, "top_p": 0.95, "min_p": 0.2, "temperature": 0.8},
        {"top_k": 100},
    ],
)
def test_tokens_that_may_be_drawn_are_those_of_transformers(settings: dict[str, Any]) -> None:
    """2,000 draws of a fixed seed: a token of the smallest chance left, 0.005, is missing with a probability of 5e-5."""
    temperature = settings.get("temperature", 1.0)
    wanted: Any = SCORES[None] / temperature
    for kind, name in ((own.TopKLogitsWarper, "top_k"), (own.TopPLogitsWarper, "top_p"), (own.MinPLogitsWarper, "min_p")):
        if name in settings:
            wanted = kind(settings[name])(torch.zeros(1, 1, dtype=torch.long), wanted)
    chances = wanted.softmax(-1)[0]
    assert chances[chances > 0].min() >= 0.005
    given = Settings(max_tokens=1, seed=0, **{"temperature": 1.0, **settings})
    row = Row(None, frozenset(), given, emit=lambda text: None)
    drawn = torch.tensor([row.choose(SCORES.clone()) for _ in range(2000)]).bincount(minlength=len(SCORES)) / 2000
    assert torch.equal(drawn > 0, chances > 0)
    assert (drawn - chances).abs().max() < 0.06, "five standard deviations of a share of 2,000 draws"
