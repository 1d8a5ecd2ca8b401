"""The commands about a recipe and its base models: arguments only."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dehvf_kit.cli import completion
from dehvf_kit.cli.arguments import Json, Overrides, RecipeFile, Words


def add_recipe_commands(app: typer.Typer) -> None:
    """Hang them on the command line."""
    app.command()(check)
    app.command()(show)
    app.command(name="list")(list_installed)
    app.command()(doctor)
    app.command()(support)
    app.command()(build)
    app.command()(plan)


def check(recipe: RecipeFile, overrides: Overrides = None, as_json: Json = False) -> None:
    """Find every fault of a recipe at once; needs both base models' configs, never weights."""
    from dehvf_kit.cli.check import run

    raise typer.Exit(run(recipe, overrides or [], as_json))


def show(recipe: RecipeFile, overrides: Overrides = None, as_json: Json = False) -> None:
    """Print a recipe with its parents merged and every default filled in, ready to be loaded again."""
    from dehvf_kit.cli.show import run

    run(recipe, overrides or [], as_json)


def list_installed(
    role: Annotated[
        str | None,
        typer.Argument(
            metavar="ROLE",
            help="Only this role, with every field.",
            show_default=False,
            autocompletion=completion.roles,
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """List components, base models, data sets and plugins, and where each comes from."""
    from dehvf_kit.cli.listing import run

    run(role, as_json)


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
