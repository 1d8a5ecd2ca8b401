"""The command line: arguments only. Each command's work stands in its own file, imported when it runs.

A fault the user can mend is printed alone, without a traceback, and the exit status is 1; a wrong command line gives 2,
an interrupt 130, a run stopped by SIGTERM 143.
"""

from __future__ import annotations

import sys
import warnings
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from dehvf_kit import __version__
from dehvf_kit.cli import completion
from dehvf_kit.cli.arguments import Json, Overrides, RecipeFile
from dehvf_kit.cli.page_commands import add_page_commands
from dehvf_kit.cli.starting_commands import add_starting_commands
from dehvf_kit.errors import DehvfError, RemoteCodeWarning

INTERRUPTED = 130
DEMO_ADAPTER = Path("runs/demo/adapter")


class Commands(TyperGroup):
    """The group of all commands, which turns errors into messages."""

    def invoke(self, ctx: Any) -> Any:
        with warnings.catch_warnings():
            warnings.showwarning = _print_warning
            return self._invoke(ctx)

    def _invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except DehvfError as error:
            print(error, file=sys.stderr)
            raise typer.Exit(error.exit_status) from error
        except KeyboardInterrupt as error:
            print("interrupted", file=sys.stderr)
            raise typer.Exit(INTERRUPTED) from error


def _print_warning(message: Warning | str, category: type[Warning], *place: Any, **_: Any) -> None:
    """The kit's warnings as a line of their own; others as Python prints them."""
    if category is RemoteCodeWarning:
        print(f"warning: {message}", file=sys.stderr)
    else:
        print(warnings.formatwarning(message, category, *place[:2]), end="", file=sys.stderr)


app = typer.Typer(
    name="dehvf-kit",
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Give eyes to a frozen language model: hierarchical visual features written into its feed-forward memory.",
)

Words = Annotated[
    list[str],
    typer.Argument(
        metavar="RECIPE... [KEY=VALUE]...",
        help="Recipes, .yaml files, and fields to change in all of them.",
        show_default=False,
    ),
]
Limit = Annotated[int | None, typer.Option("--limit", min=1, help="Questions to ask at most.", show_default=False)]


def _version(wanted: bool) -> None:
    if wanted:
        print(f"dehvf-kit {__version__} ({', '.join(_installed(name) for name in ('torch', 'transformers'))})")
        raise typer.Exit


def _installed(name: str) -> str:
    try:
        return f"{name} {version(name)}"
    except PackageNotFoundError:
        return f"{name} missing"


@app.callback()
def before(
    plugin: Annotated[
        list[Path] | None,
        typer.Option("--plugin", metavar="FILE", help="Load a one-file plugin first; may be repeated."),
    ] = None,
    show_version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    """What happens before every command."""
    if plugin:
        from dehvf_kit.plugin_manager import load_plugin_file

        for file in plugin:
            load_plugin_file(file)


@app.command()
def check(recipe: RecipeFile, overrides: Overrides = None, as_json: Json = False) -> None:
    """Find every fault of a recipe at once; needs both base models' configs, never weights."""
    from dehvf_kit.cli.check import run

    raise typer.Exit(run(recipe, overrides or [], as_json))


@app.command()
def show(recipe: RecipeFile, overrides: Overrides = None, as_json: Json = False) -> None:
    """Print a recipe with its parents merged and every default filled in, ready to be loaded again."""
    from dehvf_kit.cli.show import run

    run(recipe, overrides or [], as_json)


@app.command(name="list")
def list_installed(
    role: Annotated[
        str | None, typer.Argument(
            metavar="ROLE",
            help="Only this role, with every field.",
            show_default=False,
            autocompletion=completion.roles,
        )
    ] = None,
    as_json: Json = False,
) -> None:
    """List components, base models, data sets and plugins, and where each comes from."""
    from dehvf_kit.cli.listing import run

    run(role, as_json)


@app.command()
def doctor(
    decoder: Annotated[
        str,
        typer.Argument(
            metavar="DECODER",
            help="A name from dehvf-kit list, a folder, a config.json or a hub id.",
            show_default=False,
        ),
    ],
    vision: Annotated[
        str | None, typer.Argument(metavar="[VISION]", help="A vision encoder, named likewise.", show_default=False)
    ] = None,
    as_json: Json = False,
) -> None:
    """Say where memory goes in a decoder, what a vision encoder yields, and run both contracts; needs no weights."""
    from dehvf_kit.cli.doctor import run

    raise typer.Exit(run(decoder, vision, as_json))


@app.command()
def support(
    types: Annotated[
        list[str] | None,
        typer.Argument(metavar="[TYPE]...", help="transformers model types to run now.", show_default=False),
    ] = None,
    run_now: Annotated[
        bool, typer.Option("--run", help="Run every family again, about 25 minutes on 2 cores.")
    ] = False,
    processes: Annotated[int, typer.Option("--processes", min=1, help="Decoders run side by side.")] = 2,
    as_json: Json = False,
) -> None:
    """Print which decoder and vision families keep the kit's contract, as last run; or run it on some, or all, now."""
    from dehvf_kit.cli.support import run

    run(types or [], run_now, processes, as_json)


@app.command()
def build(
    recipe: RecipeFile,
    overrides: Overrides = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="DIR", help="Where the adapter goes.", show_default="runs/NAME"),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an adapter that stands there.")] = False,
    save: Annotated[bool, typer.Option("--save/--no-save", help="Write the adapter.")] = True,
    as_json: Json = False,
) -> None:
    """Build a recipe's adapter without base weights, save it, and print graph, parameters, FLOPs and memory."""
    from dehvf_kit.cli.build import run

    run(recipe, overrides or [], output, overwrite, save, as_json)


