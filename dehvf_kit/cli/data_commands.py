"""The commands about data sets and predictions: arguments only."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dehvf_kit.cli.arguments import Json, Overrides, RecipeFile

Predictions = Annotated[
    Path, typer.Option("--predictions", metavar="FILE", help="The predictions.", show_default=False)
]


def add_data_commands(app: typer.Typer) -> None:
    """Hang them on the command line."""
    app.command()(prepare)
    app.command()(data)
    score = typer.Typer(no_args_is_help=True, help="Score predictions of any model on a benchmark.")
    score.command(name="scienceqa")(score_scienceqa)
    score.command(name="coco")(score_coco)
    app.add_typer(score, name="score")


def prepare(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="RECIPE|DATA... [KEY=VALUE]...",
            help="Recipes, folders or files of data; fields to change.",
            show_default=False,
        ),
    ],
    open_images: Annotated[
        bool, typer.Option("--open/--no-open", help="Decode every picture, not only look for its file.")
    ] = True,
    as_json: Json = False,
) -> None:
    """Check data sets: counts beside the published splits, and every missing, broken or repeated thing at once."""
    from dehvf_kit.cli.prepare import run

    raise typer.Exit(run(words, open_images, as_json))


def data(
    recipe: RecipeFile,
    overrides: Overrides = None,
    peek: Annotated[int, typer.Option("--peek", min=1, help="Training samples to show.")] = 3,
    as_json: Json = False,
) -> None:
    """Show training samples as the model will see them: tokens, where the loss is, and the picture."""
    from dehvf_kit.cli.data import run

    run(recipe, overrides or [], peek, as_json)


def score_scienceqa(
    predictions: Predictions,
    folder: Annotated[
        str, typer.Option("--data", metavar="FOLDER", help="Folder with problems.json.")
    ] = "data/scienceqa",
    split: Annotated[str, typer.Option("--split", help="test, val, minitest or minival.")] = "test",
    missing_wrong: Annotated[
        bool, typer.Option("--missing-wrong", help="Count questions without a prediction as wrong.")
    ] = False,
    as_json: Json = False,
) -> None:
    """ScienceQA's nine columns of {"results": {id: index}}."""
    from dehvf_kit.cli.score import run_scienceqa

    run_scienceqa(predictions, folder, split, missing_wrong, as_json)


def score_coco(
    predictions: Predictions,
    references: Annotated[
        Path,
        typer.Option(
            "--references",
            metavar="FILE",
            help="Karpathy's dataset_coco.json, or a COCO captions file.",
            show_default=False,
        ),
    ],
    split: Annotated[str, typer.Option("--split", help="Of dataset_coco.json: test or val.")] = "test",
    as_json: Json = False,
) -> None:
    """BLEU, METEOR, ROUGE-L and CIDEr of [{"image_id", "caption"}]; needs the extra eval, and Java."""
    from dehvf_kit.cli.score import run_coco

    run_coco(predictions, references, split, as_json)
