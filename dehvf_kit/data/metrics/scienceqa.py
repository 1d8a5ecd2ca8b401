"""ScienceQA's nine columns: NAT SOC LAN by subject, TXT IMG NO by context, G1-6 G7-12 by grade, Avg.

TXT: questions with a hint; IMG: with a picture (a question may have both); NO: with neither. Source: Lu et al. 2022,
arXiv:2209.09513, and its evaluation script.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dehvf_kit.data.issues import Issue, refuse
from dehvf_kit.data.metrics.intervals import share
from dehvf_kit.data.metrics.scores import Score, Scores
from dehvf_kit.data.scienceqa_prompt import Problem
from dehvf_kit.errors import DataError, shown
from dehvf_kit.utils.json_files import read_json

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
    notes += (
        [f"answers that name a choice their question does not have, counted as wrong: {beyond:,}"] if beyond else []
    )
    facts = {score.name: score.row() for score in scores}
    return Scores(
        scores,
        "Avg",
        {"columns": facts, "unanswered": none, "out_of_range": beyond},
        {"results": {problem.id: results.get(problem.id, UNANSWERED) for problem in problems}},
        notes,
    )


def read_results(file: Path, problems: Sequence[Problem], missing_wrong: bool = False) -> dict[str, int]:
    """Anybody's predictions, `{"results": {id: index}}` or the inner object alone; -1 or null where nothing was answered.

    missing_wrong: take questions without a prediction for unanswered. Raises: DataError listing missing, unknown and repeated
    ids and values that are no index.
    """
    repeated: list[str] = []
    found: Any = read_json(file, repeated)
    if isinstance(found, dict) and isinstance(found.get("results"), dict):
        found = found["results"]
    if not isinstance(found, dict):
        raise DataError(f'{file}: wants {{"results": {{"1": 0, ...}}}}, the index of a choice by question id')
    wanted = {problem.id for problem in problems}
    issues = [Issue("id twice", key) for key in repeated]
    issues += [
        Issue(f"id not among the {len(wanted):,} questions of this split", key) for key in found if key not in wanted
    ]
    if not missing_wrong:
        issues += [
            Issue("question without a prediction (--missing-wrong counts it as wrong)", problem.id)
            for problem in problems
            if problem.id not in found
        ]
    results = {}
    for key, value in found.items():
        if value is None:
            value = UNANSWERED
        if isinstance(value, bool) or not isinstance(value, int):
            issues.append(Issue("not the index of a choice", key, shown(value)))
        results[key] = value
    refuse(str(file), issues)
    return results
