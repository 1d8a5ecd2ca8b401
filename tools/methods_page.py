"""Write the comparison of methods into docs/results.md: `python -m tools.methods_page [runs/methods_embedded]`.

The runs come from `dehvf-kit reproduce methods --embedded`. Images and sheets are copied to docs/results. The reading of the
tables stays to be written by hand.
"""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

from dehvf_kit_baselines.reproduction.methods import BUDGETS, FIGURE, FOLDER, SHEET, section

DOCS = Path(__file__).parents[1] / "docs"
BETWEEN = re.compile(r"(?<=<!-- methods: written by `python -m tools.methods_page` -->\n).*?(?=<!-- end of methods -->)", re.DOTALL)


def write(folder: Path, docs: Path = DOCS) -> None:
    """Write the section between the page's two comments. Raises: DehvfError where nothing has been run in the folder."""
    page = docs / "results.md"
    text = section(folder, "results")
    for name in BUDGETS:
        for file, ending in ((FIGURE, "png"), (SHEET, "csv")):
            if (folder / name / file).is_file():
                shutil.copyfile(folder / name / file, docs / "results" / f"methods_{name}.{ending}")
    page.write_text(BETWEEN.sub(lambda _: f"\n{text}\n", page.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1] if len(sys.argv) > 1 else f"runs/{FOLDER}"))
