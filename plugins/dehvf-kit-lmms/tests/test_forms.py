"""What form a task asks for, and answers put into it; without lmms-eval."""

from __future__ import annotations

import pytest
from dehvf_kit_lmms.forms import FORMS, form_of, options_of

OPTIONS = "Context: A. Smith wrote it.\nWhat colour is it?\nA. red\nB. green\nC. blue"
LETTER = "\nAnswer with the option's letter from the given choices directly."


@pytest.mark.parametrize(
    ("text", "options"),
    [
        (OPTIONS + LETTER, ["red", "green", "blue"]),
        ("What is it?\n(A) red\n(B) dark green\n" + LETTER, ["red", "dark green"]),
        (
            "Which?\nOptions: A: On the book., B: Beneath the cat., C: Beside it." + LETTER,
            ["On the book.", "Beneath the cat.", "Beside it."],
        ),
        ("Which? (A) red (B) green", ["red", "green"]),
        ("Is A. Smith right?", []),
        ("What colour is it?", []),
    ],
)
def test_options_are_found_in_a_text(text: str, options: list[str]) -> None:
    assert options_of(text) == options


# The instructions of tasks of lmms-eval 0.7.3.
@pytest.mark.parametrize(
    ("instruction", "form"),
    [
        (LETTER, "letter"),  # scienceqa, ai2d, mmbench, mmstar, mmmu, seedbench
        ("\nAnswer with the option letter only.", "letter"),
        ("\nRespond with only the letter (A, B, C, D, or E) of the correct option.", "letter"),  # realworldqa's kind
        ("\nAnswer the question with A, B, C, or D.", "letter"),
        ("\nAbove choices are given in {option}. {content} format.\nPlease answer with the option letter directly.", "letter"),
        ("\nAnswer the question using a single word or phrase.", "short"),  # vqav2, gqa, textvqa, okvqa, docvqa
        ("\nAnswer the question with Yes or No.", "short"),  # pope, mme
        ("\nAnswer with a single number.", "short"),
        ("\nThe last line should be of the following format: 'Answer: $LETTER' where the option letter is one of ABCD", "as_is"),
        ("\nThink step by step to provide the option's letter from the given choices.", "as_is"),
        ("", "as_is"),
    ],
)
def test_the_instruction_says_the_form(instruction: str, form: str) -> None:
    assert form_of(OPTIONS + instruction) == form


def test_forms_without_options() -> None:
    assert form_of("Which letter of the alphabet is it?" + LETTER) == "as_is"
    assert form_of("Provide a one-sentence caption for the provided image.") == "caption"
    assert form_of("Describe the image briefly.") == "caption"


@pytest.mark.parametrize(
    ("form", "said", "wanted"),
    [
        ("letter", "The answer is B.", "B"),
        ("letter", "(B)", "B"),
        ("letter", "B. green", "B"),
        ("letter", "The answer is green.", "B"),
        ("letter", "The answer is D.", None),  # there is no such option
        ("letter", "purple", None),
        ("letter", "", None),
        ("short", "The answer is red.\nIt is", "red"),
        ("short", "Answer: 3.5", "3.5"),
        ("short", "Yes.", "Yes"),
        ("short", "is the answer", "is the answer"),
        ("short", " . ", None),
        ("caption", "a red\r\nsquare\u2028here", "a red square here"),
        ("caption", "\n", None),
        ("as_is", "Reason.\nThe answer is B.", "Reason.\nThe answer is B."),
    ],
)
def test_answers_in_a_form(form: str, said: str, wanted: str | None) -> None:
    assert FORMS[form](said, OPTIONS + LETTER) == wanted
