"""`dehvf-kit score`: anybody's predictions on ScienceQA or COCO captions."""

from __future__ import annotations

from pathlib import Path

from dehvf_kit.cli.console import print_json
from dehvf_kit.cli.scores import show
from dehvf_kit.data.metrics.scores import Scores
from dehvf_kit.errors import DataError

SPLITS = ("test", "val", "minitest", "minival")


def run_scienceqa(predictions: Path, folder: str, split: str, missing_wrong: bool, as_json: bool) -> None:
    """The nine columns. Raises: DataError for files that cannot be read and ids that do not match."""
    from dehvf_kit.data.issues import PREPARE, refuse
    from dehvf_kit.data.metrics.scienceqa import score
    from dehvf_kit.data.scienceqa import ScienceQaDataConfig, read_results

    problems, issues = ScienceQaDataConfig(path=folder, pictures=False).problems(_split(split, SPLITS))
    refuse(folder, issues, PREPARE)
    if not problems:
        raise DataError(f"{folder}: its split '{split}' is empty")
    _print(score(problems, read_results(predictions, problems, missing_wrong)), as_json)


def run_coco(predictions: Path, references: Path, split: str, as_json: bool) -> None:
    """Every caption metric. Raises: DataError for files that cannot be read, ids that do not match, or no Java."""
    from dehvf_kit.data.coco_captions import read_captions, read_references
    from dehvf_kit.data.metrics.captions import score

    wanted = read_references(references, _split(split, SPLITS[:2]))
    _print(score(wanted, read_captions(predictions, wanted)), as_json)


def _split(given: str, splits: tuple[str, ...]) -> str:
    if given not in splits:
        raise DataError(f"--split {given}: one of {', '.join(splits)}")
    return given


def _print(scores: Scores, as_json: bool) -> None:
    if as_json:
        print_json(dict(scores.facts))
        return
    show(scores)
