"""`dehvf-kit report`: one self-contained page about a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dehvf_kit.cli.console import print_json, quiet_transformers
from dehvf_kit.cli.progress import reporting


def run(
    folder: Path,
    overrides: Sequence[str],
    output: Path | None,
    predictions: Path | None,
    limit: int,
    maps: int,
    as_json: bool,
) -> None:
    """Write the page and say what it lacks. Raises: AdapterError for what is no run, DataError for broken files in it."""
    from dehvf_kit.analysis.report.write import write_report

    quiet_transformers()
    with reporting() as report:
        found = write_report(folder, output, predictions, overrides, limit, maps, progress=report)
    if as_json:
        print_json(found)
        return
    print(f"page: {found['page']}")
    for title, has in found["sections"].items():
        if not has:
            print(f"  not there: {title}; the page says why, and what makes it")
