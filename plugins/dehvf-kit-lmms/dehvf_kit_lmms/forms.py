"""The form in which a task wants its answers, told by the instruction in its text."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from dehvf_kit_benchmarks.caption_metrics import one_line
from dehvf_kit_benchmarks.scienceqa_prompt import LETTERS, choice_of

OPTION_ON_A_LINE = re.compile(r"^[ \t]*\(?([A-Z])[.):][ \t]+", re.MULTILINE)
OPTION_INSIDE = re.compile(r"(?<![^\s,;])\(?([A-Z])[.):]\s+")
SAID_FIRST = re.compile(r"\s*(?:(?:the )?(?:final )?answer(?:\s+is)?\s*:|the (?:final )?answer is\b)\s*", re.IGNORECASE)


def letter(said: str, asked: str) -> str | None:
    """The letter of the option that an answer names; None where it names none."""
    choice = choice_of(said, options_of(asked))
    return None if choice is None else LETTERS[choice]


def short(said: str, asked: str) -> str | None:
    """The first line of an answer, without `The answer is` and the closing period; None for an empty answer."""
    lines = SAID_FIRST.sub("", said, count=1).strip().splitlines()
    return lines[0].strip().rstrip(".!").strip() or None if lines else None


def caption(said: str, asked: str) -> str | None:
    """An answer on one line; None for an empty answer."""
    return one_line(said) or None


def as_is(said: str, asked: str) -> str | None:
    """An answer as the adapter gives it; None for an empty answer."""
    return said or None


Form = Callable[[str, str], str | None]
FORMS: dict[str, Form] = {"letter": letter, "short": short, "caption": caption, "as_is": as_is}
INSTRUCTIONS: Sequence[tuple[str, re.Pattern[str]]] = [
    (name, re.compile(text, re.IGNORECASE))
    for name, text in (  # the first that fits counts; `as_is`: such tasks take a longer answer apart by themselves
        (
            "as_is",
            r"step by step|perform reasoning|thinking process|\b(?:in|of) the (?:following )?format\b|\bformat exactly\b|"
            r"\[\[X\]\]|\\boxed|\benclose\b",
        ),
        (
            "letter",
            r"\b(?:options?(?:'s)?|answer|single|one|only the|capital) letters?\b|\bletter (?:of|which|that|corresponding)\b|"
            r"\bwith A, B\b|选项的?字母|옵션의 문자|ответа буквой",
        ),
        (
            "short",
            r"\b(?:single|one) (?:word|number|integer)\b|\bshort (?:phrase|answer|and direct|and concise)|\banswer briefly\b|"
            r"\byes or no\b|\bfloat number\b",
        ),
        ("caption", r"\bone-sentence caption\b|\bdescribe (?:the|this) image\b"),
    )
]


def form_of(asked: str) -> str:
    """The name of the form that a task's text asks for; a letter only where the text has lettered options."""
    for name, instruction in INSTRUCTIONS:
        if instruction.search(asked) and (name != "letter" or options_of(asked)):
            return name
    return "as_is"


def options_of(asked: str) -> list[str]:
    """The lettered options in a text, `A. red`, `(A) red` or `A: red`, one a line or one after the other; [] without any."""
    for mark in (OPTION_ON_A_LINE, OPTION_INSIDE):
        runs: list[list[re.Match[str]]] = []
        for found in mark.finditer(asked):
            if found[1] == "A":
                runs.append([found])
            elif runs and found[1] == LETTERS[len(runs[-1]) % len(LETTERS)]:
                runs[-1].append(found)
        run = max(reversed(runs), key=len, default=[])
        if len(run) > 1:
            ends = [*(following.start() for following in run[1:]), len(asked)]
            texts = [asked[one.end() : end].strip() for one, end in zip(run, ends, strict=True)]
            return [text.partition("\n")[0].strip(" ,;") for text in texts]
    return []
