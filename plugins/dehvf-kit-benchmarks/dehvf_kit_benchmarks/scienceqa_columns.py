"""ScienceQA's nine columns: NAT SOC LAN by subject, TXT IMG NO by context, G1-6 G7-12 by grade, Avg.

TXT: questions with a hint; IMG: with an image (a question may have both); NO: with neither. Source: Lu et al. 2022,
arXiv:2209.09513, and its evaluation script.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from dehvf_kit.data.metrics.intervals import share
from dehvf_kit.data.metrics.scores import Score, Scores
from dehvf_kit_benchmarks.scienceqa_prompt import Problem

COLUMNS: dict[str, Callable[[Problem], bool]] = {
    "NAT": lambda problem: problem.subject == "natural science",
    "SOC": lambda problem: problem.subject == "social science",
    "LAN": lambda problem: problem.subject == "language science",
    "TXT": lambda problem: bool(problem.hint),
    "IMG": lambda problem: problem.has_image,
    "NO": lambda problem: not problem.hint and not problem.has_image,
    "G1-6": lambda problem: 1 <= problem.grade <= 6,
    "G7-12": lambda problem: 7 <= problem.grade <= 12,
    "Avg": lambda problem: True,
}
UNANSWERED = -1


def score(problems: Sequence[Problem], results: Mapping[str, int]) -> Scores:
    """The nine columns over `problems`. results: the index of the choice by question id; what is no choice is wrong.

    A question without a result counts as wrong too.
    """
    scores = []
    for name, belongs in COLUMNS.items():
        mine = [problem for problem in problems if belongs(problem)]
        row = share([results.get(problem.id, UNANSWERED) == problem.answer for problem in mine])
        scores.append(Score(name, row["accuracy"], row["low"], row["high"], row["questions"], digits=2))
    none = sum(results.get(problem.id, UNANSWERED) == UNANSWERED for problem in problems)
    beyond = sum(not UNANSWERED <= results.get(problem.id, UNANSWERED) < len(problem.choices) for problem in problems)
    notes = [f"answers that name no choice, counted as wrong: {none:,}"] if none else []
    notes += [f"answers that name a choice their question does not have, counted as wrong: {beyond:,}"] if beyond else []
    facts = {score.name: score.row() for score in scores}
    return Scores(
        scores,
        "Avg",
        {"columns": facts, "unanswered": none, "out_of_range": beyond},
        {"results": {problem.id: results.get(problem.id, UNANSWERED) for problem in problems}},
        notes,
    )
