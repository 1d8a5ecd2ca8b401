"""Comparison of answers, and shares with their intervals."""

from __future__ import annotations

import pytest

from dehvf_kit.evaluation.answers import Prediction, accuracy, share, tidy


@pytest.mark.parametrize(
    ("text", "tidied"), [(" Red.\nand more", "red"), ("yes!", "yes"), ("", ""), ("\n", ""), ("  two words ", "two words")]
)
def test_tidy(text: str, tidied: str) -> None:
    assert tidy(text) == tidied


def test_accuracy_by_kind() -> None:
    rows = [("yes/no", "yes", "Yes."), ("yes/no", "no", "yes"), ("colour", "red", "red")]
    scores = accuracy([Prediction(str(n), kind, "?", "", truth, said) for n, (kind, truth, said) in enumerate(rows)])
    assert scores["all"]["accuracy"] == pytest.approx(2 / 3) and scores["all"]["questions"] == 3
    assert {kind: row["accuracy"] for kind, row in scores["by_kind"].items()} == {"yes/no": 0.5, "colour": 1.0}


def test_interval_is_wilsons() -> None:
    # Newcombe 1998, Statistics in Medicine 17:857, table I: 81 of 263 gives 0.2553 to 0.3662.
    row = share([True] * 81 + [False] * 182)
    assert (round(row["low"], 4), round(row["high"], 4)) == (0.2553, 0.3662)
