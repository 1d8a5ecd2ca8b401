"""`dehvf-kit plan`: what training and answering with a recipe takes on a GPU, from configs alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.markup import escape

from dehvf_kit.cli.console import grid, print_json, quiet_transformers, section, stdout, waiting
from dehvf_kit.utils.units import si

if TYPE_CHECKING:
    from dehvf_kit.costs.gpus import Gpu
    from dehvf_kit.costs.plan import Plan, Workload


def run(words: Sequence[str], gpu: dict[str, Any], work: dict[str, Any], explain: bool, as_json: bool) -> None:
    """Plan every recipe. words: recipes and KEY=VALUE. Raises: DehvfError for a faulty recipe or an unknown GPU."""
    with waiting("Counting without weights", plain=True):
        from dehvf_kit.costs import plan as planning
        from dehvf_kit.costs.gpus import find_gpu
        from dehvf_kit.recipe.several import load_all

        quiet_transformers()
        card = find_gpu(**gpu)
        recipes = load_all(words)
        workload = planning.Workload(**work)
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
    table.add_row("", "[bold]training[/]", "", f"{work.gpus} GPU, {plan.batch} samples of {work.tokens} tokens on each")
    table.add_row(
        "", "FLOPs a step", si(count.forward + count.backward, ""), f"{si(count.forward, '')} of them forward"
    )
    split = "on each GPU, the decoder split, with two gathered layers" if work.shard and work.gpus > 1 else ""
    table.add_row("", "frozen weights", si(plan.weights, "B"), split)
    kept = f"gradients {si(plan.gradients, 'B')}, AdamW {si(plan.optimiser, 'B')}"
    table.add_row("", "adapter and its state", si(plan.adapter + plan.gradients + plan.optimiser, "B"), kept)
    table.add_row("", "activations", si(count.saved, "B"), "kept for backward")
    table.add_row("", "peak of a step", si(count.peak, "B"), "activations among it")
    table.add_row("", "memory", f"[bold]{si(plan.train_bytes, 'B')}[/]", _verdict(plan.fits_train, gpu))
    for line in plan.would_fit:
        table.add_row("", "", "", f"would fit: {line}")
    if not plan.fits_train and not plan.would_fit:
        table.add_row(
            "", "", "", "no checkpointing, batch of 1 or 4-bit decoder would do; take a larger GPU or --shard"
        )
    table.add_row("", "time", f"{plan.train_seconds:.3f} s", f"a step, at {work.utilisation:.0%} utilisation (assumed)")
    source = f"{plan.steps:,} steps, {plan.samples:,} samples ({plan.samples_from})"
    table.add_row("", "GPU hours", f"[bold]{plan.gpu_hours:.1f}[/]", source)
    if work.gpus > 1:
        table.add_row("", "network", si(plan.traffic, "B"), "a GPU sends in a step; its time is not in the hours")
    if plan.feature_bytes:
        note = f"a picture in bfloat16, {si(10_000 * plan.feature_bytes, 'B')} for 10,000"
        table.add_row("", "feature cache", si(plan.feature_bytes, "B"), note)
    table.add_row("", "[bold]answering[/]", "", f"{work.decode_batch} questions of {work.tokens - work.answer} tokens")
    flops = decode.encoder + decode.graph + decode.prompt
    table.add_row("", "FLOPs", si(flops, ""), f"then {si(decode.token, '')} for each further token of the batch")
    table.add_row("", "key/value cache", si(decode.cache, "B"), "a position and sample")
    table.add_row("", "visual memory", si(decode.memory, "B"), "a sample")
    table.add_row("", "memory", f"[bold]{si(plan.decode_bytes, 'B')}[/]", _verdict(plan.fits_decode, gpu))
    table.add_row("", "time", f"{plan.decode_seconds:.2f} s", f"a batch with {work.new_tokens} new tokens each")
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
    table.add_row("", "", "trained", "tokens", "decoder FLOPs a sample", "parameters", style="dim")
    for row in rows:
        cells = (f"{row['parameters']:,}", str(row["sequence"]), si(row["decoder_flops"], ""), escape(row["formula"]))
        table.add_row("", row["name"], *cells)
    console.print(table)
