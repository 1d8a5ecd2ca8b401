"""ScienceQA: its layouts, its prompt formats word by word, and everything that can be wrong with it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from data.small_sets import SIZES, problem, scienceqa
from dehvf_kit_benchmarks.scienceqa import ScienceQaDataConfig
from dehvf_kit_benchmarks.scienceqa_prompt import Problem, choice_of, prompt, reply, reply_start
from pydantic import ValidationError

from dehvf_kit.data.samples import Sample
from dehvf_kit.errors import DataError


def config(folder: Path, **settings: Any) -> ScienceQaDataConfig:
    return ScienceQaDataConfig(path=str(folder), **settings)


def test_upstream_layout(tmp_path: Path) -> None:
    folder = scienceqa(tmp_path / "sqa")
    found = config(folder)
    assert [len(found.samples(split)) for split in ("train", "test")] == [8, 6]
    assert len(config(folder, test_split="val").samples("test")) == 4
    assert found.samples("train")[1] == Sample(
        "2",
        "Question: What colour is it?\nContext: N/A\nOptions: (A) red (B) green (C) blue\nResponse:",
        "The answer is C.",
        folder / "images/train/2/image.png",
        "language science",
        "The answer is",
    )
    assert found.samples("train")[0].image is None


@pytest.mark.parametrize("place", ["{id}/image.png", "{id}.png"])
def test_flat_layouts(tmp_path: Path, place: str) -> None:
    folder = scienceqa(tmp_path / "sqa")
    for file in sorted(folder.glob("images/*/*/image.png")):
        target = folder / "images" / place.format(id=file.parent.name)
        target.parent.mkdir(exist_ok=True)
        file.rename(target)
    for split in SIZES:
        shutil.rmtree(folder / "images" / split)
    pictures = [sample.image for sample in config(folder).samples("train") if sample.image]
    assert len(pictures) == 4 and all(picture.is_file() for picture in pictures)


def test_pictures_can_be_left_out(tmp_path: Path) -> None:
    folder = scienceqa(tmp_path / "sqa")
    shutil.rmtree(folder / "images")
    assert not any(sample.image for sample in config(folder, pictures=False).samples("train"))


@pytest.mark.parametrize("saved", ["parquet", "disk"])
def test_a_datasets_folder_reads_alike(tmp_path: Path, saved: str, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets", reason="needs the extra `data`")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = scienceqa(tmp_path / "sqa")
    problems = json.loads((folder / "problems.json").read_text())
    splits = json.loads((folder / "pid_splits.json").read_text())
    tables = {}
    for split, ids in splits.items():
        rows = [
            {
                **{name: value for name, value in problems[key].items() if name != "split"},
                "image": str(folder / f"images/{split}/{key}/image.png") if problems[key]["image"] else None,
            }
            for key in ids
        ]
        table = datasets.Dataset.from_list(rows).cast_column("image", datasets.Image())
        tables["validation" if split == "val" else split] = table
    target = tmp_path / "table"
    if saved == "disk":
        datasets.DatasetDict(tables).save_to_disk(str(target))
    else:
        for split, table in tables.items():
            (target / "data").mkdir(parents=True, exist_ok=True)
            table = table.map(lambda row: row, load_from_cache_file=False)
            embedded = table.with_format("arrow").map(datasets.table.embed_table_storage, batched=True, load_from_cache_file=False)
            embedded.with_format(None).to_parquet(str(target / f"data/{split}-00000-of-00001.parquet"))
    images = [one.image for split in ("train", "val", "test") for one in config(target).read(split).samples if one.image]
    assert len(set(images)) == len(images), "a row of one split is not that of another"
    for split in ("train", "val", "test"):
        one, other = config(folder).read(split).samples, config(target).read(split).samples
        assert [(s.question, s.answer, s.kind) for s in one] == [(s.question, s.answer, s.kind) for s in other]
        assert [s.id for s in other] == [f"{split}/{row}" for row in range(len(one))]
        assert [s.image and s.image.read_bytes() for s in one] == [s.image and s.image.read_bytes() for s in other]
    with pytest.raises(DataError, match="a table has no captions"):
        config(target, captions=True).samples("train")


def test_a_hub_id_is_not_fetched_unasked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("datasets", reason="needs the extra `data`")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"no folder 'derek-thomas/ScienceQA'.* allow the download by `download: true`"):
        ScienceQaDataConfig(path="derek-thomas/ScienceQA").samples("train")


WHOLE = Problem("1", "Why?", ("one", "two"), 1, "A hint.", "A caption.", "Some\nlecture.", "Some  solution.", "natural science", 3)
BARE = Problem("2", "Why?", ("one", "two"), 0)
QUESTION, OPTIONS = "Question: Why?", "Options: (A) one (B) two"


@pytest.mark.parametrize(
    ("format", "captions", "lines"),
    [
        ("QCM-A", False, [QUESTION, "Context: A hint.", OPTIONS]),
        ("QCM-A", True, [QUESTION, "Context: A hint. A caption.", OPTIONS]),
        ("CQM-A", False, ["Context: A hint.", QUESTION, OPTIONS]),
        ("QM-A", False, [QUESTION, OPTIONS]),
        ("QCML-A", False, [QUESTION, "Context: A hint.", OPTIONS, "BECAUSE: Some\\nlecture."]),
        ("QCMLE-A", False, [QUESTION, "Context: A hint.", OPTIONS, "BECAUSE: Some\\nlecture. Some solution."]),
        ("QCEM-A", False, [QUESTION, "Context: A hint.", "BECAUSE: Some solution.", OPTIONS]),
    ],
)
def test_inputs(format: str, captions: bool, lines: list[str]) -> None:
    assert prompt(WHOLE, format, captions, "Response:") == "\n".join([*lines, "Response:"])


@pytest.mark.parametrize(
    ("format", "expected", "start"),
    [
        ("QCM-A", "The answer is B.", "The answer is"),
        ("QCM-ALE", "The answer is B. BECAUSE: Some\\nlecture. Some solution.", "The answer is"),
        ("QCM-AE", "The answer is B. BECAUSE: Some solution.", "The answer is"),
        ("QCM-LEA", "Some\\nlecture. Some solution. The answer is B.", ""),
        ("QCM-EA", "Some solution. The answer is B.", ""),
        ("QCM-LAE", "Some\\nlecture. The answer is B. BECAUSE: Some solution.", ""),
    ],
)
def test_outputs(format: str, expected: str, start: str) -> None:
    assert (reply(WHOLE, format), reply_start(format)) == (expected, start)


def test_what_is_empty_leaves_no_trace() -> None:
    assert prompt(BARE, "QCML-A", True, "Answer:") == f"{QUESTION}\nContext: N/A\n{OPTIONS}\nAnswer:"
    assert reply(BARE, "QCM-ALE") == reply(BARE, "QCM-LEA") == "The answer is A."


@pytest.mark.parametrize("format", ["", "QCM", "QCM-", "-A", "QCM-L", "QQM-A", "qcm-a", "QCM-AA", "CM-A", "QCMA-A", "QCM-A-L"])
def test_what_is_no_format(format: str) -> None:
    with pytest.raises(ValidationError, match="wants input parts, a hyphen, output parts"):
        ScienceQaDataConfig(format=format)


CHOICES = ("a dog", "a cat", "B cells", "the sun")


@pytest.mark.parametrize(
    ("text", "index"),
    [
        ("The answer is B", 1),
        ("The answer is B. BECAUSE: the answer is C.", 1),
        ("Dogs bark. The answer is A", 0),
        ("If it flew the answer is D. It barks. The answer is A.", 0),
        ("the answer is: (C)", 2),
        ("The answer is\nD", 3),
        ("The answer is E.", None),
        ("The answer is a cat", 1),
        ("The answer is B cells.", 2),
        ("B", 1),
        (" (B) a cat", 1),
        ("C: cells", 2),
        ("The Sun.", 3),
        ("I would say (D), as it shines", 3),
        ("(A) or (B)", None),
        ("A dog", None),
        ("Because", None),
        ("", None),
        ("The answer is", None),
    ],
)
def test_the_choice_a_text_names(text: str, index: int | None) -> None:
    choices = CHOICES if text != "A dog" else CHOICES[1:]
    assert choice_of(text, choices) == index


@pytest.mark.parametrize(
    ("text", "choices", "index"),
    [
        ("dear uncle Bob,", ("Dear Uncle Bob,", "dear uncle Bob,"), 1),
        ("The answer is Dear Uncle Bob,", ("Dear Uncle Bob,", "dear uncle Bob,"), 0),
        ("DEAR UNCLE BOB,", ("Dear Uncle Bob,", "dear uncle Bob,"), None),
        ("The answer is A Breath of Fresh Air", ("a tale", "A Breath of Fresh Air"), 1),
        ("The answer is A Breath of Fresh Air", ("a tale", "a breath"), None),
        ("The answer is B a breath", ("a tale", "a breath"), 1),
        ("The answer is B because it is.", ("a tale", "a breath"), 1),
    ],
)
def test_words_come_before_letters_and_case_counts(text: str, choices: tuple[str, ...], index: int | None) -> None:
    assert choice_of(text, choices) == index


FAULTS = {
    "no choices": {"choices": []},
    "empty choice": {"choices": ["red", " "]},
    "answer is no choice": {"answer": 3},
    "empty question": {"question": ""},
    "unknown subject": {"subject": "alchemy"},
    "unknown grade": {"grade": "grade13"},
}


def test_everything_wrong_is_named_at_once(tmp_path: Path) -> None:
    folder = scienceqa(tmp_path / "sqa", **{f"q{n}": fault for n, fault in enumerate(FAULTS.values(), start=1)})
    (folder / "images/train/8/image.png").unlink()
    splits = json.loads((folder / "pid_splits.json").read_text())
    splits["train"] += ["7", "99"]
    (folder / "pid_splits.json").write_text(json.dumps(splits))
    text = (folder / "problems.json").read_text()
    (folder / "problems.json").write_text(text[:-1] + f', "7": {json.dumps(problem(7, "train"))}}}')
    with pytest.raises(DataError) as caught:
        config(folder).samples("train")
    message = str(caught.value)
    expected = [*FAULTS, "missing image", "id twice in pid_splits.json", "id twice in problems.json"]
    for kind in [*expected, "id missing from problems.json: train/99"]:
        assert f"{folder}: {kind}" in message, kind


def test_six_choices_get_six_letters(tmp_path: Path) -> None:
    folder = scienceqa(tmp_path / "sqa", q1={"choices": list("uvwxyz"), "answer": 5})
    found = config(folder)
    assert found.samples("train")[0].answer == "The answer is F."
    assert "(F) z" in found.samples("train")[0].question
    (issue,) = found.read("train").issues
    assert (issue.kind, issue.place, issue.fatal) == ("more than five choices", "train/1", False)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("problems.json", "{", r"problems\.json:1: not JSON"),
        ("problems.json", "[]", r"problems\.json: wants an object of questions by id"),
        ("pid_splits.json", "{}", r"pid_splits\.json: has no split 'train'; it has none"),
        ("captions.json", "{}", r"captions\.json: wants an object with `captions`"),
        ("captions.json", None, r"there is no file '.*captions\.json'"),
    ],
)
def test_faulty_files(tmp_path: Path, name: str, content: str | None, message: str) -> None:
    folder = scienceqa(tmp_path / "sqa")
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_text(content)
    with pytest.raises(DataError, match=message):
        config(folder, captions=True).samples("train")
