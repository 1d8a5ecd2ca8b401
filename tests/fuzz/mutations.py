"""Mutations of plain data and of its text: what a typing error, a bad merge, half a download or an enemy makes of a file."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st

HUGE = [2**31, 2**62, 2**63, -(2**63), 10**30, -(10**30), 10**400]
TEXTS = ["", " ", "x", "\0", "a\nb", "é", "图像", "\U0001f600", "\ud83d", "null", "true", "1e5", "-1", "../x", "~x", "~\0", "/",
         ".", "vision", "batch", "decoder", "values", "mean", "fuser.fused", "vision.patches", "{question}", "{answer}", "a" * 5000,
         "llama", "clip_vision_model", "gpt2", "hf", "jsonl", "train", "float16", "train2014", "<image>", "human"]  # fmt: skip
SHAPES: list[Any] = [[], {}, [[]], [{}], [None], ["vision", "vision"], {"a": {"b": []}}, {"type": None}, {"model": 3},
                     {"": ""}, {"a.b": 1}, [1, "a", None, 2.5], {"type": "mean"}, {"role": "fuser"}, list(range(300))]  # fmt: skip


def nested(depth: int) -> Any:
    """Lists in lists."""
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-9, 99),
    st.sampled_from(HUGE),
    st.floats(),
    st.sampled_from(TEXTS),
    st.text(max_size=8),
    st.sampled_from(SHAPES),
    st.sampled_from([20, 50, 90]).map(nested),
)
STEPS = ("replace", "replace", "replace", "drop", "rename", "copy", "swap", "retype", "wrap", "add", "nudge", "nudge")
CHANGES = st.lists(st.tuples(st.sampled_from(STEPS), st.integers(0, 10**6), ODD), min_size=1, max_size=3)
"""Changes of plain data: (what, where, with what)."""

SNIPPETS = [b"", b"\0", b"\xff", b"\xef\xbb\xbf", b"\t", b"\r", b"\n", b": ", b"- ", b"{", b"}", b"[", b"]", b'"', b"'", b"#",
            b"&a ", b"*a", b"<<: ", b"!!python/none ", b"---\n", b"NaN", b"Infinity", b"1e999", b"9" * 5000, b"[" * 3000,
            b"\\ud83d", b"? ", b"|", b">", b"%", b"@", b"`", b"0x", b"1:2:3", b"2026-01-31", b",",
            b'{"a":1,"a":2}', b"\xc3\x28", b"\\u0000", b"~"]  # fmt: skip
CUTS = ("insert", "delete", "truncate", "line twice", "overwrite", "as utf-16")
TEXT_CHANGES = st.one_of(
    st.just([]),
    st.lists(st.tuples(st.sampled_from(CUTS), st.integers(0, 10**6), st.sampled_from(SNIPPETS)), min_size=1, max_size=2),
)
"""Changes of bytes, in every second file: (what, where, with what)."""


def places(tree: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) of a tree."""
    found, waiting = [], [tree]
    while waiting:
        inner = waiting.pop()
        for key in list(inner) if isinstance(inner, dict) else range(len(inner)):
            found.append((inner, key))
            if isinstance(inner[key], dict | list):
                waiting.append(inner[key])
    return found


def mutated(tree: Any, changes: Sequence[tuple[str, int, Any]]) -> Any:
    """A changed copy."""
    tree = copy.deepcopy(tree)
    for step, where, value in changes:
        value, found = copy.deepcopy(value), places(tree)
        if not found:
            break
        holder, key = found[where % len(found)]
        _change(step, holder, key, value, found[(where * 7 + 3) % len(found)])
    return tree


def _change(step: str, holder: Any, key: Any, value: Any, other: tuple[Any, Any]) -> None:
    if step == "drop":
        del holder[key]
    elif step == "rename" and isinstance(holder, dict):
        holder[value if isinstance(value, str) else f"{key}s"] = holder.pop(key)
    elif step in ("copy", "swap"):
        there, name = other
        mine, theirs = copy.deepcopy(holder[key]), copy.deepcopy(there[name])
        there[name] = mine
        if step == "swap":
            holder[key] = theirs
    elif step == "retype":
        known = holder[key]
        holder[key] = str(known) if not isinstance(known, str) else len(known)
    elif step == "nudge" and isinstance(holder[key], (int, float)):
        holder[key] = {0: holder[key] + 1, 1: holder[key] - 1, 2: holder[key] * 2, 3: holder[key] // 2}[len(str(value)) % 4]
    elif step == "wrap":
        holder[key] = [holder[key]] if not isinstance(value, dict) else {"type": holder[key]}
    elif step == "add":
        if isinstance(holder, dict):
            holder[value if isinstance(value, str) else f"{key}_"] = value
        else:
            holder.insert(key, value)
    else:
        holder[key] = value


def cut(data: bytes, changes: Sequence[tuple[str, int, bytes]]) -> bytes:
    """Changed bytes."""
    for step, where, snippet in changes:
        place = where % (len(data) + 1)
        if step == "insert":
            data = data[:place] + snippet + data[place:]
        elif step == "delete":
            data = data[:place] + data[place + 1 + where % 30 :]
        elif step == "truncate":
            data = data[:place]
        elif step == "overwrite":
            data = data[:place] + snippet + data[place + len(snippet) :]
        elif step == "line twice":
            rows = data.splitlines(keepends=True)
            if rows:
                row = where % len(rows)
                data = b"".join([*rows[: row + 1], rows[row], *rows[row + 1 :]])
        else:
            data = data.decode("utf-8", "replace").encode("utf-16")
    return data
