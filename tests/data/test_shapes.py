"""What `prepare` makes of rows as real tools write them: the right samples, or a message that names what to change."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from dehvf_kit_doctor.data_report import PartReport, inspect_data
from PIL import Image

from dehvf_kit.data.inspection import recognise
from dehvf_kit.errors import DataError
from dehvf_kit.recipe.files import override
from dehvf_kit.recipe.parser import parse_data
from dehvf_kit.recipe.plugin_manager import plugins

datasets = pytest.importorskip("datasets", reason="needs the extra `data`")
pandas = pytest.importorskip("pandas", reason="not installed")
polars = pytest.importorskip("polars", reason="not installed")
duckdb = pytest.importorskip("duckdb", reason="not installed")
webdataset = pytest.importorskip("webdataset", reason="not installed")

QA = {"question": "what ?", "answer": "red"}
ROW = {"image": "a.png", **QA}
GOOD = ("what ?", "red")
PIXELS = np.zeros((8, 8, 3), np.float32)


class Shape(NamedTuple):
    """A file or folder made in a folder that holds `a.png`.

    expected: question and answer of the one training sample, which has an image; or a phrase of the fault that stops a run.
    note: a phrase of what is noted.
    """

    write: Callable[[Path], Path]
    expected: tuple[str, str] | str
    note: str = ""
    settings: Mapping[str, Any] = {}


def bytes_of() -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(data, "PNG")
    return data.getvalue()


def csv(folder: Path, name: str = "a.csv", sep: str = ",", index: bool = True, **row: Any) -> Path:
    pandas.DataFrame([row]).to_csv(folder / name, sep=sep, index=index)
    return folder / name


def text(folder: Path, content: str, name: str = "a.csv", encoding: str = "utf-8") -> Path:
    (folder / name).write_bytes(content.encode(encoding))
    return folder / name


def lines(folder: Path, *rows: Any) -> Path:
    return text(folder, "".join(json.dumps(row) + "\n" for row in rows), "a.jsonl")


def whole(folder: Path, value: Any, name: str = "a.json") -> Path:
    return text(folder, json.dumps(value), name)


def records(folder: Path, orient: str, **settings: Any) -> Path:
    pandas.DataFrame([ROW] * (2 if settings else 1)).to_json(folder / "a.json", orient=orient, **settings)
    return folder / "a.json"


def table(**columns: Any) -> Any:
    made = datasets.Dataset.from_list([{"image": {"bytes": bytes_of(), "path": None}, **QA, **columns}])
    return made.cast_column("image", datasets.Image())


def parquet(folder: Path, row: Mapping[str, Any]) -> Path:
    datasets.Dataset.from_list([dict(row)]).to_parquet(str(folder / "a.parquet"))
    return folder / "a.parquet"


def shard(folder: Path, **fields: Any) -> Path:
    with webdataset.TarWriter(str(folder / "a.tar")) as writer:
        writer.write({"__key__": "0", **fields})
    return folder / "a.tar"


def partitioned(folder: Path, kind: str) -> Path:
    rows = "select 'a.png' image, 'what ?' question, 'red' answer, unnest(['train', 'test']) split"
    duckdb.sql(f"copy ({rows}) to '{folder}/d' (format {kind}, partition_by (split))")
    (folder / "a.png").rename(folder / "d/a.png")
    return folder / "d"


def said(question: Any, answer: Any = "red", **row: Any) -> dict[str, Any]:
    """A conversation as TRL and ms-swift write it."""
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}], **row}


def shared(question: str, **row: Any) -> list[dict[str, Any]]:
    """A conversation as LLaVA and LLaMA-Factory write it."""
    return [{"conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": "red"}], **row}]


def image_folder(folder: Path) -> Path:
    (folder / "d/train").mkdir(parents=True)
    (folder / "a.png").rename(folder / "d/train/a.png")
    text(folder / "d/train", "file_name,question,answer\na.png,what ?,red\n", "metadata.csv")
    return folder / "d"


def saved(folder: Path) -> Path:
    table().save_to_disk(str(folder / "d"))
    return folder / "d"


def hub_clone(folder: Path, *places: str) -> Path:
    for place in places:
        (folder / "d" / place).parent.mkdir(parents=True, exist_ok=True)
        table().to_parquet(str(folder / "d" / place))
    return folder / "d"


def two_configs(folder: Path) -> Path:
    configs = "".join(f"- config_name: {name}\n  data_files: {name}/*.parquet\n" for name in ("en", "de"))
    text(hub_clone(folder, "en/train.parquet", "de/train.parquet"), f"---\nconfigs:\n{configs}---\n", "README.md")
    return folder / "d"


def frame(folder: Path, write: str, name: str, **row: Any) -> Path:
    getattr(polars.DataFrame([row]), write)(folder / name)
    return folder / name


def blob(folder: Path) -> Path:
    base = duckdb.connect()
    base.execute("create table t(image blob, question text, answer double)")
    base.execute("insert into t values (?, 'what ?', 10)", [bytes_of()])
    base.execute(f"copy t to '{folder}/a.parquet'")
    return folder / "a.parquet"


STREAM = {"type": "stream", "size": 1}
CELL = {"bytes": bytes_of(), "path": None}
PARTS = [{"type": "image"}, {"type": "text", "text": "what ?"}]
TASK = {"data": {"image": "/data/upload/1/a.png", "question": "what ?"}, "annotations": [{"result": []}]}
ALPACA = {"instruction": "<image>what ?", "input": "a square", "output": "red", "images": ["a.png"]}
SWIFT = {"query": "<image>what ?", "response": "red", "images": ["a.png"], "history": [["before", "then"]]}
URI = "data:image/png;base64," + base64.b64encode(bytes_of()).decode()
SHAPES = {
    "pandas: CSV with its index": Shape(lambda f: csv(f, **ROW), GOOD),
    "pandas: CSV with a list of images": Shape(
        lambda f: csv(f, **{**ROW, "image": ["a.png"]}), "is a list or bytes written as text"
    ),
    "pandas: CSV with bytes": Shape(lambda f: csv(f, **{**ROW, "image": bytes_of()}), "is a list or bytes written as text"),
    "pandas: CSV with a list of answers": Shape(
        lambda f: csv(f, image="a.png", question="what ?", answer=["red"]), ("what ?", "['red']"), "may be a list written as text"
    ),
    "pandas: JSON by columns": Shape(lambda f: records(f, "columns"), "orient='records'"),
    "pandas: JSON split": Shape(lambda f: records(f, "split"), "an object of columns, data, index"),
    "pandas: JSON lines called .json": Shape(lambda f: records(f, "records", lines=True), GOOD),
    "pandas: Parquet with bytes": Shape(lambda f: parquet(f, {**QA, "image": bytes_of()}), GOOD),
    "pandas: a pickle": Shape(lambda f: text(f, "", "a.pkl"), "no data set that the kit knows"),
    "spreadsheet: semicolons and decimal commas": Shape(
        lambda f: text(f, "image;question;answer\r\na.png;é, or ?;3,5\r\n", encoding="utf-8-sig"), ("é, or ?", "3,5")
    ),
    "spreadsheet: sep=; above the columns": Shape(
        lambda f: text(f, "sep=;\r\nimage;question;answer\r\na.png;what ?;red\r\n"), GOOD
    ),
    "spreadsheet: Latin-1": Shape(
        lambda f: text(f, "image;question;answer\na.png;é ?;red\n", encoding="cp1252"), "save it as UTF-8"
    ),
    "spreadsheet: Unicode text": Shape(lambda f: text(f, "image\tquestion\tanswer\na.png\twhat ?\tred\n", encoding="utf-16"), GOOD),
    "a path of Windows": Shape(lambda f: csv(f, **{**ROW, "image": ".\\a.png"}), GOOD),
    "a file:// path": Shape(lambda f: lines(f, {**ROW, "image": f"file://{f}/a.png"}), GOOD),
    "polars: Parquet with a struct": Shape(lambda f: frame(f, "write_parquet", "a.parquet", image=CELL, **QA), GOOD),
    "polars: Parquet with a list of bytes": Shape(
        lambda f: frame(f, "write_parquet", "a.parquet", images=[bytes_of()], **QA), GOOD
    ),
    "polars: Arrow": Shape(lambda f: frame(f, "write_ipc", "a.arrow", **QA), "no data set that the kit knows"),
    "duckdb: a blob, a sum as answer": Shape(blob, ("what ?", "10"), "whole number given as a decimal"),
    "duckdb: CSV by split": Shape(lambda f: partitioned(f, "csv"), GOOD),
    "duckdb: Parquet by split": Shape(lambda f: partitioned(f, "parquet"), GOOD),
    "datasets: imagefolder": Shape(image_folder, "set data.columns.image=file_name"),
    "datasets: imagefolder, its column named": Shape(image_folder, GOOD, settings={"columns.image": "file_name"}),
    "datasets: save_to_disk": Shape(saved, GOOD),
    "datasets: a clone of the hub": Shape(lambda f: hub_clone(f, "data/train-00000-of-00001.parquet"), GOOD),
    "datasets: a clone without a shard": Shape(lambda f: hub_clone(f, "data/train-00000-of-00002.parquet"), "holds 1 of 2 shards"),
    "datasets: several configs": Shape(two_configs, "among the available configs: ['en', 'de']"),
    "datasets: CSV of an image column": Shape(lambda f: csv(f, **{**ROW, "image": CELL}), "is a list or bytes written as text"),
    "VQAv2 of the hub": Shape(
        lambda f: parquet(f, {"image": CELL, "question": "what ?", "answers": [{"answer": "red"}]}), "did you mean 'answers'?"
    ),
    "VQAv2 of the hub, its answers named": Shape(
        lambda f: parquet(f, {"image": CELL, "question": "what ?", "answers": [{"answer": "red"}]}),
        "'answers' must be a text",
        settings={"columns.answer": "answers"},
    ),
    "VQA: questions.json": Shape(lambda f: whole(f, {"info": {}, "questions": [QA]}), "an object of info, questions"),
    "COCO: captions.json": Shape(lambda f: whole(f, {"images": [], "annotations": []}), "an object of annotations, images"),
    "GQA: questions by id": Shape(lambda f: whole(f, {"1": QA}), "wants a list of rows"),
    "SQuAD: an object of answers": Shape(lambda f: lines(f, {**ROW, "answer": {"text": ["red"]}}), "answer is no text"),
    "MMMU": Shape(lambda f: parquet(f, {"image_1": CELL, **QA}), "set data.columns.image=image_1"),
    "MMMU, its column named": Shape(
        lambda f: parquet(f, {"image_1": CELL, "question": "what is <image 1> ?", "answer": "red"}),
        ("what is <image 1> ?", "red"),
        "<image 1> inside a text",
        {"columns.image": "image_1"},
    ),
    "VLMEvalKit: TSV with base64": Shape(lambda f: csv(f, "a.tsv", "\t", **{**ROW, "image": URI.partition(",")[2]}), GOOD),
    "webdataset: json and png": Shape(lambda f: shard(f, png=PIXELS, json=QA), GOOD, settings=STREAM),
    "webdataset: txt and cls": Shape(
        lambda f: shard(f, jpg=PIXELS, txt="what ?", cls=3),
        ("what ?", "3"),
        settings={**STREAM, "columns.question": "txt", "columns.answer": "cls"},
    ),
    "webdataset: pyd": Shape(lambda f: shard(f, jpg=PIXELS, pyd=QA), "missing column", "*.pyd", STREAM),
    "webdataset: npy": Shape(lambda f: shard(f, npy=PIXELS, json=QA), "no sample has an image", "*.npy", STREAM),
    "webdataset: two images": Shape(
        lambda f: shard(f, **{"l.png": PIXELS, "r.png": PIXELS, "json": QA}), "name one by data.columns.image", "", STREAM
    ),
    "webdataset: a shard as data": Shape(lambda f: shard(f, png=PIXELS, json=QA), "data.type=stream"),
    "img2dataset": Shape(
        lambda f: shard(f, jpg=PIXELS, json={"url": "http://a.org/b.jpg", "caption": "a"}), "missing column", "caption", STREAM
    ),
    "Label Studio: JSON": Shape(lambda f: whole(f, [TASK]), "missing column", "annotations"),
    "Label Studio: JSON-MIN": Shape(lambda f: whole(f, [{**ROW, "image": "/data/upload/1/a.png"}]), "missing image"),
    "Label Studio: JSON-MIN, several choices": Shape(
        lambda f: whole(f, [{**ROW, "answer": {"choices": ["a", "b"]}}]), "answer is no text"
    ),
    "Label Studio: CSV": Shape(
        lambda f: csv(f, **{**ROW, "image": "/data/local-files/?d=a.png"}, lead_time=3.2), "missing image", "lead_time"
    ),
    "TRL: messages in parts": Shape(lambda f: lines(f, said(PARTS, images=["a.png"])), GOOD),
    "TRL: messages in Parquet": Shape(lambda f: parquet(f, said(PARTS, [{"type": "text", "text": "red"}], images=[CELL])), GOOD),
    "TRL: prompt and completion": Shape(
        lambda f: lines(f, {"prompt": "what ?", "completion": "red"}), "missing column", "completion"
    ),
    "TRL: preferences": Shape(lambda f: lines(f, {"prompt": "q", "chosen": "a", "rejected": "b"}), "missing column", "rejected"),
    "ms-swift: messages": Shape(lambda f: lines(f, said("<image>what ?", images=["a.png"])), GOOD),
    "ms-swift: objects": Shape(
        lambda f: lines(f, said("<image>what ?", images=["a.png"], objects={"ref": ["a"]})), GOOD, "objects"
    ),
    "ms-swift: an <img> tag": Shape(
        lambda f: lines(f, said("<img>a.png</img>what ?")), "the text has <img>, the row names no image"
    ),
    "ms-swift: query and response": Shape(lambda f: lines(f, SWIFT), "missing column", "history"),
    "LLaMA-Factory: alpaca": Shape(lambda f: whole(f, [ALPACA]), "missing column", "instruction"),
    "LLaMA-Factory: alpaca, its columns named": Shape(
        lambda f: whole(f, [ALPACA]), GOOD, "input", {"columns.question": "instruction", "columns.answer": "output"}
    ),
    "LLaMA-Factory: sharegpt": Shape(
        lambda f: whole(f, shared("<image>what ?", images=["a.png"], system="Be brief.")), GOOD, "system"
    ),
    "LLaMA-Factory: a tool's turn": Shape(
        lambda f: whole(f, [{"conversations": [{"from": "human", "value": "q"}, {"from": "function_call", "value": "{}"}]}]),
        "turn 1 is not from gpt: 'function_call'",
    ),
    "LLaVA": Shape(lambda f: whole(f, shared("<image>\nwhat ?", image="a.png", id="1")), GOOD),
    "Qwen-VL": Shape(
        lambda f: whole(f, shared("Picture 1: <img>a.png</img>\nwhat ?")), "the text has <img>, the row names no image"
    ),
    "OpenAI: messages with a data URI": Shape(
        lambda f: lines(f, said([{"type": "text", "text": "what ?"}, {"type": "image_url", "image_url": {"url": URI}}])), GOOD
    ),
    "Kaggle: id and label": Shape(lambda f: csv(f, id=17, label="cat"), "missing column", "label"),
    "a list called .jsonl": Shape(lambda f: text(f, json.dumps([QA], indent=1), "a.jsonl"), "call the file .json"),
    "rows below a key": Shape(lambda f: whole(f, {"data": [QA]}), "an object of data"),
    "an image as an object of url": Shape(
        lambda f: lines(f, {**ROW, "image": {"url": "http://a.org/a.png"}}), "must be a path or an image"
    ),
    "an answer by number, with choices": Shape(
        lambda f: lines(f, {**ROW, "answer": 1, "choices": ["a", "b"]}), ("what ?", "1"), "choices"
    ),
    "no rows": Shape(lambda f: lines(f), "no samples"),
    "a line of column names alone": Shape(lambda f: text(f, "image,question,answer\n"), "no samples"),
}


def prepared(place: Path, settings: Mapping[str, Any]) -> tuple[PartReport, list[Any]]:
    """The report of the training split, as `dehvf-kit prepare` makes it for a graph that reads images, and its samples."""
    registry = plugins().registry
    configs = [config for (role, _), config in registry.configs.items() if role == "data"]
    given = {"train": str(place)} if settings.get("type") == "stream" else recognise(place, configs)
    raw: dict[str, Any] = {"data": given}
    for key, value in settings.items():
        override(raw, f"data.{key}={value}")
    config = parse_data(raw["data"], str(place), registry)
    reports = inspect_data(config, reads_images=True)
    return reports[0], list(config.read("train").samples) if reports[0].sound else []


@pytest.mark.parametrize("name", SHAPES)
def test_rows_as_tools_write_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    shape = SHAPES[name]
    (tmp_path / "data").mkdir()
    (tmp_path / "data/a.png").write_bytes(bytes_of())
    place = shape.write(tmp_path / "data")
    if isinstance(shape.expected, str):
        try:
            report, _ = prepared(place, shape.settings)
            faults = [f"{issue.kind} {issue}" for issue in report.issues if issue.fatal]
        except DataError as error:
            report, faults = None, [str(error)]
        assert any(shape.expected in fault for fault in faults), faults
    else:
        report, samples = prepared(place, shape.settings)
        assert {(one.question, one.answer, one.image is not None) for one in samples} == {(*shape.expected, True)}
        assert report.sound
    notes = [f"{issue.kind} {issue}" for issue in (report.issues if report else []) if not issue.fatal]
    assert (
        any(shape.note in line for line in notes) if shape.note else report is None or isinstance(shape.expected, str) or not notes
    )
