"""`dehvf-kit support`: which families keep the kit's contract, as of the last full run, or run now."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from dehvf_kit.cli.arguments import Json
from dehvf_kit.cli.console import grid, print_json, section, stdout
from dehvf_kit.errors import DehvfError, did_you_mean
from dehvf_kit.utils.shipped import HOME

if TYPE_CHECKING:
    from dehvf_kit_doctor.decoder_family import FamilyResult
    from dehvf_kit_doctor.vision_family import EncoderResult

DOCS = HOME / "docs"
PAGES = ("support.md", "support_vision.md")


def support(
    types: Annotated[
        list[str] | None, typer.Argument(metavar="[TYPE]...", help="transformers model types to run now.", show_default=False)
    ] = None,
    run_now: Annotated[bool, typer.Option("--run", help="Run every family again, about 25 minutes on 2 cores.")] = False,
    processes: Annotated[int, typer.Option("--processes", min=1, help="Decoders run side by side.")] = 2,
    as_json: Json = False,
) -> None:
    """Print the pages of the last full run; or run the contract on some types, or on all, and print the results.

    Raises: DehvfError for an unknown type, or where there are no pages and nothing was asked to run.
    """
    types = types or []
    if not types and not run_now:
        if as_json:
            raise DehvfError("support --json prints a run's results; name types, or say --run for all of them")
        _print_pages()
        return
    from dehvf_kit.testing.tiny_models import decoder_types
    from dehvf_kit.testing.vision_models import image_encoder_types
    from dehvf_kit_doctor.decoder_family import run_matrix
    from dehvf_kit_doctor.vision_family import run_vision_matrix

    decoders, encoders = decoder_types(), image_encoder_types()
    for name in types:
        if name not in decoders and name not in encoders:
            raise DehvfError(f"no decoder or vision encoder type is named '{name}'{did_you_mean(name, [*decoders, *encoders])}")

    def report(result: FamilyResult | EncoderResult) -> None:
        note = f" ({result.note[:100]})" if result.note else ""
        print(f"{result.model_type}: {result.status}{note}", file=sys.stderr, flush=True)

    results: dict[str, Sequence[FamilyResult | EncoderResult]] = {
        "decoders": run_matrix([name for name in decoders if not types or name in types], processes, report),
        "vision": run_vision_matrix([name for name in encoders if not types or name in types], report),
    }
    if as_json:
        print_json({kind: [{**asdict(one), "status": one.status} for one in found] for kind, found in results.items()})
        return
    for found in results.values():
        for result in found:
            _print_result(result)


def _print_result(result: FamilyResult | EncoderResult) -> None:
    """One family: a line per item of the contract, with the reason for whatever is not a plain pass."""
    console = stdout()
    section(console, result.model_type, result.note or result.status)
    table = grid("left", "left", "left")
    for item in result.items:
        table.add_row("", item.item, item.status, item.reason)
    console.print(table)


def _print_pages() -> None:
    pages = [DOCS / name for name in PAGES if (DOCS / name).is_file()]
    if not pages:
        raise DehvfError("the pages of the last full run are in the repository's docs/; here, name types or say --run")
    print("\n".join(page.read_text(encoding="utf-8") for page in pages))
