"""`dehvf-kit verify`: whether an adapter says the same alone and in a batch, with and without a cache."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.markup import escape

from dehvf_kit.cli.console import grid, print_json, quiet_transformers, section, stdout
from dehvf_kit.cli.progress import reporting
from dehvf_kit.errors import DataError

if TYPE_CHECKING:
    from dehvf_kit.evaluation.parity import Parity

SHOWN = 10


def run(
    adapter: Path, overrides: Sequence[str], questions: int, batch: int, new_tokens: int, store: bool, as_json: bool
) -> None:
    """Ask, compare, print, and keep what was found in the adapter's card.

    Raises: AdapterError for what is no adapter, DataError where it has no data set.
    """
    from dehvf_kit.adapter.checkpoint import load
    from dehvf_kit.adapter.measured import keep
    from dehvf_kit.data.samples import samples_of
    from dehvf_kit.evaluation.parity import batch_parity

    quiet_transformers()
    model = load(adapter, overrides=overrides)
    if model.recipe.data is None:
        raise DataError(
            f"{adapter}: its recipe has no `data` section; name one, for example data.type=jsonl data.test=FILE"
        )
    samples = list(samples_of(model.recipe.data, "test")[:questions])
    with reporting() as report:
        found = batch_parity(
            model, samples, batch, new_tokens, progress=lambda done, total: report("asking", done, total)
        )
    if store:
        keep(adapter, "batch_parity", found.facts())
    if as_json:
        print_json({"adapter": str(adapter), **found.facts(), "stored": store})
        return
    _show(found)
    if store:
        print(f"kept in {adapter / 'README.md'}")


def _show(found: Parity) -> None:
    console = stdout()
    console.print(
        f"{found.questions} questions, {found.new_tokens} new tokens at most, {found.dtype} on {found.device}; "
        f"logits reach {found.logit_range:.3g}"
    )
    section(console, "Beside each question alone, uncached")
    table = grid("left", "right", "left", "right")
    table.add_row("", "", "largest logit difference", "at", "changed answers", style="dim")
    for one in found.differences:
        table.add_row("", one.variant, f"{one.largest:.2e}", escape(one.at), str(len(one.changed)))
    console.print(table)
    for row in found.changed[:SHOWN]:
        console.print(escape(f"  {row['variant']}: {row['id']}: '{row['alone']}' became '{row['now']}'"))
    if len(found.changed) > SHOWN:
        console.print(f"  and {len(found.changed) - SHOWN} more")
