"""The table in docs/bases.md, written from a run of all holders: `python tests/bases/page.py`."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from bases.holders import HOLDERS, process_group, save_plain
from bases.measure import COLUMNS, row

PAGE = Path(__file__).parents[2] / "docs" / "bases.md"
MARKS = ("<!-- table: python tests/bases/page.py -->\n", "<!-- end of table -->\n")


def line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |\n"


def main() -> None:
    missing = sorted({holder.library for holder in HOLDERS if holder.missing()})
    if missing:
        sys.exit(f"not installed, so the table cannot be written: pip install {' '.join(missing)} optimum")
    versions = {holder.library: holder.version() for holder in HOLDERS}
    with tempfile.TemporaryDirectory() as place, process_group():
        folder = save_plain(Path(place) / "decoder")
        rows = [row(holder, folder, Path(place) / str(number)) for number, holder in enumerate(HOLDERS)]
    run = ", ".join(f"{name} {version}" for name, version in versions.items())
    table = line(COLUMNS) + "|---" * len(COLUMNS) + "|\n" + "".join(map(line, rows))
    before, rest = PAGE.read_text(encoding="utf-8").split(MARKS[0])
    text = f"{before}{MARKS[0]}\n{table}\nRun with {run}.\n\n{MARKS[1]}{rest.split(MARKS[1])[1]}"
    PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
