"""Rows as real tools write them: the same samples from every form, and nothing that is lost without a word."""

from __future__ import annotations

import base64
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from data.small_sets import picture
from dehvf_kit_streams.stream import StreamDataConfig
from dehvf_kit_streams.table import TableDataConfig

from dehvf_kit.data.jsonl import JsonlDataConfig
from dehvf_kit.data.samples import Reading
from dehvf_kit.errors import DataError


def json_lines(file: Path, *rows: dict[str, Any]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def read(file: Path, **settings: Any) -> Reading:
    return TableDataConfig(train=str(file), test="", **settings).read("train")


def row(**fields: Any) -> dict[str, Any]:
    return {"image": "a.png", "question": "what ?", "answer": "red", **fields}


@pytest.mark.parametrize(
    ("fields", "image"),
    [
        ({"image": ["a.png"]}, "a.png"),
        ({"image": None, "images": ["a.png"]}, "a.png"),
        ({"image": {"bytes": None, "path": "a.png"}}, "a.png"),
        ({"image": []}, None),
        ({"image": "", "video": None}, None),
        ({"image": "a.png", "video": "clip7"}, "a.png"),
    ],
)
def test_a_single_image_however_it_is_given(tmp_path: Path, fields: dict[str, Any], image: str | None) -> None:
    file = json_lines(tmp_path / "a.jsonl", row(**fields), row())
    for found in (read(file), JsonlDataConfig(train=file).read("train")):
        assert [issue for issue in found.issues if issue.fatal] == []
        assert found.samples[0].image == (tmp_path / image if image else None)


def test_an_image_inside_the_row(tmp_path: Path) -> None:
    data = picture(tmp_path / "a.png").read_bytes()
    uri = "data:image/png;base64," + base64.b64encode(data).decode()
    (found,) = read(json_lines(tmp_path / "a.jsonl", row(image=uri))).samples
    assert found.image.read_bytes() == data


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({"image": None, "video": "a.mp4"}, "video"),
        ({"image": None, "question": "<image>\nwhat ?"}, "placeholder without an image"),
        ({"question": "<image><image>what ?"}, "placeholders and images disagree"),
        ({"image": ["a.png", "b.png", "c.png"], "question": "<image> or <image> ?"}, "placeholders and images disagree"),
        ({"question": "<image>"}, "empty question"),
        ({"image": "https://a.org/a.png"}, "image is an address"),
        ({"image": "HTTP://a.org/a.png"}, "image is an address"),
        ({"image": "DATA:image/png;base64,@@@"}, "not an image"),
        ({"image": 7}, "not an image"),
    ],
)
def test_what_cannot_be_used_is_named(tmp_path: Path, fields: dict[str, Any], kind: str) -> None:
    file = json_lines(tmp_path / "a.jsonl", row(), row(**fields))
    reading = read(file)
    assert [(issue.kind, issue.place) for issue in reading.issues if issue.fatal] == [(kind, f"{file}:2")]
    with pytest.raises(DataError, match="a.jsonl:2"):
        StreamDataConfig(train=str(file), size=2).samples("train")


def test_several_images_of_a_row_keep_their_places_in_the_text(tmp_path: Path) -> None:
    two = {"image": None, "images": ["a.png", "b.png"]}
    file = json_lines(tmp_path / "a.jsonl", row(**two), row(**two, question="<image>\nor <image> ?"))
    samples = read(file).samples
    assert [one.images for one in samples] == [(tmp_path / "a.png", tmp_path / "b.png")] * 2
    assert samples[1].question == "<image>\nor <image> ?"
    assert [one.image for one in samples[1].apart()] == list(samples[1].images) and samples[1].apart()[1].images == samples[
        1
    ].images[1:]
    assert StreamDataConfig(train=str(file), size=2).samples("train")[0].images == samples[0].images


def test_a_placeholder_is_removed_and_a_tag_is_text(tmp_path: Path) -> None:
    file = json_lines(tmp_path / "a.jsonl", row(question="<image>\nwhat ?"), row(image=None, question="What is <image> in SVG?"))
    reading = read(file)
    assert [one.question for one in reading.samples] == ["what ?", "What is <image> in SVG?"]
    assert [issue.kind for issue in reading.issues] == ["<image> inside a text, kept as text"]


def test_columns_that_are_not_read_are_named(tmp_path: Path) -> None:
    file = json_lines(tmp_path / "a.jsonl", {"img": "a.png", "question": "what ?", "answer": "red", "licence": "CC0"})
    found = {issue.place: issue for issue in read(file).issues}
    assert found["img"].fatal and found["img"].detail == "set data.columns.image=img"
    assert not found["licence"].fatal
    as_jsonl = {issue.place: issue for issue in JsonlDataConfig(train=file).read("train").issues}
    assert as_jsonl["img"].detail == "rename it to image, or set data.columns.image=img and data.type=table"
    both = json_lines(tmp_path / "b.jsonl", row(img="b.png"))
    assert [issue.fatal for issue in read(both).issues] == [False]


