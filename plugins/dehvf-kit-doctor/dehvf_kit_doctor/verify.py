"""`dehvf-kit verify`: whether an adapter answers the same alone and in a batch, with and without a cache."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from dehvf_kit.cli.arguments import Adapter, Json, Overrides
from dehvf_kit.cli.console import grid, print_json, reporting, section, stdout
from dehvf_kit.errors import DataError
from dehvf_kit.utils.atomic import check_new_files, is_folder

if TYPE_CHECKING:
    from dehvf_kit_doctor.parity import Parity

SHOWN = 10


def verify(
    adapter: Adapter,
    overrides: Overrides = None,
    questions: Annotated[int, typer.Option("--questions", min=2, help="Test questions to ask.")] = 32,
    batch: Annotated[int, typer.Option("--batch", min=2, help="Questions per batch.")] = 8,
    new_tokens: Annotated[int, typer.Option("--new-tokens", min=1, help="Most tokens per answer.")] = 8,
    store: Annotated[
        bool, typer.Option("--store/--no-store", help="Store the result in measured.json and the card of a folder.")
    ] = True,
    as_json: Json = False,
) -> None:
    """Ask, compare, print, and store the result in the adapter's card.

    Raises: AdapterError for what is not an adapter, DataError where it has no data set.
    """
    from dehvf_kit.adapter.card import keep
    from dehvf_kit.adapter.checkpoint import load
    from dehvf_kit.adapter.files import adapter_folder
    from dehvf_kit.data.samples import samples_of
    from dehvf_kit_doctor.parity import batch_parity

    given, adapter = adapter, adapter_folder(adapter)
    store = store and is_folder(given)  # a copy in the hub's cache is left as it is; what is no folder, `load` refuses
    if store:
        check_new_files({}, {"--store": adapter / "README.md"})
    model = load(adapter, overrides=overrides or ())
    if model.recipe.data is None:
        raise DataError(f"{adapter}: its recipe has no `data` section; name one, for example data.type=jsonl data.test=FILE")
    samples = list(samples_of(model.recipe.data, "test")[:questions])
    with reporting() as report:
        found = batch_parity(model, samples, batch, new_tokens, progress=lambda done, total: report("answering", done, total))
    if as_json:
        print_json({"adapter": str(given), **found.facts(), "stored": store})
    else:
        _show(found)
    if store:  # after they are printed: a full disk loses no answer
        keep(adapter, "batch_parity", found.facts())
        if not as_json:
            print(f"stored in {adapter / 'README.md'}")


def _show(found: Parity) -> None:
    console = stdout()
    console.print(
        f"{found.questions} questions, {found.new_tokens} new tokens at most, {found.dtype} on {found.device}; "
        f"logits reach {found.logit_range:.3g}"
    )
    section(console, "Compared with each question alone, without a cache")
    table = grid("left", "right", "left", "right")
    table.add_row("", "", "largest logit difference", "at", "changed answers", style="dim")
    for one in found.differences:
        table.add_row("", one.variant, f"{one.largest:.2e}", escape(one.at), str(len(one.changed)))
    console.print(table)
    for row in found.changed[:SHOWN]:
        console.print(escape(f"  {row['variant']}: {row['id']}: '{row['alone']}' became '{row['now']}'"))
    if len(found.changed) > SHOWN:
        console.print(f"  and {len(found.changed) - SHOWN} more")
