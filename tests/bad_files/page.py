"""docs/bad_files.md, written from the cases that the tests run: `python tests/bad_files/page.py`."""

from __future__ import annotations

import sys
from itertools import groupby
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from bad_files.adapter_cases import ADAPTERS, BASES
from bad_files.data_cases import DATA
from bad_files.ground import Case
from bad_files.image_cases import IMAGES
from bad_files.recipe_cases import RECIPES

CASES = [*RECIPES, *ADAPTERS, *BASES, *DATA, *IMAGES]
PAGE = Path(__file__).parents[2] / "docs" / "bad_files.md"
HEAD = """\
# Bad files

All files are untrusted input. This page is generated from the cases in `tests/bad_files`; each is passed to a command of the kit.
Refused means an error message, exit status 1 and no traceback; read means that the command works.

Nothing here unpacks an archive. `.pth` files are read by `torch.load(weights_only=True)`, which reads only tensors and
executes no pickled code. Code that comes with a checkpoint is run only if a recipe says `trust_remote_code: true`, with a warning
that names the model; for an adapter that says so, the user must also allow it.

With `data.on_bad_sample=skip`, `train`, `eval`, `cache` and `compare` skip malformed rows, unreadable images and answers that are
too long, count them, and list them in `skipped.jsonl` in the run's folder (for `cache` in the features' folder; for `eval` next to
the file of `--output`, and in the output of `--json`). Every image is then opened once at the start. A question skipped in `eval`
counts as wrong; a malformed row is not scored; both are reported below the scores. `prepare` lists all of them without a run.

Images go through one function whatever their form (paths, bytes, data URIs, base64 text, URLs, opened PIL images, arrays,
tensors) and wherever they are given: `model.processor`, its image processor, `pipeline(images=...)`, a chat message,
lmms-eval. What other code has already decoded and converted cannot be checked: an image in mode RGB that Pillow's `convert`
made from 16-bit greys is white, its limits were not checked, and nothing distinguishes it from a photograph. Give the file,
or its bytes, instead.
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