def test_a_conversation_beside_a_question_is_noted(tmp_path: Path) -> None:
    talk = [{"role": "user", "content": "Which?"}, {"role": "assistant", "content": "this"}]
    both, alone = row(messages=talk), {"messages": talk}
    reading = read(json_lines(tmp_path / "a.jsonl", both, alone))
    assert [one.question for one in reading.samples] == [both["question"], "Which?"]
    assert [(one.kind, one.place) for one in reading.issues if not one.fatal] == [
        ("conversation beside a question, not read", f"{tmp_path}/a.jsonl:1")
    ]


@pytest.mark.parametrize("ids", [("1", None), (None, "0")])
def test_an_id_that_is_another_rows_number_is_named_as_that(tmp_path: Path, ids: tuple[str | None, ...]) -> None:
    (issue,) = (one for one in read(json_lines(tmp_path / "a.jsonl", *(row(id=one) for one in ids))).issues if one.fatal)
    assert issue.kind == "id twice" and "is also the number of a row without an id; give one to every row" in issue.detail


def test_a_missing_column_is_one_fault(tmp_path: Path) -> None:
    file = json_lines(tmp_path / "a.jsonl", *[{"image": "a.png", "question": "what ?", "answers": "red"}] * 3)
    (issue,) = [issue for issue in read(file).issues if issue.fatal]
    assert issue.kind == "missing column" and "did you mean 'answers'?" in issue.detail


ANSWERS = {
    "text": ("red", "red"),
    "whole number": (3, "3"),
    "whole number as a float": (10.0, "10"),
    "decimal": (0.1, "0.1"),
    "list": ([None, "red", "rose"], "red"),
    "text of digits": ("007", "007"),
    "nothing in a text": ("", ""),
}


@pytest.mark.parametrize("case", ANSWERS)
def test_answers_of_json(tmp_path: Path, case: str) -> None:
    given, text = ANSWERS[case]
    file = json_lines(tmp_path / "a.jsonl", row(answer=given))
    stream = StreamDataConfig(train=str(file), size=1).samples("train")
    for samples in (read(file).samples, JsonlDataConfig(train=file).samples("train"), stream):
        assert [one.answer for one in samples] == [text]


@pytest.mark.parametrize("given", [None, [], True, {"a": 1}])
def test_what_is_no_answer(tmp_path: Path, given: Any) -> None:
    file = json_lines(tmp_path / "a.jsonl", row(), row(answer=given))
    (issue,) = [issue for issue in read(file).issues if issue.fatal]
    assert issue.kind in ("answer is missing", "answer is no text") and issue.place == f"{file}:2"


def test_typed_answers_are_the_same_from_a_file_a_folder_a_table_and_a_stream(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As pandas, polars, duckdb and `datasets` write them: float32, float64, decimals, labels."""
    datasets = pytest.importorskip("datasets", reason="needs the extra `data`")
    import pyarrow as pa

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    labels = datasets.ClassLabel(names=["cat", "dog"])
    columns = {
        "single": (pa.array([0.1, 2.0], pa.float32()), ["0.1", "2"]),
        "double": (pa.array([10.0, 0.25], pa.float64()), ["10", "0.25"]),
        "decimal": (pa.array([Decimal("1.50"), Decimal("2.00")], pa.decimal128(5, 2)), ["1.50", "2.00"]),
        "label": (pa.array([1, 0], pa.int64()), ["dog", "cat"]),
        "labels": (pa.array([[1], [0, 1]], pa.list_(pa.int64())), ["dog", "cat"]),
    }
    table = datasets.Dataset(pa.table({"question": ["a", "b"], **{name: cells for name, (cells, _) in columns.items()}}))
    table = table.cast_column("label", labels).cast_column("labels", datasets.List(labels))
    (tmp_path / "folder").mkdir()
    table.to_parquet(str(tmp_path / "folder/train.parquet"))
    table.save_to_disk(str(tmp_path / "disk"))
    file = str(tmp_path / "folder/train.parquet")
    for name, (_, expected) in columns.items():
        sources = [
            TableDataConfig(train=file, columns={"answer": name}),
            TableDataConfig(path=str(tmp_path / "folder"), columns={"answer": name}),
            TableDataConfig(path=str(tmp_path / "disk"), columns={"answer": name}),
            StreamDataConfig(train=file, size=2, columns={"answer": name}),
        ]
        for source in sources:
            assert [one.answer for one in source.samples("train")] == expected, (name, source.type)


def test_images_in_lists_of_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets", reason="needs the extra `data`")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    data = picture(tmp_path / "a.png").read_bytes()
    cell = {"bytes": data, "path": "a.png"}
    rows = [{"images": cells, "question": "q", "answer": "a"} for cells in ([cell], [], None, [cell, cell])]
    datasets.Dataset.from_list(rows).to_parquet(str(tmp_path / "a.parquet"))
    reading = read(tmp_path / "a.parquet")
    assert [[image.read_bytes() for image in one.images] for one in reading.samples] == [[data], [], [], [data, data]]
    assert reading.issues == []
