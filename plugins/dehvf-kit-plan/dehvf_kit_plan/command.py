"""`dehvf-kit plan`: what training and answering with a recipe takes on a GPU, from configs alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from dehvf_kit.cli.arguments import Json, Words
from dehvf_kit.cli.console import grid, print_json, section, stdout, waiting
from dehvf_kit.utils.units import si

if TYPE_CHECKING:
    from dehvf_kit_plan.gpus import Gpu
    from dehvf_kit_plan.plan import Plan, Workload


def _gpus() -> list[str]:
    """The GPUs that `plan` knows, for a shell to complete."""
    from dehvf_kit_plan.gpus import GPUS

    return list(GPUS)


def plan(
    words: Words,
    gpu: Annotated[
        str, typer.Option("--gpu", help="A GPU by name; an unknown one lists them.", autocompletion=_gpus)
    ] = "a100-80gb",
    gpus: Annotated[int, typer.Option("--gpus", min=1, help="Number of GPUs.")] = 1,
    gpu_memory: Annotated[
        float | None, typer.Option("--gpu-memory", min=0.1, help="Memory of one GPU, in GB.", show_default="the table's")
    ] = None,
    gpu_tflops: Annotated[
        float | None, typer.Option("--gpu-tflops", min=0.1, help="Dense bfloat16 TFLOPS.", show_default="the table's")
    ] = None,
    gpu_bandwidth: Annotated[
        float | None, typer.Option("--gpu-bandwidth", min=1, help="Memory bandwidth, in GB/s.", show_default="the table's")
    ] = None,
    utilisation: Annotated[
        float, typer.Option("--utilisation", min=0.01, max=1, help="Share of the TFLOPS that is reached; an assumption.")
    ] = 0.3,
    tokens: Annotated[int, typer.Option("--tokens", min=2, help="Tokens per sample, prompt and answer.")] = 200,
    answer: Annotated[int, typer.Option("--answer", min=1, help="Answer tokens among them.")] = 8,
    decode_batch: Annotated[int, typer.Option("--decode-batch", min=1, help="Questions per batch when answering.")] = 32,
    shard: Annotated[bool, typer.Option("--shard", help="Split the frozen decoder over the GPUs (FSDP2).")] = False,
    samples: Annotated[int | None, typer.Option("--samples", min=1, help="Training samples.", show_default="the data's")] = None,
    explain: Annotated[bool, typer.Option("--explain", help="Explain how each figure is computed.")] = False,
    as_json: Json = False,
) -> None:
    """Plan every recipe. Raises: DehvfError for a faulty recipe or an unknown GPU."""
    with waiting("Counting without weights", plain=True):
        from dehvf_kit_plan import plan as planning
        from dehvf_kit_plan.gpus import find_gpu
        from dehvf_kit_plan.several import load_all

        card = find_gpu(name=gpu, memory_gb=gpu_memory, tflops=gpu_tflops, bandwidth_gbs=gpu_bandwidth)
        recipes = load_all(words)
        workload = planning.Workload(
            tokens=tokens,
            answer=answer,
            decode_batch=decode_batch,
            new_tokens=answer,
            gpus=gpus,
            samples=samples,
            utilisation=utilisation,
            shard=shard,
        )
        plans = [planning.make_plan(recipe, card, workload) for recipe in recipes]
        others = planning.baseline_rows(recipes[0], workload)
    if as_json:
        facts = {"gpu": vars(card), "workload": vars(workload)}
        print_json({**facts, "plans": [planning.as_dict(one) for one in plans], "rivals_by_formula": others})
        return
    console = stdout()
    console.print(
        f"[bold]{escape(card.name)}[/]  {card.memory_gb:g} GB, {card.tflops:g} TFLOPS bfloat16, {card.bandwidth_gbs:g} GB/s "
        f"({escape(card.source)})"
    )
    for recipe, one in zip(recipes, plans, strict=True):
        _show(console, recipe.description, one, card, workload)
    _baselines(console, others)
    if explain:
        section(console, "How this is counted")
        console.print(escape(planning.__doc__ or ""))


def _show(console: Any, description: str, plan: Plan, gpu: Gpu, work: Workload) -> None:
    section(console, plan.recipe, escape(description))
    table = grid("left", "right", "left")
    count, decode = plan.train, plan.decode
    table.add_row("", "trained parameters", f"{plan.trained_parameters:,}", "")
    table.add_row("", "[bold]training[/]", "", f"{work.gpus} GPU, {plan.batch} samples of {work.tokens} tokens per GPU")
    table.add_row("", "FLOPs per step", si(count.forward + count.backward, ""), f"{si(count.forward, '')} of them forward")
    split = "on each GPU, the decoder split, with two gathered layers" if work.shard and work.gpus > 1 else ""
    table.add_row("", "frozen weights", si(plan.weights, "B"), split)
    for note in plan.notes:
        table.add_row("", "", "", f"note: {escape(note)}")
    kept = f"gradients {si(plan.gradients, 'B')}, AdamW {si(plan.optimiser, 'B')}"
    table.add_row("", "adapter and its state", si(plan.adapter + plan.gradients + plan.optimiser, "B"), kept)
    table.add_row("", "activations", si(count.saved, "B"), "kept for backward")
    table.add_row("", "peak within a step", si(count.peak, "B"), "including activations")
    table.add_row("", "memory", f"[bold]{si(plan.train_bytes, 'B')}[/]", _verdict(plan.fits_train, gpu))
    for line in plan.would_fit:
        table.add_row("", "", "", f"would fit: {line}")
    if not plan.fits_train and not plan.would_fit:
        table.add_row(
            "", "", "", "neither checkpointing, a batch of 1 nor a 4-bit decoder would be enough; take a larger GPU or --shard"
        )
    table.add_row("", "time", f"{plan.train_seconds:.3f} s", f"per step, at {work.utilisation:.0%} utilisation (assumed)")
    source = f"{plan.steps:,} steps, {plan.samples:,} samples ({plan.samples_from})"
    table.add_row("", "GPU hours", f"[bold]{plan.gpu_hours:.1f}[/]", source)
    if work.gpus > 1:
        table.add_row("", "network", si(plan.traffic, "B"), "sent per GPU and step; its time is not in the hours")
    if plan.feature_bytes:
        note = f"per image in bfloat16, {si(10_000 * plan.feature_bytes, 'B')} for 10,000"
        table.add_row("", "feature cache", si(plan.feature_bytes, "B"), note)
    table.add_row("", "[bold]answering[/]", "", f"{work.decode_batch} questions of {work.tokens - work.answer} tokens")
    flops = decode.encoder + decode.graph + decode.prompt
    table.add_row("", "FLOPs", si(flops, ""), f"then {si(decode.token, '')} for each further token of the batch")
    table.add_row("", "key/value cache", si(decode.cache, "B"), "per position and sample")
    if decode.state:
        table.add_row("", "recurrent states", si(decode.state, "B"), "per sample, whatever its length")
    table.add_row("", "visual memory", si(decode.memory, "B"), "per sample")
    table.add_row("", "memory", f"[bold]{si(plan.decode_bytes, 'B')}[/]", _verdict(plan.fits_decode, gpu))
    table.add_row("", "time", f"{plan.decode_seconds:.2f} s", f"per batch, {work.new_tokens} new tokens each")
    console.print(table)


def _verdict(fits: bool, gpu: Gpu) -> str:
    return f"[green]fits {gpu.memory_gb:g} GB[/]" if fits else f"[red]does not fit {gpu.memory_gb:g} GB[/]"


def _baselines(console: Any, rows: Sequence[dict[str, Any]]) -> None:
    from dehvf_kit.recipe.plugin_manager import plugins

    if not rows:
        if not plugins().registry.cost_formulas:
            console.print("[dim]The plugin dehvf-kit-baselines adds the costs of the baselines to this page.[/]")
        return
    section(console, "Baselines on the same base models", "by formula; name their recipes to count them as above")
    table = grid("left", "right", "right", "right", "left")
    table.add_row("", "", "trained", "tokens", "decoder FLOPs per sample", "parameters", style="dim")
    for row in rows:
        cells = (f"{row['parameters']:,}", str(row["sequence"]), si(row["decoder_flops"], ""), escape(row["formula"]))
        table.add_row("", row["name"], *cells)
    console.print(table)
