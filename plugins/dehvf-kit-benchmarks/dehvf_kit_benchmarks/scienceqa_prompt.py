"""ScienceQA's prompt formats: `QCM-A` and all others that are written `<input parts>-<output parts>`.

Q question, C context, M multiple choice, L lecture, E explanation (the `solution`), A answer, in the order of the letters.
Source: the formats of the ScienceQA paper (arXiv:2209.09513), worded as LaVIN and MemVP do. The letters mean what they say;
in the official scripts AL gives the explanation and AE the lecture, which the kit does not repeat.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from string import ascii_uppercase
from typing import Any

LETTERS = ascii_uppercase
ANSWER_START = "The answer is"
NO_CONTEXT = "N/A"
_SAID = re.compile(r"(?i:answer\s+is):?\s*\(?([A-Z])(?![A-Za-z])")
_STARTED = re.compile(r"^\s*(?i:the answer is):?")
_ALONE = re.compile(r"\s*(?:\(([A-Z])\)|([A-Z])\s*(?:[.:),]|$))")
_MARKED = re.compile(r"\(([A-Z])\)")


@dataclass(frozen=True)
class Problem:
    """One question of ScienceQA. `image` is where its image is; `has_image` whether it has one, read or not."""

    id: str
    question: str
    choices: Sequence[str]
    answer: int
    hint: str = ""
    caption: str = ""
    lecture: str = ""
    solution: str = ""
    subject: str = ""
    grade: int = 0
    has_image: bool = False
    image: Any = None


def check_format(text: str) -> str:
    """A format as it stands. Raises: ValueError saying what a format is."""
    given, _, wanted = text.partition("-")
    fits = re.fullmatch(r"[QCMLE]+", given) and re.fullmatch(r"[LEA]+", wanted)
    if not fits or len(set(given)) < len(given) or len(set(wanted)) < len(wanted) or "Q" not in given or "A" not in wanted:
        raise ValueError(
            f"given '{text}'; wants input parts, a hyphen, output parts, for example QCM-A or QCM-LEA: input letters of "
            "Q C M L E with Q among them, output letters of L E A with A among them, none twice"
        )
    return text


def prompt(problem: Problem, format: str, captions: bool, response: str) -> str:
    """The input of a question: a line for each part, then `response`."""
    parts, lines = format.partition("-")[0], []
    while parts:
        told = re.match(r"[LE]+", parts)
        if told:
            reason = _reason(problem, told[0])
            lines += [f"BECAUSE: {reason}"] if reason else []
            parts = parts[len(told[0]) :]
            continue
        lines.append(_line(problem, parts[0], captions))
        parts = parts[1:]
    return "\n".join([*lines, response]).replace("  ", " ").strip()


def reply(problem: Problem, format: str) -> str:
    """The output of a question: `The answer is B.` among its lecture and explanation."""
    before, _, after = format.partition("-")[2].partition("A")
    texts = [_reason(problem, before), f"{ANSWER_START} {LETTERS[problem.answer]}."]
    because = _reason(problem, after)
    texts += [f"BECAUSE: {because}"] if because else []
    return " ".join(text for text in texts if text).replace("  ", " ").strip()


def reply_start(format: str) -> str:
    """What evaluation gives of the output: `The answer is` where the answer stands first, else nothing."""
    return ANSWER_START if format.partition("-")[2].startswith("A") else ""


def _line(problem: Problem, part: str, captions: bool) -> str:
    if part == "Q":
        return f"Question: {problem.question}"
    if part == "C":
        context = " ".join([problem.hint, problem.caption if captions else ""]).strip()
        return f"Context: {context or NO_CONTEXT}"
    return "Options: " + " ".join(f"({LETTERS[n]}) {choice}" for n, choice in enumerate(problem.choices))


def _reason(problem: Problem, letters: str) -> str:
    """Lecture and explanation, their line breaks written as `\\n`, as the official scripts feed them."""
    texts = {"L": problem.lecture, "E": problem.solution}
    return " ".join(texts[letter].replace("\n", "\\n") for letter in letters).strip()


def choice_of(text: str, choices: Sequence[str]) -> int | None:
    """The index of the choice that a text names; None where it names none, never a guess.

    In this order: the words of exactly one choice, first in the same case, then in any; `the answer is B` (the first, where the
    text begins so, else the last); a letter alone at the beginning, `B`, `B.`, `(B)`; one single letter in brackets anywhere.
    A letter beyond the choices names none, and neither does one that begins a phrase, as in `The answer is A Breath of Air`.
    """
    said_words = _STARTED.sub("", text)
    for tidied in (str.strip, _bare, lambda words: _bare(words).lower()):
        words = tidied(said_words)
        same = [number for number, choice in enumerate(choices) if len(words) > 1 and tidied(choice) == words]
        if len(same) == 1:
            return same[0]
    said, alone, marked = list(_SAID.finditer(text)), _ALONE.match(text), set(_MARKED.findall(text))
    letter = ""
    if said:
        letter = _letter(said[0] if text.lstrip().startswith(ANSWER_START) else said[-1], choices)
    elif alone and marked <= {alone[1] or alone[2]}:
        letter = alone[1] or alone[2]
    elif len(marked) == 1:
        letter = marked.pop()
    index = LETTERS.find(letter) if letter else -1
    return index if 0 <= index < len(choices) else None


def _letter(said: re.Match[str], choices: Sequence[str]) -> str:
    """The letter that is said; nothing where it is the first word of a phrase, unless that is the letter's own choice."""
    after, index = said.string[said.end() :], LETTERS.find(said[1])
    phrase = re.match(r"[ \t]+(?=[A-Za-z])", after)
    if not phrase or re.match(r"\s+(?:because|since|as)\b", after, re.IGNORECASE):
        return said[1]
    own = index < len(choices) and _bare(after).lower().startswith(_bare(choices[index]).lower())
    return said[1] if own else ""


def _bare(text: str) -> str:
    """A text without outer punctuation and repeated spaces."""
    return " ".join(text.strip().strip(".!:;,\"'").split())