@app.command()
def cache(recipe: RecipeFile, overrides: Overrides = None, as_json: Json = False) -> None:
    """Run a recipe's frozen encoders once on every picture of its data, and keep the features for `train` and `eval`."""
    from dehvf_kit.cli.cache import run

    run(recipe, overrides or [], as_json)


@app.command()
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


@app.command()
def prepare(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="RECIPE|DATA... [KEY=VALUE]...",
            help="Recipes, folders or files of data; fields to change.",
            show_default=False,
        ),
    ],
    open_pictures: Annotated[
        bool, typer.Option("--open/--no-open", help="Decode every picture, not only look for its file.")
    ] = True,
    as_json: Json = False,
) -> None:
    """Check data sets: counts beside the published splits, and every missing, broken or repeated thing at once."""
    from dehvf_kit.cli.prepare import run

    raise typer.Exit(run(words, open_pictures, as_json))


@app.command()
def data(
    recipe: RecipeFile,
    overrides: Overrides = None,
    peek: Annotated[int, typer.Option("--peek", min=1, help="Training samples to show.")] = 3,
    as_json: Json = False,
) -> None:
    """Show training samples as the model will see them: tokens, where the loss is, and the picture."""
    from dehvf_kit.cli.data import run

    run(recipe, overrides or [], peek, as_json)


@app.command(name="eval")
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


@app.command()
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


score_app = typer.Typer(no_args_is_help=True, help="Score predictions of any model on a benchmark.")
app.add_typer(score_app, name="score")


Predictions = Annotated[
    Path, typer.Option("--predictions", metavar="FILE", help="The predictions.", show_default=False)
]


@score_app.command(name="scienceqa")
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


@score_app.command(name="coco")
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


@app.command()
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
            fraction,
            validation,
            side_by_side,
            threads,
            allow or [],
            as_json,
        )  # fmt: skip
    )


@app.command()
def plan(
    words: Words,
    gpu: Annotated[
        str, typer.Option("--gpu", help="A GPU by name; an unknown one lists them.", autocompletion=completion.gpus)
    ] = "a100-80gb",
    gpus: Annotated[int, typer.Option("--gpus", min=1, help="How many of them.")] = 1,
    gpu_memory: Annotated[
        float | None, typer.Option("--gpu-memory", min=0.1, help="GB of one GPU.", show_default="the table's")
    ] = None,
    gpu_tflops: Annotated[
        float | None, typer.Option("--gpu-tflops", min=0.1, help="Dense bfloat16 TFLOPS.", show_default="the table's")
    ] = None,
    gpu_bandwidth: Annotated[
        float | None, typer.Option("--gpu-bandwidth", min=1, help="GB/s of its memory.", show_default="the table's")
    ] = None,
    utilisation: Annotated[
        float, typer.Option("--utilisation", min=0.01, max=1, help="Part of the TFLOPS that is reached; assumed.")
    ] = 0.3,
    tokens: Annotated[int, typer.Option("--tokens", min=2, help="Tokens of a sample, prompt and answer.")] = 200,
    answer: Annotated[int, typer.Option("--answer", min=1, help="Answer tokens among them.")] = 8,
    decode_batch: Annotated[int, typer.Option("--decode-batch", min=1, help="Questions answered at once.")] = 32,
    shard: Annotated[bool, typer.Option("--shard", help="Split the frozen decoder over the GPUs (FSDP2).")] = False,
    samples: Annotated[
        int | None, typer.Option("--samples", min=1, help="Training samples.", show_default="the data's")
    ] = None,
    explain: Annotated[bool, typer.Option("--explain", help="Say how each figure is counted.")] = False,
    as_json: Json = False,
) -> None:
    """Say what training and answering take on a GPU: FLOPs, memory, time; needs no weights and no GPU."""
    from dehvf_kit.cli.plan import run

    card = {"name": gpu, "memory_gb": gpu_memory, "tflops": gpu_tflops, "bandwidth_gbs": gpu_bandwidth}
    work = {
        "tokens": tokens,
        "answer": answer,
        "decode_batch": decode_batch,
        "new_tokens": answer,
        "gpus": gpus,
        "samples": samples,
        "utilisation": utilisation,
        "shard": shard,
    }
    run(words, card, work, explain, as_json)


@app.command()
def reproduce(
    name: Annotated[
        str, typer.Argument(
            metavar="NAME",
            help="table1 to table4, figure2 to figure4.",
            show_default=False,
            autocompletion=completion.figures,
        )
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


@app.command()
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


@app.command(name="import-memvp")
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


@app.command()
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


add_page_commands(app)
add_starting_commands(app)


def main() -> None:
    """The entry point of `dehvf-kit`."""
    app()
