"""`dehvf-kit demo`: the default recipe trained and scored on real images, beside the same recipe without images."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from dehvf_kit.cli.arguments import Json
from dehvf_kit.cli.console import grid, print_json, reporting, stdout
from dehvf_kit.errors import Stopped


class Images(StrEnum):
    """What --data takes: typer knows no Literal before 0.19."""

    DRAWINGS = "drawings"
    EASY_VQA = "easy_vqa"


def demo(
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="The demo's folder.")] = Path("runs/demo"),
    minutes: Annotated[float, typer.Option("--minutes", min=0.1, help="Most minutes of training DEHVF.")] = 7.0,
    data: Annotated[Images, typer.Option("--data", help="What is trained on: drawings, or easy-VQA's shapes.")] = Images.DRAWINGS,
    as_json: Json = False,
) -> None:
    """Run the demo, or go on with an interrupted one, and print the scores. Raises: DehvfError for a finished one's folder."""
    print("demo: loading (a minute, the first time)", file=sys.stderr, flush=True)
    from dehvf_kit_demo.demo import run_demo

    with reporting() as report:
        try:
            result = run_demo(output, minutes, lambda text: print(f"demo: {text}", file=sys.stderr, flush=True), report, data.value)
        except Stopped as stop:
            raise Stopped(f"{output}: the demo was stopped; the same command goes on with it", stop.number) from stop
    summary = result.summary
    if as_json:
        print_json({**summary, "adapter": str(result.adapter), "page": str(result.page)})
        return
    table = grid("left", "right", "right", "right", "right")
    heads = ("questions about unseen images", "count", "DEHVF", "without images", "linear probe")
    table.add_row("", *(f"[bold]{head}[/]" for head in heads))
    scores, blind = summary["scores"], summary["blind_scores"]
    for name in ["all", *scores["by_kind"]]:
        row, other = (scores["all"], blind["all"]) if name == "all" else (scores["by_kind"][name], blind["by_kind"][name])
        probed = f"{summary['probe'][name]['accuracy']:.1%}" if name in summary["probe"] else "-"
        table.add_row("", name, f"{row['questions']:,}", f"{row['accuracy']:.1%}", f"{other['accuracy']:.1%}", probed)
    stdout().print(table)
    print(f"trained {summary['train_seconds']:.0f} s (DEHVF) and {summary['blind_train_seconds']:.0f} s (without images)")
    print(f"adapter: {result.adapter}\nsummary: {output / 'summary.json'}\npage:    {result.page}")
    print(f'ask it:  dehvf-kit generate IMAGE "{summary["ask"]}" --adapter {result.adapter}')
