"""The commands that train, ask, score and compare: arguments only."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dehvf_kit.cli import completion
from dehvf_kit.cli.arguments import Json, Limit, Overrides, RecipeFile, Words

DEMO_ADAPTER = Path("runs/demo/adapter")


def add_run_commands(app: typer.Typer) -> None:
    """Hang them on the command line."""
    app.command()(cache)
    app.command()(train)
    app.command(name="eval")(evaluate)
    app.command()(verify)
    app.command()(generate)
    app.command(name="import-memvp")(import_memvp)
    app.command()(demo)
    app.command()(compare)
    app.command()(reproduce)


def cache(recipe: RecipeFile, overrides: Overrides = None, as_json: Json = False) -> None:
    """Run a recipe's frozen encoders once on every picture of its data, and keep the features for `train` and `eval`."""
    from dehvf_kit.cli.cache import run

    run(recipe, overrides or [], as_json)


def train(
    recipe: RecipeFile,
    overrides: Overrides = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="DIR", help="Where the run goes.", show_default="runs/NAME")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with a run that was ended, from its newest whole checkpoint.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Train a recipe's adapter on its data set."""
    from dehvf_kit.cli.train import run

    run(recipe, overrides or [], output, resume, as_json)


def evaluate(
    adapter: Annotated[Path, typer.Argument(metavar="ADAPTER", help="A saved adapter's folder.", show_default=False)],
    overrides: Overrides = None,
    limit: Limit = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="Keep every answer, as JSON lines.", show_default=False),
    ] = None,
    results: Annotated[
        Path | None,
        typer.Option(
            "--results", metavar="FILE", help="Keep the predictions as the benchmark's own scripts read them."
        ),
    ] = None,
    allow_prompt_mismatch: Annotated[
        bool,
        typer.Option("--allow-prompt-mismatch", help="Go on where prompt or pictures differ from those trained on."),
    ] = False,
    store: Annotated[
        bool, typer.Option("--store", help="Keep the scores in the adapter's measured.json and card.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Score a trained adapter on the test split of its data set."""
    from dehvf_kit.cli.evaluate import run

    run(adapter, overrides or [], limit, output, as_json, results, allow_prompt_mismatch, store)


def verify(
    adapter: Annotated[Path, typer.Argument(metavar="ADAPTER", help="A saved adapter's folder.", show_default=False)],
    overrides: Overrides = None,
    questions: Annotated[int, typer.Option("--questions", min=2, help="Test questions to ask.")] = 32,
    batch: Annotated[int, typer.Option("--batch", min=2, help="Questions a batch.")] = 8,
    new_tokens: Annotated[int, typer.Option("--new-tokens", min=1, help="Tokens an answer may have.")] = 8,
    store: Annotated[
        bool, typer.Option("--store/--no-store", help="Keep it in the adapter's measured.json and card.")
    ] = True,
    as_json: Json = False,
) -> None:
    """Ask the same questions alone and in padded batches, with and without a cache: logit differences, changed answers."""
    from dehvf_kit.cli.verify import run

    run(adapter, overrides or [], questions, batch, new_tokens, store, as_json)


def generate(
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="A picture.", show_default=False)],
    question: Annotated[str, typer.Argument(metavar="QUESTION", help="What to ask about it.", show_default=False)],
    adapter: Annotated[Path, typer.Option("--adapter", "-a", metavar="DIR", help="A trained adapter.")] = DEMO_ADAPTER,
    max_new_tokens: Annotated[
        int | None, typer.Option("--max-new-tokens", min=1, help="Length of the answer.", show_default="the recipe's")
    ] = None,
    overrides: Overrides = None,
    as_json: Json = False,
) -> None:
    """Answer a question about a picture."""
    from dehvf_kit.cli.generate import run

    run(adapter, image, question, max_new_tokens, as_json, overrides or [])


