"""One cell of a row -> an answer or a name as text, and what to note of it."""

from __future__ import annotations

import math
import re
from decimal import Decimal
from typing import Any

import numpy as np

from dehvf_kit.errors import DataError

EXACT_INTEGERS = 2**53
MISSING_WORDS = frozenset(["nan", "NaN", "NA", "N/A", "null", "NULL", "None", "<NA>", "\\N"])
"""How tools write a missing value into text."""
WIDE_DIGITS = 15
"""Digits that a number of 32 bits has at least where it is written as one of 64."""


def answer_of(value: Any) -> tuple[str, list[str]]:
    """An answer as text, and what to note of it: a text, a number, or the first of a list.

    Raises: DataError for a missing value and for what is neither; its message is the kind of fault.
    """
    remarks = []
    if isinstance(value, (list, tuple)):
        given = [one for one in value if not is_missing(one)]
        remarks += ["several answers, the first is read"] if len(given) > 1 else []
        value = given[0] if given else None
    if is_missing(value):
        raise DataError("answer is missing")
    if isinstance(value, float) and value.is_integer():
        remarks.append("whole number given as a decimal, read as a whole number")
    elif isinstance(value, float) and (short := of_32_bits(value)) != value:
        remarks.append("number of 32 bits written with more digits than it has, read without them")
        value = short
    text = named(value, None)
    if text is None:
        raise DataError("answer is no text")
    if isinstance(value, str) and text.strip() in MISSING_WORDS:
        remarks.append("answer that may stand for a missing value, read as text")
    elif isinstance(value, str) and re.fullmatch(r"\s*\[.*\]\s*", text, re.DOTALL):
        remarks.append("answer that may be a list written as text, read as text")
    return text, remarks


def of_32_bits(value: float) -> float:
    """0.1 for 0.10000000149011612, as duckdb writes it into JSON, and for 0.1000000015, as pandas does; else the value itself."""
    if not abs(value) < float(np.finfo(np.float32).max):
        return value
    single = np.float32(value)
    short, digits = float(str(single)), len(Decimal(repr(value)).as_tuple().digits)
    all_digits = value == float(single) and digits >= WIDE_DIGITS
    ten_decimals = value == round(float(single), 10) and len(repr(short)) + 3 <= len(repr(value)) and digits < WIDE_DIGITS
    return short if all_digits or (ten_decimals and value != float(single)) else value


def is_missing(value: Any) -> bool:
    """Whether a value is null or not a number."""
    return value is None or (isinstance(value, (float, Decimal)) and math.isnan(value))


def named(value: Any, default: Any) -> str | None:
    """A text or number as a text, a whole number without a point; `default` for a missing value, None for anything else."""
    value = default if is_missing(value) else value
    if isinstance(value, bool):
        return None
    if isinstance(value, (float, Decimal)) and not math.isfinite(value):
        return None
    if isinstance(value, float) and value.is_integer() and abs(value) < EXACT_INTEGERS:
        return str(int(value))
    if isinstance(value, Decimal):
        return format(value, "f")
    return str(value) if isinstance(value, (str, int, float)) else None
