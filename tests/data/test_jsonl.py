"""Questions about pictures from JSON lines."""

from __future__ import annotations

from pathlib import Path

import pytest

from dehvf_kit.data.jsonl import JsonlDataConfig
from dehvf_kit.data.samples import Sample
from dehvf_kit.errors import DataError


def lines(folder: Path, *rows: str | bytes) -> Path:
    file = folder / "a.jsonl"
    file.write_bytes(b"\n".join(row if isinstance(row, bytes) else row.encode() for row in rows))
    return file


def test_samples_in_order_with_pictures_beside_the_file(tmp_path):
    file = lines(
        tmp_path,
        '{"image": "pictures/a.png", "question": "what?", "answer": "é", "id": 7, "kind": "colour"}',
        "",
        '{"question": "why?", "answer": "", "more": 1}',
        '{"image": "/far/b.png", "question": "who?", "answer": "x"}',
    )
    assert JsonlDataConfig(train=file).samples("train") == [
        Sample("7", "what?", "é", tmp_path / "pictures/a.png", "colour"),
        Sample("3", "why?", ""),
        Sample("4", "who?", "x", Path("/far/b.png")),
    ]


def test_a_byte_order_mark_is_no_fault(tmp_path):
    assert len(JsonlDataConfig(train=lines(tmp_path, b'\xef\xbb\xbf{"question": "a", "answer": "b"}')).samples("train")) == 1


GOOD = '{"question": "a", "answer": "b", "id": "1"}'
FAULTY = {
    "not JSON": ([GOOD, "{half"], r"a\.jsonl:2 \(not JSON: Expecting property name enclosed in double quotes at column 2"),
    "not an object": (["[1]"], r"a\.jsonl:1 \(a line must be a JSON object, this one is list"),
    "no answer": (
        [GOOD, '{"question": "a"}'],
        r"a\.jsonl:2 \('answer' must be a text, given None; fields: id, image, question, answer, kind",
    ),
    "number as question": (['{"question": 3, "answer": "b"}'], "'question' must be a text, given 3"),
    "number as image": (
        ['{"question": "a", "answer": "b", "image": 7}'],
        r"a\.jsonl:1 \('image' must be a path or an image, given 7",
    ),
    "truth value as answer": (['{"question": "a", "answer": true}'], "given True, a truth value; write the words"),
    "id twice": ([GOOD, GOOD], r"a\.jsonl:2 \(id '1' appears twice"),
    "id and line number alike": (
        ['{"question": "a", "answer": "b", "id": 2}', '{"question": "a", "answer": "b"}'],
        "id '2' is also the number of a row without an id",
    ),
    "latin-1": ([GOOD, b'{"question": "\xe9", "answer": "b"}'], r"a\.jsonl:2 \(not UTF-8: invalid continuation byte at byte 14"),
}


@pytest.mark.parametrize("case", FAULTY)
def test_a_faulty_line_is_named(case, tmp_path):
    rows, message = FAULTY[case]
    with pytest.raises(DataError, match=message):
        JsonlDataConfig(train=lines(tmp_path, *rows)).samples("train")


def test_files_that_are_not_there(tmp_path):
    with pytest.raises(DataError, match=r"data\.test is not set; name a \.jsonl file"):
        JsonlDataConfig(train=tmp_path / "a.jsonl").samples("test")
    with pytest.raises(DataError, match=r"data\.train: there is no file '.*a\.jsonl'"):
        JsonlDataConfig(train=tmp_path / "a.jsonl").samples("train")
    with pytest.raises(DataError, match=r"data\.train: there is no file '"):
        JsonlDataConfig(train=tmp_path).samples("train")
