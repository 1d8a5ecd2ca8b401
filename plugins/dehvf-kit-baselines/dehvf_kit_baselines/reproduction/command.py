"""`dehvf-kit reproduce`: the paper's tables and figures beside ours: counted, measured, or not run yet."""

from __future__ import annotations

import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from dehvf_kit.cli.arguments import Json
from dehvf_kit.cli.console import grid, print_json, stdout, waiting
from dehvf_kit.errors import DehvfError, did_you_mean, listing
from dehvf_kit.utils.atomic import check_new_files, exists
from dehvf_kit.utils.units import si

TABLES = ("table1", "table2", "table3", "table4")
FIGURES = ("figure2", "figure3", "figure4")
METHODS = "methods"
HOURS = "hours of one A100 for training, estimated: samples x epochs x FLOPs of a sample (counted) / (312 TFLOPS x 30%, assumed)"


def reproduce(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            help="table1 to table4, figure2 to figure4, methods.",
            show_default=False,
            autocompletion=lambda: [*TABLES, *FIGURES, METHODS],
        ),
    ],
    runs: Annotated[Path, typer.Option("--runs", metavar="DIR", help="The folder of our runs.")] = Path("runs"),
    adapter: Annotated[
        Path | None, typer.Option("--adapter", metavar="DIR", help="For figure3 and figure4.", show_default=False)
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="Questions whose images are averaged.", show_default=False)
    ] = None,
    image: Annotated[
        Path | None, typer.Option("--image", metavar="FILE", help="Draw a figure (.png, .svg, .pdf).", show_default=False)
    ] = None,
    picture: Annotated[Path | None, typer.Option("--picture", hidden=True, help="The former name of --image.")] = None,
    embedded: Annotated[
        bool, typer.Option("--embedded", help="Run table4 in miniature, or methods: SmolLM2 and DINOv2 from wheels; hours.")
    ] = False,
    seeds: Annotated[
        int | None, typer.Option("--seeds", min=1, help="With --embedded: runs of each row.", show_default="5; methods 3")
    ] = None,
    steps: Annotated[
        int | None, typer.Option("--steps", min=1, help="With --embedded: steps of a run.", show_default="240; methods 120")
    ] = None,
    hours: Annotated[
        float | None, typer.Option("--hours", min=0.001, help="With --embedded: CPU hours in sum.", show_default="4; methods 6")
    ] = None,
    jobs: Annotated[
        int | None, typer.Option("--jobs", min=1, help="With --embedded: runs side by side, one thread each.", show_default="1")
    ] = None,
    as_json: Json = False,
) -> None:
    """Print one table or figure; with --embedded run the table first, or go on with an interrupted one.

    Raises: DehvfError for an unknown one, an adapter or image file that cannot be used, or CPU hours that are used up.
    """
    image = image or picture
    if embedded:
        how = {"seeds": seeds, "steps": steps, "hours": hours, "side_by_side": jobs}
        _embedded(name, runs, {key: value for key, value in how.items() if value is not None}, as_json)
        return
    if name not in (*TABLES, *FIGURES, METHODS):
        raise DehvfError(f"there is no '{name}' to reproduce{did_you_mean(name, (*TABLES, *FIGURES, METHODS))} "
                         f"There are {listing((*TABLES, *FIGURES, METHODS))}")  # fmt: skip
    if image is not None and name not in FIGURES:
        raise DehvfError(f"{name} is a table; --image is for {listing(FIGURES)}")
    if name == METHODS:
        _sizes(as_json)
        return
    if image is not None and image.suffix not in (".png", ".svg", ".pdf"):
        raise DehvfError(f"--image {image}: wants a name that ends in .png, .svg or .pdf")
    if name in ("figure3", "figure4") and adapter is None:
        raise DehvfError(f"{name} is drawn from a trained adapter; name one with --adapter DIR")
    exists(runs)  # or it is refused, before a minute of counting
    check_new_files({}, {} if image is None else {"--image": image})
    with waiting("Counting without weights" if adapter is None else f"Reading {adapter}", plain=True):
        facts, show = _facts(name, runs, adapter, limit, image)
    if as_json:
        print_json(facts)
        return
    show()
    if image is not None:
        print(f"image: {image}")


def _sizes(as_json: bool) -> None:
    from dehvf_kit_baselines.reproduction import methods

    if as_json:
        print_json(dict(methods.budgets()))
        return
    _print_rows(*methods.sizes())
    print("trained parameters; to run the comparisons: dehvf-kit reproduce methods --embedded")


def _embedded(name: str, runs: Path, how: dict[str, Any], as_json: bool) -> None:
    if name not in ("table4", METHODS):
        raise DehvfError(f"--embedded is for table4 and {METHODS}, not for {name}")
    say = partial(print, file=sys.stderr, flush=True)
    if name == METHODS:
        from dehvf_kit_baselines.reproduction import methods

        folder = runs / methods.FOLDER
        found = methods.embedded_methods(folder, say=say, **how)
        shown = {budget: methods.cells(table) for budget, table in found.items()}
        where = [f"{budget}: {folder / budget / 'comparison.md'}" for budget in found]
    else:
        from dehvf_kit_baselines.reproduction import embedded

        folder = runs / embedded.FOLDER
        found = embedded.embedded_table4(folder, say=say, **how)
        shown, where = {"table4": embedded.cells(found)}, [f"table: {folder / embedded.MARKDOWN}"]
    if as_json:
        print_json(found)
        return
    for table, line in zip(shown.values(), where, strict=True):
        _print_rows(*table)
        print(line)


