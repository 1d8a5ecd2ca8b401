"""The table in docs/bases.md, written from a run of all holders: `python tests/bases/page.py`.

Rows of a library that is not installed stay as its last run wrote them, with the version they were run with.
"""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from bases.holders import HOLDERS, process_group, save_plain
from bases.measure import COLUMNS, row

PAGE = Path(__file__).parents[2] / "docs" / "bases.md"
RUN = re.compile(r"^Run with (.*)\.$", re.M)
MARKS = ("<!-- table: python tests/bases/page.py -->\n", "<!-- end of table -->\n")


def line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |\n"


def main() -> None:
    before, rest = PAGE.read_text(encoding="utf-8").split(MARKS[0])
    kept, after = rest.split(MARKS[1])
    versions = dict(found.rsplit(" ", 1) for found in RUN.search(kept)[1].split(", "))
    rows = []
    with tempfile.TemporaryDirectory() as place, process_group():
        folder = save_plain(Path(place) / "decoder")
        for number, holder in enumerate(HOLDERS):
            if holder.missing():
                rows += [one for one in kept.splitlines(True) if one.startswith(f"| {holder.library} | {holder.what} |")]
                print(f"{holder.library} {holder.what}: not installed, kept as of {versions[holder.library]}")
            else:
                rows.append(line(row(holder, folder, Path(place) / str(number))))
                versions[holder.library] = holder.version()
    run = ", ".join(f"{name} {version}" for name, version in versions.items())
    table = line(COLUMNS) + "|---" * len(COLUMNS) + "|\n" + "".join(rows)
    PAGE.write_text(f"{before}{MARKS[0]}\n{table}\nRun with {run}.\n\n{MARKS[1]}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
