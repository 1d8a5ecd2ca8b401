"""JSON that means one thing, or an error."""

from __future__ import annotations

import json

import pytest

from dehvf_kit.utils.plain_data import NotJson, deeper_than, parse_json

FAULTY = {
    "half": (b'{"a": ', "not JSON: Expecting value at column 7", 1),
    "second line": (b'{"a": 1,\n 3}', "not JSON: Expecting property name", 2),
    "NaN": (b'{"a": NaN}', "NaN is no number in JSON", 0),
    "minus infinity": (b"[-Infinity]", "-Infinity is no number in JSON", 0),
    "infinite": (b"[1e400]", "1e400 is too large a number", 0),
    "many digits": (b"[" + b"9" * 5000 + b"]", "not JSON: Exceeds the limit", 0),
    "key twice": (b'[{"a": 1, "a": 1}]', "key 'a' stands twice in one object; keep one", 0),
    "deep": (b"[" * 100_000, "nested too deeply", 0),
    "half a character": (b'["\\uDC00"]', "holds half a character", 0),
    "halves in the wrong order": (b'["\\udc00\\ud83d"]', "holds half a character", 0),
    "Latin-1": (b'["\xe9"]', "not UTF-8: invalid continuation byte at byte 2", 0),
    "UTF-16": ("[1]".encode("utf-16"), "not UTF-8: invalid start byte at byte 0", 0),
    "null byte": (b'["\0"]', "not JSON: Invalid control character", 1),
}


@pytest.mark.parametrize("case", FAULTY)
def test_faulty_json(case: str) -> None:
    data, message, line = FAULTY[case]
    with pytest.raises(NotJson) as caught:
        parse_json(data)
    assert str(caught.value).startswith(message) and caught.value.line == line


@pytest.mark.parametrize("value", [None, 0, -1.5, "é\U0001f600\\ud83d", [], {"a": [{"b": {}}]}, 10**100])
def test_sound_json(value: object) -> None:
    for ascii_alone in (True, False):
        data = json.dumps(value, ensure_ascii=ascii_alone).encode()
        assert parse_json(data) == parse_json(b"\xef\xbb\xbf" + data) == value


def test_repeated_keys_may_be_gathered() -> None:
    repeated: list[str] = []
    assert parse_json(b'{"a": 1, "b": {"c": 1, "c": 2, "c": 3}, "a": 4}', repeated) == {"a": 4, "b": {"c": 3}}
    assert repeated == ["c", "a"]


def test_depth() -> None:
    for depth in range(5):
        value = json.loads("[" * depth + "1" + "]" * depth)
        assert [deeper_than(value, limit) for limit in range(6)] == [depth > limit for limit in range(6)]
    assert not deeper_than({"a": 1, "b": []}, 2) and deeper_than({"a": {"b": [1]}}, 2)
    with pytest.raises(NotJson, match="nested more than 3 deep"):
        parse_json(b"[[[[1]]]]", max_depth=3)