def _print_rows(head: list[str], rows: list[list[str]]) -> None:
    shown = grid("left", *["right"] * (len(head) - 1))
    for row in (head, *rows):
        shown.add_row("", *map(escape, row))
    stdout(minimum_width=200).print(shown)


def _facts(name: str, runs: Path, adapter: Path | None, limit: int | None, image: Path | None) -> tuple[Any, Any]:
    from dehvf_kit_baselines.reproduction import figures, tables

    data = tables.published().get(name, {})
    if name in TABLES:
        rows = tables.table(name, runs)
        kind = tables.published()[data["data"]]
        facts = {"name": name, "title": data["title"], "source": data["source"], "columns": kind["columns"]}
        facts["digits"] = kind["digits"]
        facts |= {"note": kind["note"], "rows": [asdict(row) for row in rows]}
        return facts, lambda: _table(facts)
    if name == "figure2":
        points = figures.figure2()
        if image is not None:
            figures.draw_figure2(points, image)
        found = [{**asdict(point), "share": point.share} for point in points]
        facts = {"name": name, **data, "points": found}
        return facts, lambda: _figure2(facts)
    read = figures.read_adapter(adapter, limit)
    rows = read.by_group() if name == "figure3" else read.by_layer()
    if image is not None:
        (figures.draw_figure3 if name == "figure3" else figures.draw_figure4)(read, image)
    facts = {"name": name, "adapter": str(adapter), "pictures": read.images, "rows": rows}
    return facts, lambda: _weights(facts)


def _table(facts: dict[str, Any]) -> None:
    console = stdout(minimum_width=150)
    console.print(f"[bold]{escape(facts['title'])}[/]  [dim]{escape(facts['source'])}; {escape(facts['note'])}[/]")
    shown = grid("left", "right", "right", "left", *["right"] * len(facts["columns"]))
    shown.add_row("", "", "parameters", "ours", "", *facts["columns"], style="dim")
    for row in facts["rows"]:
        ours = "-" if row["parameters"] is None else f"{row['parameters']:,}"
        verdict = {True: "[green]=[/]", False: "[red]differs[/]", None: ""}[row["matches"]]
        values = ["-" if value is None else f"{value:.{facts['digits']}f}" for value in row["published"]]
        shown.add_row("", row["method"], row["published_parameters"], ours, verdict, *values)
        if row["ours"] is not None:
            ours_too = ["-" if value is None else f"{value:.{facts['digits']}f}" for value in row["ours"]]
            shown.add_row("", "  ours", "", "", "", *(f"[bold]{value}[/]" for value in ours_too))
        elif row["command"]:
            shown.add_row("", "  ours", "", "", "", "not run")
    console.print(shown)
    not_run: dict[str, list[dict[str, Any]]] = {}
    for row in facts["rows"]:
        if row["command"]:
            not_run.setdefault(row["command"], []).append(row)
    if not_run:
        console.print(f"\n[bold]To fill ours[/]  [dim]{HOURS}[/]")
    for command, rows in not_run.items():
        names = ", ".join(row["method"] for row in rows)
        console.print(f"  {escape(names)}, {sum(row['hours'] for row in rows):.2g} h:")
        console.print(f"    {escape(command)}", soft_wrap=True)
    for row in facts["rows"]:
        if row["parameters_from"].startswith("formula"):
            note = f"{row['method']}: parameters by {row['parameters_from']}; {row['missing']}"
            console.print(f"  [dim]{escape(note)}[/]", soft_wrap=True)
        if row["footnote"]:
            console.print(f"  [dim]{escape(row['method'])}: {escape(row['footnote'])}[/]", soft_wrap=True)


def _figure2(facts: dict[str, Any]) -> None:
    console = stdout()
    console.print(f"[bold]{escape(facts['title'])}[/]  [dim]{escape(facts['source'])}; LLaMA-7B, encoders excluded[/]")
    shown = grid("right", "right", "right", "right", "right", "right")
    shown.add_row("", "visual tokens", "LLaVA", "formula", "DEHVF", "formula", "DEHVF / LLaVA", style="dim")
    for point in facts["points"]:
        counts = [si(point[key], "") for key in ("llava", "llava_formula", "dehvf", "dehvf_formula")]
        shown.add_row("", str(point["visual_tokens"]), *counts, f"{point['share']:.1%}")
    console.print(shown)
    last = facts["points"][-1]
    console.print(f"  published: {facts['published_share']:.0%} of LLaVA-v1.5, which has 576 visual tokens; counted: "
                  f"{last['share']:.1%} at {last['visual_tokens']}")  # fmt: skip


def _weights(facts: dict[str, Any]) -> None:
    console = stdout()
    console.print(f"[bold]{facts['name']}[/]  [dim]{escape(facts['adapter'])}, mean over {facts['pictures']:,} images; "
                  "layers count from 1[/]")  # fmt: skip
    for row in facts["rows"]:
        if "group" in row:
            first, last = row["decoder_layers"][0], row["decoder_layers"][-1]
            console.print(f"  [bold]group {row['group']}[/]  decoder layers {first} to {last}")
        else:
            console.print(f"  [bold]decoder layer {row['decoder_layer']}[/]")
        for role, values in row["weights"].items():
            pairs = [f"{layer}: {value:.3f}" for layer, value in zip(row["vision_layers"], values, strict=True) if value]
            console.print(f"    {role}  " + "  ".join(pairs))
