"""`dehvf-kit score`: predictions of any model, scored on ScienceQA or COCO captions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dehvf_kit.cli.arguments import Json
from dehvf_kit.cli.console import print_json
from dehvf_kit.cli.scores import show_scores
from dehvf_kit.data.metrics.scores import Scores
from dehvf_kit.errors import DataError

SPLITS = ("test", "val", "minitest", "minival")


Predictions = Annotated[Path, typer.Option("--predictions", metavar="FILE", help="The predictions.", show_default=False)]
app = typer.Typer(no_args_is_help=True)


@app.command(help='ScienceQA\'s nine columns of {"results": {id: index}}.')
def scienceqa(
    predictions: Predictions,
    folder: Annotated[str, typer.Option("--data", metavar="FOLDER", help="Folder with problems.json.")] = "data/scienceqa",
    split: Annotated[str, typer.Option("--split", help="test, val, minitest or minival.")] = "test",
    missing_wrong: Annotated[bool, typer.Option("--missing-wrong", help="Count questions without a prediction as wrong.")] = False,
    as_json: Json = False,
) -> None:
    """The nine columns. Raises: DataError for files that cannot be read and ids that do not match."""
    from dehvf_kit.data.samples import PREPARE, refuse
    from dehvf_kit_benchmarks.scienceqa import ScienceQaDataConfig, read_results
    from dehvf_kit_benchmarks.scienceqa_columns import score

    problems, issues = ScienceQaDataConfig(path=folder, pictures=False).problems(_split(split, SPLITS))
    refuse(folder, issues, PREPARE)
    if not problems:
        raise DataError(f"{folder}: its split '{split}' is empty")
    _print(score(problems, read_results(predictions, problems, missing_wrong)), as_json)


@app.command(help='BLEU, METEOR, ROUGE-L and CIDEr of [{"image_id", "caption"}]; needs the extra eval, and Java.')
def coco(
    predictions: Predictions,
    references: Annotated[
        Path,
        typer.Option(
            "--references", metavar="FILE", help="Karpathy's dataset_coco.json, or a COCO captions file.", show_default=False
        ),
    ],
    split: Annotated[str, typer.Option("--split", help="Of dataset_coco.json: test or val.")] = "test",
    as_json: Json = False,
) -> None:
    """Every caption metric. Raises: DataError for files that cannot be read, ids that do not match, or no Java."""
    from dehvf_kit_benchmarks.caption_metrics import score
    from dehvf_kit_benchmarks.coco_captions import read_captions, read_references

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
    show_scores(scores)
