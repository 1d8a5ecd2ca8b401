"""`dehvf-kit support`: the families the kit is proven on, as last run, or run now."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from dehvf_kit.cli.console import print_json, quiet_transformers
from dehvf_kit.errors import DehvfError, did_you_mean
from dehvf_kit.utils.shipped import HOME

if TYPE_CHECKING:
    from tools.support.matrix import FamilyResult
    from tools.support.vision_matrix import EncoderResult

DOCS = HOME / "docs"
PAGES = ("support.md", "support_vision.md")


def run(types: Sequence[str], run_now: bool, processes: int, as_json: bool) -> None:
    """Print the pages of the last full run; or run the contract on some types, or on all, and print what came out.

    Raises: DehvfError for an unknown type, or where there are no pages and nothing was asked to run.
    """
    if not types and not run_now:
        if as_json:
            raise DehvfError("support --json prints a run's results; name types, or say --run for all of them")
        _print_pages()
        return
    quiet_transformers()
    from dehvf_kit.testing.tiny_models import decoder_types
    from tools.support.matrix import run_matrix
    from tools.support.vision_matrix import image_encoder_types, run_vision_matrix

    decoders, encoders = decoder_types(), image_encoder_types()
    for name in types:
        if name not in decoders and name not in encoders:
            raise DehvfError(
                f"no decoder or vision encoder type is named '{name}'{did_you_mean(name, [*decoders, *encoders])}"
            )

    def say(result: FamilyResult | EncoderResult) -> None:
        note = f" ({result.note[:100]})" if result.note else ""
        print(f"{result.model_type}: {result.status}{note}", file=sys.stderr, flush=True)

    found = run_matrix([name for name in decoders if not types or name in types], processes, say)
    seen = run_vision_matrix([name for name in encoders if not types or name in types], say)
    if as_json:
        facts = {"decoders": found, "vision": seen}
        print_json(
            {kind: [{**asdict(one), "status": one.status} for one in results] for kind, results in facts.items()}
        )
        return
    from tools.support.support_page import support_page
    from tools.support.vision_page import vision_page

    print("\n".join(page(results) for page, results in ((support_page, found), (vision_page, seen)) if results))


def _print_pages() -> None:
    pages = [DOCS / name for name in PAGES if (DOCS / name).is_file()]
    if not pages:
        raise DehvfError(
            "the pages of the last full run stand in the repository's docs/; here, name types or say --run"
        )
    print("\n".join(page.read_text(encoding="utf-8") for page in pages))
