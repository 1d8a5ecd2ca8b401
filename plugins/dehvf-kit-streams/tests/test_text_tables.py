"""CSV, TSV and JSON tables as pandas, polars, duckdb and spreadsheets write them; one file split in two."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from dehvf_kit_streams.table import TableDataConfig

from dehvf_kit.data.jsonl import JsonlDataConfig
from dehvf_kit.errors import DataError

ROWS = [("a.png", "what, and ?", "3.0"), ("b.png", 'say "hi"\nnow', "10.0"), ("", "none ?", "0.5")]
EXPECTED = [("a.png", "what, and ?", "3"), ("b.png", 'say "hi"\nnow', "10"), (None, "none ?", "0.5")]


def text(delimiter: str) -> str:
    lines = [["image", "question", "answer"], *ROWS]
    return "".join(delimiter.join('"' + cell.replace('"', '""') + '"' for cell in row) + "\r\n" for row in lines)


def found(config: TableDataConfig, folder: Path) -> list[tuple[str | None, str, str]]:
    samples = config.samples("train")
    return [(one.image and str(one.image.relative_to(folder)), one.question, one.answer) for one in samples]


@pytest.mark.parametrize(
    ("name", "delimiter", "encoding"),
    [
        ("a.csv", ",", "utf-8"),
        ("a.csv", ";", "utf-8-sig"),
        ("a.csv", "|", "utf-8"),
        ("a.tsv", "\t", "utf-8"),
        ("a.csv", "\t", "utf-16"),
    ],
)
def test_a_file_and_a_folder_of_it(tmp_path: Path, name: str, delimiter: str, encoding: str) -> None:
    (tmp_path / name).write_bytes(text(delimiter).encode(encoding))
    assert found(TableDataConfig(train=str(tmp_path / name), test=""), tmp_path) == EXPECTED
    assert TableDataConfig.recognise(tmp_path / name) == {"train": str(tmp_path / name), "test": ""}
    assert found(TableDataConfig(**TableDataConfig.recognise(tmp_path)), tmp_path) == EXPECTED


def test_texts_stay_as_they_are(tmp_path: Path) -> None:
    """A column with one cell that is no float as Python prints it is text."""
    (tmp_path / "a.csv").write_text("question,answer\na,3.0\nb,007\nc,NA\n")
    assert [one.answer for one in TableDataConfig(train=str(tmp_path / "a.csv")).samples("train")] == ["3.0", "007", "NA"]


def test_a_json_list_of_rows(tmp_path: Path) -> None:
    rows = [{"image": image, "question": question, "answer": float(answer)} for image, question, answer in ROWS]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    assert found(TableDataConfig(**TableDataConfig.recognise(tmp_path / "a.json")), tmp_path) == EXPECTED


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"question,answer\na,b,c\n", "3 cells, the file has 2 columns"),
        (b"question,answer\na,\nb,c\n", "answer is missing"),
        (b'question,answer\n"a" b,c\n', "quote a cell that holds quotes"),
        (b"question,question\na,b\n", "two columns are named 'question'"),
        (b"", "wants a line of column names"),
        (b"question,answer\n\xe9,b\n", "save it as UTF-8"),
    ],
)
def test_faulty_files(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(DataError, match=message):
        TableDataConfig(train=str(tmp_path / "a.csv")).samples("train")


def test_rows_of_several_images_are_split_by_all_of_them(tmp_path: Path) -> None:
    """Rows 0 and 1 share their second image, 1 and 2 their first; only rows 3 and 4 are apart from them."""
    pairs = [("a", "x"), ("b", "x"), ("b", "y"), ("c", "z"), ("d", "w")]
    rows = [{"images": [f"{one}.png", f"{two}.png"], "question": "q", "answer": "a"} for one, two in pairs]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for seed in range(8):
        config = JsonlDataConfig(train=tmp_path / "a.jsonl", validation=0.4, validation_seed=seed)
        train, test = ({image for one in config.samples(split) for image in one.images} for split in ("train", "test"))
        assert train and test and not train & test


def test_the_split_does_not_depend_on_where_the_data_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"image": f"images/{n}.png", "question": "q", "answer": "a"} for n in range(40)]
    chosen = []
    for folder in (tmp_path / "one", tmp_path / "another" / "deeper"):
        folder.mkdir(parents=True)
        (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        chosen.append(JsonlDataConfig(train=folder / "a.jsonl", validation=0.2).samples("test"))
    monkeypatch.chdir(tmp_path)
    chosen.append(JsonlDataConfig(train="one/a.jsonl", validation=0.2).samples("test"))
    names = [{one.image.name for one in samples} for samples in chosen]
    assert names[0] == names[1] == names[2] and len(names[0]) == 8


def test_one_file_is_split_by_image(tmp_path: Path) -> None:
    rows = [{"image": f"{n % 10}.png", "question": f"q{n}", "answer": "a"} for n in range(40)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = JsonlDataConfig(train=tmp_path / "a.jsonl", validation=0.2)
    train, test = (config.samples(split) for split in ("train", "test"))
    assert (len(train), len(test), config.parts()) == (32, 8, ("train", "test"))
    assert not {one.image for one in train} & {one.image for one in test}
    assert config.samples("test") == test
    other = JsonlDataConfig(train=tmp_path / "a.jsonl", validation=0.2, validation_seed=1).samples("test")
    assert {one.image for one in other} != {one.image for one in test}
    assert config.validation_split == "test" and JsonlDataConfig(train=tmp_path / "a.jsonl").validation_split is None
    (tmp_path / "b.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:3]))
    three = JsonlDataConfig(train=tmp_path / "a.jsonl", test=tmp_path / "b.jsonl", validation=0.2)
    assert three.parts() == ("train", "validation", "test") and three.validation_split == "validation"
    assert [len(three.samples(part)) for part in three.parts()] == [32, 8, 3] and three.samples("validation") == test
    with pytest.raises(DataError, match="data.validation is not set; give the share"):
        JsonlDataConfig(train=tmp_path / "a.jsonl").samples("validation")
