"""Scores of free answers with partial credit, each between 0 and 1: VQA accuracy, ANLS, relaxed accuracy; equal to lmms-eval's.

Sources: Antol et al. 2015, arXiv:1505.00468 (ten answers, with the normalisation of its evaluation script); Biten et al. 2019,
arXiv:1905.13648 (ANLS); Masry et al. 2022, arXiv:2203.10244 (relaxed).
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from dehvf_kit.data.metrics.exact_match import Prediction
from dehvf_kit.data.metrics.scores import Score, Scores, name_of
from dehvf_kit.errors import DataError

AGREEING = 3
"""Others who must have given an answer for it to count in full."""
USUAL_ANSWERS = 10
NUMBERS = {word: str(n) for n, word in enumerate(re.findall(r"\S+", "zero one two three four five six seven eight nine ten"))}
NUMBERS["none"] = "0"
ARTICLES = {"a", "an", "the"}
PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
PERIOD = re.compile(r"\.(?!\d)")
MOST_PERIODS = 32  # the evaluation script passes re.UNICODE, which is 32, as the count
CONTRACTED = """
'ow's'at 'twas ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd
he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am might've mightn't mightn't've must've mustn't needn't not've
o'clock oughtn't shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've
someone'll someone's something'd something'd've something'll that's there'd there'd've there're there's they'd they'd've they'll
they're they've wasn't we'd've we've weren't what'll what're what's what've when's where'd where's where've who'd who'd've
who'll who's who've why'll why're why's won't would've wouldn't wouldn't've y'all y'all'd've y'all'll you'd you'd've you'll
you're you've
"""
APOSTROPHES = {word[:n] + word[n + 1 :]: word for word in CONTRACTED.split() for n in range(len(word)) if word[n] == "'"}
APOSTROPHES["somebody'd"] = "somebodyd"


def vqa(said: str, references: Sequence[str]) -> float:
    """Over the references, each left out once: min(1, the others that are equal / 3)."""
    said, given = _normal(said), [_normal(one) for one in references]
    return float(np.mean([min(1.0, (given.count(said) - (one == said)) / AGREEING) for one in given]))


def anls(said: str, references: Sequence[str]) -> float:
    """1 - edit distance / length for the nearest reference, 0 where it is below 0.5."""
    worst = [_distance(_plain(one), _plain(said)) / (max(len(one.upper()), len(said.upper())) or 1) for one in references]
    return 1 - min(worst) if 1 - min(worst) >= 0.5 else 0.0


def relaxed(said: str, references: Sequence[str]) -> float:
    """1 for a number within 5% of a reference, or the same text in any case."""
    return float(any(_close(said, one) for one in references))


METRICS: dict[str, Callable[[str, Sequence[str]], float]] = {"vqa": vqa, "anls": anls, "relaxed": relaxed}


def require_answers(samples: Sequence[Any]) -> None:
    """Raises: DataError for a question with so few answers that none can count in full."""
    for one in samples:
        if len(one.references) <= AGREEING:
            count = len(one.references) or 1
            raise DataError(f"data.metric=vqa: sample '{one.id}' has too few answers, {count}; wants the ten of VQA, as a list")


def score(metric: str, predictions: Sequence[Prediction]) -> Scores:
    """The mean of a metric in all and by kind, each with the 95% interval of a mean; a question that was skipped counts as 0."""
    few = sum(len(one.references) < USUAL_ANSWERS for one in predictions if not one.skipped)
    groups: dict[str, list[float]] = defaultdict(list)
    for one in predictions:
        value = 0.0 if one.skipped else METRICS[metric](one.prediction, one.references or [one.answer])
        for name in ("all", name_of(one.kind)) if one.kind else ("all",):
            groups[name].append(value)
    scores = [_mean(name, groups[name]) for name in ("all", *sorted(groups.keys() - {"all"})) if name in groups]
    rows = {one.name: {"accuracy": one.value, "questions": one.count, "low": one.low, "high": one.high} for one in scores}
    facts = {"metric": metric, "all": rows["all"], "by_kind": {name: row for name, row in rows.items() if name != "all"}}
    notes = [f"questions with fewer than ten answers: {few:,}"] if metric == "vqa" and few else []
    return Scores(scores, "all", facts, {one.id: one.prediction for one in predictions}, notes)


def _mean(name: str, values: Sequence[float]) -> Score:
    mean = float(np.mean(values))
    half = 1.959964 * float(np.std(values)) / len(values) ** 0.5
    return Score(name, mean, max(0.0, mean - half), min(1.0, mean + half), len(values))


def _normal(text: str) -> str:
    """An answer as the evaluation script of VQA compares it."""
    text = text.replace("\n", " ").replace("\t", " ").strip()
    comma, found = re.search(r"(?<=\d),+(?=\d)", text), text
    for mark in PUNCTUATION:
        found = found.replace(mark, "" if f"{mark} " in text or f" {mark}" in text or comma else " ")
    words = [NUMBERS.get(word, word) for word in PERIOD.sub("", found, count=MOST_PERIODS).lower().split()]
    return " ".join(APOSTROPHES.get(word, word) for word in words if word not in ARTICLES)


def _plain(text: str) -> str:
    return " ".join(text.lower().split())


def _distance(first: str, second: str) -> int:
    """Edits of one character that make one text the other."""
    row = list(range(len(first) + 1))
    for n, other in enumerate(second, start=1):
        before, row[0] = row[0], n
        for m, own in enumerate(first, start=1):
            before, row[m] = row[m], before if own == other else 1 + min(before, row[m], row[m - 1])
    return row[-1]


def _close(said: str, wanted: str) -> bool:
    given, target = _number(said), _number(wanted)
    if given is not None and target:
        return abs(given - target) / abs(target) <= 0.05
    return said.lower() == wanted.lower()


def _number(text: str) -> float | None:
    try:
        return float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None
