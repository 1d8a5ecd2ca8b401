"""Runs the contract on every decoder type that transformers' causal-LM mapping knows, and writes docs/support.md.

python -m tools.support.matrix                        # all types, two processes, about 15 minutes
python -m tools.support.matrix llama opt --output -   # some types, the page to standard output
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from dehvf_kit_doctor.decoder_family import FamilyResult, run_matrix
from rich.console import Console
from rich.progress import Progress

from dehvf_kit.errors import DehvfError, did_you_mean
from dehvf_kit.testing.tiny_models import decoder_types
from tools.support.plan_item import MATRIX
from tools.support.support_page import support_page


def main(arguments: Sequence[str] | None = None) -> int:
    """The command: run, show progress, write the page. Returns 1 if a family breaks the contract."""
    parser = argparse.ArgumentParser(prog="python -m tools.support.matrix", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("types", nargs="*", help="transformers model types; all decoder types if none is given")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--output", default="docs/support.md", help="the page to write; - for standard output")
    given = parser.parse_args(arguments)
    known = decoder_types()
    for model_type in given.types:
        if model_type not in known:
            raise DehvfError(f"matrix: no decoder type is named '{model_type}'{did_you_mean(model_type, known)}")
    results = _run_with_progress(given.types or known, given.processes)
    page = support_page(results)
    if given.output == "-":
        print(page)
    else:
        Path(given.output).write_text(page, encoding="utf-8")
    counts = Counter(result.status for result in results)
    print(", ".join(f"{count} {status}" for status, count in counts.most_common()), file=sys.stderr)
    return 1 if counts["broken"] else 0


def _run_with_progress(model_types: Sequence[str], processes: int) -> list[FamilyResult]:
    """A progress bar in a terminal, elsewhere a line of plain text a type."""
    console = Console(stderr=True)
    if not console.is_terminal:

        def say(result: FamilyResult) -> None:
            broken = "; ".join(str(item) for item in result.items if item.status == "broken")
            seconds = sum(item.seconds for item in result.items)
            print(f"{result.model_type}: {result.note or broken or 'pass'} ({seconds:.0f} s)", file=sys.stderr, flush=True)

        return run_matrix(model_types, processes, say, MATRIX)
    with Progress(console=console) as progress:
        task = progress.add_task("contract", total=len(model_types))
        return run_matrix(model_types, processes, lambda result: progress.advance(task), MATRIX)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except DehvfError as error:
        sys.exit(str(error))