def import_memvp(
    checkpoint: Annotated[
        Path, typer.Argument(metavar="FILE", help="An official MemVP .pth file.", show_default=False)
    ],
    recipe: Annotated[Path, typer.Option("--recipe", "-r", metavar="RECIPE", help="A MemVP recipe of the same sizes.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Where the adapter goes.")],
    overrides: Overrides = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an adapter that stands there.")] = False,
    as_json: Json = False,
) -> None:
    """Read an official MemVP adapter checkpoint into an adapter of the kit; needs no base weights, runs no pickle."""
    from dehvf_kit.cli.import_memvp import run

    run(checkpoint, recipe, overrides or [], output, overwrite, as_json)


def demo(
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Where everything goes.")] = Path(
        "runs/demo"
    ),
    minutes: Annotated[float, typer.Option("--minutes", min=0.1, help="Minutes of training DEHVF, at most.")] = 7.0,
    as_json: Json = False,
) -> None:
    """Train and score the default recipe on real pictures, beside the same recipe without pictures."""
    from dehvf_kit.cli.demo import run

    run(output, minutes, as_json)


def compare(
    words: Words,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Where runs and table go.")] = Path(
        "runs/compare"
    ),
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Runs of each recipe, with seeds 0, 1, ...")] = 3,
    tune: Annotated[bool, typer.Option("--tune", help="Find each recipe's learning rate first, by one rule.")] = False,
    rate_factors: Annotated[
        str, typer.Option("--rate-factors", help="The grid of --tune, times each recipe's base learning rate.")
    ] = "0.25,0.5,1,2,4",
    rates: Annotated[
        str, typer.Option("--rates", help="The grid of --tune in absolute base learning rates.", show_default=False)
    ] = "",
    scales: Annotated[
        str,
        typer.Option(
            "--scales",
            help="Tune how strongly a method acts on the decoder too: times 0.3,1,3, say.",
            show_default=False,
        ),
    ] = "",
    fraction: Annotated[
        float, typer.Option("--tune-fraction", min=0.001, max=1, help="Part of the steps that a tuning run makes.")
    ] = 0.2,
    validation: Annotated[
        float, typer.Option("--validation", min=0.001, max=0.9, help="Training pictures that tuning is scored on.")
    ] = 0.1,
    side_by_side: Annotated[int, typer.Option("--jobs", min=1, help="Runs side by side.")] = 1,
    threads: Annotated[
        int | None, typer.Option("--threads", min=1, help="Threads a run.", show_default="cores / jobs")
    ] = None,
    allow: Annotated[
        list[str] | None, typer.Option("--allow", metavar="FIELD", help="Let a field differ between the recipes.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Train and score recipes on one data set under one budget, over several seeds; goes on where it was interrupted."""
    from dehvf_kit.cli.compare import run

    raise typer.Exit(
        run(
            words,
            output,
            seeds,
            tune,
            rate_factors,
            rates,
            scales,
            fraction,
            validation,
            side_by_side,
            threads,
            allow or [],
            as_json,
        )  # fmt: skip
    )


def reproduce(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            help="table1 to table4, figure2 to figure4.",
            show_default=False,
            autocompletion=completion.figures,
        ),
    ],
    runs: Annotated[Path, typer.Option("--runs", metavar="DIR", help="Where our runs lie.")] = Path("runs"),
    adapter: Annotated[
        Path | None, typer.Option("--adapter", metavar="DIR", help="For figure3 and figure4.", show_default=False)
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="Questions whose pictures are averaged.", show_default=False)
    ] = None,
    picture: Annotated[
        Path | None, typer.Option("--picture", metavar="FILE", help="Draw a figure (.png, .svg).", show_default=False)
    ] = None,
    as_json: Json = False,
) -> None:
    """Print a table or figure of the paper beside ours: what is counted now, what was run, and how to run the rest."""
    from dehvf_kit.cli.reproduce import run

    run(name, runs, adapter, limit, picture, as_json)
