"""COCO captions, LLaVA conversations and tables under any column names."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest
from data.small_sets import coco, picture
from dehvf_kit_benchmarks.coco_captions import CocoCaptionsDataConfig
from dehvf_kit_streams.llava import LlavaDataConfig
from dehvf_kit_streams.table import TableDataConfig
from pydantic import ValidationError

from dehvf_kit.data.samples import Message, Sample, each_image
from dehvf_kit.errors import DataError


def coco_config(folder: Path, **settings) -> CocoCaptionsDataConfig:
    return CocoCaptionsDataConfig(**{"annotations": folder / "dataset_coco.json", "images": folder, "restval": True, **settings})


def test_coco_trains_on_every_caption_and_tests_on_every_picture(tmp_path: Path) -> None:
    found = coco_config(coco(tmp_path / "coco"))
    train, test = found.samples("train"), found.samples("test")
    assert (len(train), len(test)) == (4 * 5, 3)
    assert len(coco_config(tmp_path / "coco", restval=False).samples("train")) == 3 * 5
    assert train[0] == Sample("1/0", found.question, "a green square", tmp_path / "coco/train2014/1.jpg")
    assert [sample.id for sample in test] == ["7", "8", "9"] and all(sample.image.is_file() for sample in test)
    assert found.references()["7"] == [
        "a green square",
        "the square is green",
        "a green picture",
        "one green square.",
        "a square that is green",
    ]


def test_restval_must_be_stated() -> None:
    with pytest.raises(ValidationError, match="restval"):
        CocoCaptionsDataConfig()


def test_coco_faults_are_named_at_once(tmp_path: Path) -> None:
    file = coco(tmp_path / "coco") / "dataset_coco.json"
    rows = json.loads(file.read_text())["images"]
    rows[1]["cocoid"] = rows[0]["cocoid"]
    rows[2]["sentences"] = [{"raw": " "}]
    del rows[3]["filename"]
    rows += [{**rows[0], "split": "tset"}, 7, {**rows[0], "cocoid": None}]
    file.write_text(json.dumps({"images": rows}))
    with pytest.raises(DataError) as caught:
        coco_config(tmp_path / "coco").samples("train")
    for text in (
        "id twice: 1",
        "image without captions: 3",
        "image without file name: 4",
        "unknown split: images[9] ('tset')",
        "not an image: images[10] (7)",
        "image without id: images[11]",
    ):
        assert text in str(caught.value), text


TALK = [
    {"from": "human", "value": "<image>\nWhat is it?"},
    {"from": "gpt", "value": "A square."},
    {"from": "human", "value": "Which colour?"},
    {"from": "gpt", "value": "Red."},
]


def talks(folder: Path, *rows: object, lines: bool = False) -> Path:
    file = folder / ("talks.jsonl" if lines else "talks.json")
    file.write_text("\n".join(json.dumps(row) for row in rows) if lines else json.dumps(rows))
    return file


@pytest.mark.parametrize("lines", [False, True])
def test_a_conversation_is_a_sample_for_each_answer(tmp_path: Path, lines: bool) -> None:
    file = talks(tmp_path, {"id": "a", "image": "a.png", "conversations": TALK}, {"conversations": TALK[2:]}, lines=lines)
    messages = (Message("user", "What is it?"), Message("assistant", "A square."), Message("user", "Which colour?"))
    assert LlavaDataConfig(train=file).samples("train") == [
        Sample("a/0", "What is it?", "A square.", tmp_path / "a.png"),
        Sample("a/1", "What is it?\nA square.\nWhich colour?", "Red.", tmp_path / "a.png", messages=messages),
        Sample("1/0", "Which colour?", "Red."),
    ]
    first = LlavaDataConfig(train=file, turns="first", images=tmp_path / "pictures").samples("train")
    assert [sample.id for sample in first] == ["a/0", "1/0"] and first[0].image == tmp_path / "pictures/a.png"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"conversations": TALK[:1]}, "turns of human and gpt in pairs"),
        ({"conversations": TALK[1:3]}, "turn 0 is not from human: 'gpt'"),
        ({"conversations": [{"from": "human", "value": "<image>"}, TALK[1]], "image": "a"}, "there is no text beside"),
        ({"conversations": TALK, "image": 3}, "'image' must be a path or an image, given 3"),
        ("text", "wants `conversations`"),
    ],
)
def test_what_is_no_conversation(tmp_path: Path, row: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        LlavaDataConfig(train=talks(tmp_path, row)).samples("train")


def test_repeated_ids_are_normal_and_made_unique(tmp_path: Path) -> None:
    row = {"id": "a", "conversations": TALK[2:]}
    reading = LlavaDataConfig(train=talks(tmp_path, row, row)).read("train")
    assert [one.id for one in reading.samples] == ["a/0", "a#2/0"] and reading.issues == []
    reading = LlavaDataConfig(train=talks(tmp_path, row, row, {**row, "id": "a#2"}, row)).read("train")
    assert [one.id for one in reading.samples] == ["a/0", "a#2/0", "a#2#2/0", "a#3/0"]


def test_images_held_in_conversations_are_told_apart_by_their_bytes(tmp_path: Path) -> None:
    found = []
    for name, colour in (("one", "red"), ("two", "blue"), ("three", "red")):
        data = base64.b64encode(picture(tmp_path / name / "a.png", colour).read_bytes()).decode()
        row = {"id": "a", "image": f"data:image/png;base64,{data}", "conversations": TALK}
        found.append(LlavaDataConfig(train=talks(tmp_path / name, row), turns="first").samples("train")[0])
    first, second, third = (one.image for one in found)
    assert first != second and first == third and len(each_image(found)) == 2


def test_a_tag_in_a_conversation_is_text(tmp_path: Path) -> None:
    tags = [{"from": "human", "value": "What is <image> in SVG?"}, {"from": "gpt", "value": "<image> is a tag."}]
    reading = LlavaDataConfig(train=talks(tmp_path, {"conversations": tags})).read("train")
    assert [(one.question, one.answer) for one in reading.samples] == [("What is <image> in SVG?", "<image> is a tag.")]
    assert not any(issue.fatal for issue in reading.issues) and reading.issues


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({"images": ["a.png", "b.png"]}, "placeholders and images disagree"),
        ({"video": "a.mp4"}, "video"),
        ({}, "placeholder without an image"),
    ],
)
def test_conversations_that_cannot_be_used_are_named(tmp_path: Path, fields: dict, kind: str) -> None:
    issues = LlavaDataConfig(train=talks(tmp_path, {"conversations": TALK, **fields})).read("train").issues
    (issue,) = [issue for issue in issues if issue.fatal]
    assert (issue.kind, issue.fatal) == (kind, True)


def test_a_list_of_one_image_in_a_conversation(tmp_path: Path) -> None:
    file = talks(tmp_path, {"images": ["a.png"], "conversations": TALK})
    assert LlavaDataConfig(train=file).samples("train")[0].image == tmp_path / "a.png"


COLUMNS = {"id": "question_id", "image": "file", "question": "ask", "answer": "answers", "kind": "about"}
ROWS = [
    {"question_id": 7, "file": "p/a.png", "ask": "Which colour?", "answers": ["red", "rose"], "about": "colour"},
    {"question_id": 8, "file": None, "ask": "How many?", "answers": ["3"], "about": None},
]


def expected(folder: Path) -> list[Sample]:
    first = Sample("7", "Which colour?", "red", folder / "p/a.png", "colour", references=("red", "rose"))
    return [first, Sample("8", "How many?", "3")]


def test_a_table_of_json_lines(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    assert TableDataConfig(train=str(file), columns=COLUMNS).samples("train") == expected(tmp_path)


def test_a_parquet_table_with_paths_and_with_pictures_inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets", reason="needs the extra `data`")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    data = picture(tmp_path / "p/a.png").read_bytes()
    file = tmp_path / "a.parquet"
    datasets.Dataset.from_list(ROWS).to_parquet(str(file))
    assert TableDataConfig(train=str(file), columns=COLUMNS).samples("train") == expected(tmp_path)
    inside = [{**ROWS[0], "file": {"bytes": data, "path": None}}, {**ROWS[1], "question_id": 9}]
    datasets.Dataset.from_list(inside).to_parquet(str(file))
    first, second = TableDataConfig(train=str(file), columns=COLUMNS).samples("train")
    assert first.image.read_bytes() == data and second.image is None and str(first.image).endswith("a.parquet[0].file")
    with pytest.raises(DataError, match=r"missing column: question \(no row has it.* about, answers, ask, file, question_id; set"):
        TableDataConfig(train=str(file)).samples("train")


def test_images_of_the_splits_of_one_table_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets", reason="needs the extra `data`")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    for split, colour in (("train", "red"), ("test", "blue")):
        held = {"bytes": picture(tmp_path / f"{colour}.png", colour).read_bytes(), "path": None}
        rows = [{"image": held, "images": [held, held], "question": "Which?", "answer": "this", "choices": ["this"]}]
        datasets.Dataset.from_list(rows).to_parquet(str(tmp_path / f"table/data/{split}-00000-of-00001.parquet"))
    source = {"path": str(tmp_path / "table")}
    for columns in ({}, {"image": "images"}):
        config = TableDataConfig(**source, columns=columns)
        again, other = config.samples("train"), TableDataConfig(**source, train="test", columns=columns).samples("train")
        samples = [*config.samples("train"), *config.samples("test")]
        assert samples[0] == again[0] and samples[1] == other[0] and samples[0] != samples[1]
        assert [one.image.read_bytes() for one in each_image(samples)] == [
            (tmp_path / f"{name}.png").read_bytes() for name in ("red", "blue") for _ in range(2 if columns else 1)
        ]


def test_faulty_rows_of_a_table_are_named_at_once(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    rows = [ROWS[0], ROWS[0], {**ROWS[0], "question_id": 1, "ask": 3}, {**ROWS[0], "question_id": 2, "answers": []}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError) as caught:
        TableDataConfig(train=str(file), columns=COLUMNS).samples("train")
    for text in (
        "id '7' appears twice",
        "a.jsonl:3 ('ask' must be a text, given 3; set data.columns)",
        "answer is missing: {file}:4 ('answers' must be a text, given []",
    ):
        assert text.format(file=file) in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"train": "no.jsonl"}, "there is no file 'no.jsonl'"),
        ({"train": "no.parquet"}, "there is no file 'no.parquet'"),
        ({"path": "./nowhere"}, "there is no folder './nowhere'"),
    ],
)
def test_a_table_that_is_not_there(settings: dict, message: str) -> None:
    pytest.importorskip("datasets", reason="needs the extra `data`")
    with pytest.raises(DataError, match=message):
        TableDataConfig(**settings).samples("train")


def test_a_test_split_that_is_named_is_read_beside_held_out_images(tmp_path: Path) -> None:
    for split in ("train", "test"):
        rows = [{"id": f"{split}{n}", "question": f"{n}?", "answer": "a"} for n in range(4)]
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = {"path": str(tmp_path), "validation": 0.25}
    for settings, where in (
        ({**path, "test": "test"}, "test"),
        (path, "train"),
        ({"train": str(tmp_path / "train.jsonl"), "validation": 0.25}, "train"),
    ):
        config = TableDataConfig(**settings)
        saved = TableDataConfig.model_validate(config.model_dump())
        for one in (config, saved):
            assert {sample.id.rstrip("0123456789") for sample in one.samples("test")} == {where}
            assert one.validation_split == ("validation" if where == "test" else "test")
