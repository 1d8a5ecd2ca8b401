"""`python -m tools.reference` writes the generated pages; `--check` says whether they are fresh, `--messages` what the
troubleshooting pages lack.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from dehvf_kit_scaffold.schema import builtin_registry

from tools.reference.hours import with_budgets, with_hours
from tools.reference.messages import ROOT
from tools.reference.pages import component_page, recipe_page
from tools.reference.troubleshooting import missing, stale

DOCS = ROOT / "docs"


def pages(docs: Path = DOCS) -> dict[str, str]:
    """The text of every page that is generated, or partly so, by its name.

    They hold the built-ins and the data sets of the repository's plugins, whatever else is installed.
    """
    registry = builtin_registry()
    return {
        "recipe_reference.md": recipe_page(registry),
        "component_reference.md": component_page(registry),
        "baselines.md": with_budgets((docs / "baselines.md").read_text(encoding="utf-8")),
        "reproduction.md": with_hours((docs / "reproduction.md").read_text(encoding="utf-8")),
    }


def main(arguments: list[str] | None = None) -> int:
    """Write, or check. Returns an exit status: 1 where something is stale or missing."""
    parser = argparse.ArgumentParser(prog="python -m tools.reference", description="Write the generated pages.")
    parser.add_argument("--docs", type=Path, default=DOCS, metavar="DIR", help="where the pages stand; docs/")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a page is stale")
    parser.add_argument("--messages", action="store_true", help="compare the troubleshooting pages with the code")
    given = parser.parse_args(arguments)
    if given.messages:
        return _messages(given.docs)
    late = {
        name: text
        for name, text in pages(given.docs).items()
        if not (given.docs / name).is_file() or (given.docs / name).read_text(encoding="utf-8") != text
    }
    if given.check:
        for name in late:
            print(f"{given.docs / name}: missing or stale; run python -m tools.reference", file=sys.stderr)
        return int(bool(late))
    for name, text in late.items():
        (given.docs / name).write_text(text, encoding="utf-8")
        print(f"wrote {given.docs / name}")
    return 0


def _messages(docs: Path) -> int:
    without, left_over = missing(docs / "troubleshooting"), stale(docs / "troubleshooting")
    for message in without:
        end = " ``" if message.text.endswith("`") else "``"  # Markdown takes three backticks for a fence
        print(f"no cure on any page:\n- ``{message.text}{end}\n  ({message.place})")
    for text in left_over:
        print(f"no longer in the code: {text}")
    return int(bool(without or left_over))


if __name__ == "__main__":
    sys.exit(main())
