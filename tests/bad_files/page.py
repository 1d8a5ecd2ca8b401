"""docs/bad_files.md, written from the cases that the tests run: `python tests/bad_files/page.py`."""

from __future__ import annotations

import sys
from itertools import groupby
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from bad_files.adapter_cases import ADAPTERS, BASES
from bad_files.data_cases import DATA
from bad_files.ground import Case
from bad_files.picture_cases import PICTURES
from bad_files.recipe_cases import RECIPES

CASES = [*RECIPES, *ADAPTERS, *BASES, *DATA, *PICTURES]
PAGE = Path(__file__).parents[2] / "docs" / "bad_files.md"
HEAD = """\
# Bad files

Files are not believed. This page is written from the cases in `tests/bad_files`, each of which is made and given to a command
of the kit: refused means a message, exit status 1 and no traceback; read means that the command does its work.

Nothing here unpacks an archive. `.pth` files are read by `torch.load(weights_only=True)`, which takes tensors out of them in
memory and runs no pickle. Code that comes with a checkpoint is run where a recipe says `trust_remote_code: true`, and a warning
names the model; an adapter that says so is not believed until the user says so too.

One bad sample need not end a run: with `data.on_bad_sample=skip`, `train`, `eval`, `cache` and `compare` leave out rows that are no
sample, pictures that cannot be read and answers that do not fit, count them, and list them in `skipped.jsonl` in the run's folder
(for `cache` in the folder of the features; for `eval` beside the file of `--output`, and in what `--json` prints). Every picture is
then opened once before the work begins. A question skipped in `eval` counts as wrong; a row that is no question is missing from
the scores; both are said below them. `prepare` lists all of it without running anything.
"""


def page() -> str:
    """The page's text."""
    parts = [HEAD]
    for kind, cases in groupby(CASES, lambda case: case.kind):
        parts.append(f"\n## {kind}\n\n| file | outcome | said, or what becomes of it |\n|---|---|---|\n")
        parts += [f"| {case.what} | {case.outcome} | {_said(case)} |\n" for case in cases]
    return "".join(parts)


def _said(case: Case) -> str:
    if not case.said:
        return (case.make.__doc__ or "").strip()
    return f"`{case.said}`" if "`" not in case.said else f"`` {case.said} ``"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
