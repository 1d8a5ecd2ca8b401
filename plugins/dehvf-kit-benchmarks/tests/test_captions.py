"""Caption metrics by pycocoevalcap: real scores where Java is, clear words where it is not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from cli.commands import Command
from data.small_sets import coco
from dehvf_kit_benchmarks import caption_metrics as captions
from dehvf_kit_benchmarks.coco_captions import read_references

from dehvf_kit.errors import DataError

REFERENCES = {
    "1": ["a man riding a wave", "A surfer rides a large wave.", "man on a surf board", "someone surfing", "the surfer"],
    "2": ["a cat on a mat", "the cat sits", "a cat", "cat sleeping on a mat", "a grey cat"],
    "3": ["two dogs run", "dogs running over grass", "a pair of dogs", "dogs outside", "two dogs playing on grass"],
}


@pytest.fixture
def java() -> None:
    pytest.importorskip("pycocoevalcap", reason="needs the extra `eval`")
    if shutil.which("java") is None:
        pytest.skip("needs Java on the PATH for the PTB tokeniser and METEOR")


@pytest.mark.nightly
@pytest.mark.usefixtures("java")
def test_perfect_captions() -> None:
    scores = captions.score(REFERENCES, {key: texts[0].upper() + "!" for key, texts in REFERENCES.items()})
    values = {one.name: one.value for one in scores.scores}
    assert list(values) == ["BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "METEOR", "ROUGE-L", "CIDEr"]
    for name in ("BLEU-1", "BLEU-2", "BLEU-3", "METEOR", "ROUGE-L"):  # the third has no 4-gram
        assert values[name] == pytest.approx(1, abs=1e-6), name
    assert scores.headline.name == "CIDEr" and scores.headline.value > 1


@pytest.mark.nightly
@pytest.mark.usefixtures("java")
def test_values_by_hand_and_intervals() -> None:
    said = {"1": "a man riding a horse", "2": "a cat", "3": ""}
    scores = captions.score(REFERENCES, said)
    found = {one.name: one for one in scores.scores}
    # 6 of 7 words match; 7 words were said where the nearest references have 5 + 2 + 2: brevity exp(1 - 9/7).
    assert found["BLEU-1"].value == pytest.approx(6 / 7 * np.exp(1 - 9 / 7), rel=1e-6)
    # 4 of 5 pairs match besides.
    assert found["BLEU-2"].value == pytest.approx(np.sqrt(6 / 7 * 4 / 5) * np.exp(1 - 9 / 7), rel=1e-6)
    assert all(0 <= one.low <= one.value <= one.high for one in scores.scores)
    assert scores.notes == [f"{captions.NO_CAPTION}: 1"]
    assert scores.results[0] == {"image_id": 1, "caption": "a man riding a horse"}


def test_resampling_everything_once_gives_the_score_itself() -> None:
    pytest.importorskip("pycocoevalcap", reason="needs the extra `eval`")
    from pycocoevalcap.bleu.bleu import Bleu

    said = {"1": ["a man riding a horse"], "2": ["cat on a mat"], "3": ["dogs running over the grass"]}
    whole, _ = Bleu(4).compute_score(REFERENCES, said, verbose=0)
    once = np.ones((1, 3))
    ours = [float(spread(once)[0]) for spread in captions._bleu_spreads(said, REFERENCES)]
    # Worst difference seen 3e-16; the smoothing constants are pycocoevalcap's.
    np.testing.assert_allclose(ours, whole, rtol=1e-9)


def test_references_from_either_file(tmp_path: Path) -> None:
    annotations = [{"image_id": n, "caption": text} for n, texts in ((7, "ab"), (8, "c"), (9, "d")) for text in texts]
    (tmp_path / "refs.json").write_text(json.dumps({"annotations": annotations}))
    assert read_references(tmp_path / "refs.json") == {"7": ["a", "b"], "8": ["c"], "9": ["d"]}
    found = read_references(coco(tmp_path / "coco") / "dataset_coco.json", "val")
    assert list(found) == ["5", "6"] and {len(texts) for texts in found.values()} == {5}


def test_ids_that_do_not_match_are_named_at_once(command: Command, tmp_path: Path) -> None:
    folder = coco(tmp_path / "coco")
    file = tmp_path / "captions.json"
    rows = [{"image_id": 1, "caption": "a"}, {"image_id": 7, "caption": "a"}, {"image_id": 7, "caption": "b"}, {"image_id": 8}]
    file.write_text(json.dumps(rows))
    ended = command("score", "coco", "--predictions", file, "--references", folder / "dataset_coco.json")
    assert ended.code == 1
    for text in (
        "image_id not among the 3 images of this split: 1",
        "image_id twice: 7",
        "no image_id and caption: [3]",
        "image without a prediction: 8, 9",
    ):
        assert text in ended.err, text


def test_without_java_nothing_is_scored(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pycocoevalcap", reason="needs the extra `eval`")
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(DataError, match="need Java for the PTB tokeniser and METEOR; install it, for example by apt-get"):
        captions.score(REFERENCES, {})


LINE_ENDS = ["\n", "\r", "\r\n", "\v", "\f", "\x1c", "\x1d", "\x1e", "\x85", "\u2028", "\u2029", "\0", "\ud800 "]


@pytest.mark.parametrize("end", LINE_ENDS)
def test_a_caption_is_one_line_whatever_ends_its_lines(end: str) -> None:
    assert captions.one_line(f"a man{end}riding {end}") in ("a man riding", "a man? riding ?")
    assert len(captions.one_line(f"a man{end}riding").splitlines()) == 1


@pytest.mark.usefixtures("java")
@pytest.mark.nightly
def test_line_separators_shift_no_other_caption() -> None:
    plain = {"1": "a man riding a wave", "2": "a cat on a mat", "3": "two dogs run"}
    broken = {**plain, "1": "\r".join(["a", "man", "riding", "a", "wave"]) + "".join(LINE_ENDS[:-1])}
    values = [{one.name: one.value for one in captions.score(REFERENCES, said).scores} for said in (plain, broken)]
    assert values[0] == values[1]


def test_lines_that_do_not_match_captions_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """pycocoevalcap pairs captions with lines by `zip`: a line too many is lost without a word."""
    ptb = pytest.importorskip("pycocoevalcap.tokenizer.ptbtokenizer", reason="needs the extra `eval`")

    def shifted(self: object, given: dict) -> dict:
        lines = ["one", "too many", *(row["caption"] for rows in given.values() for row in rows)]
        keys = [key for key, rows in given.items() for _ in rows]
        return {key: [line] for key, line in zip(keys, lines, strict=False)}

    monkeypatch.setattr(ptb.PTBTokenizer, "tokenize", shifted)
    with pytest.raises(DataError, match="did not return a line for each caption"):
        captions._tokenise({"1": [{"caption": "a"}], "2": [{"caption": "b"}]})


@pytest.mark.usefixtures("java")
@pytest.mark.nightly
def test_one_image_has_no_cider() -> None:
    scores = captions.score({"1": REFERENCES["1"]}, {"1": "a man riding a wave"})
    assert scores.headline.value == 0 and captions.ONE_IMAGE in scores.notes
