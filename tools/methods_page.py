"""Write the comparison of methods into docs/results.md: `python -m tools.methods_page [runs/methods_embedded]`.

The runs come from `dehvf-kit reproduce methods --embedded`. Images and sheets are copied to docs/results, and the settings and
result of every run into one file there: `python -m tools.methods_page --restore [runs/methods_embedded]` puts these runs back, so
that the comparison goes on, or takes another method, without repeating them. The reading of the tables stays to be written by hand.
"""

from __future__ import annotations

import argparse
import gzip
import json
import re
import shutil
from pathlib import Path

from dehvf_kit_baselines.reproduction.embedded import DTYPE
from dehvf_kit_baselines.reproduction.methods import BUDGETS, FIGURE, FOLDER, SHEET, section
from dehvf_kit_compare.job import JOB, RESULT, WORKING, read_json, write_json

DOCS = Path(__file__).parents[1] / "docs"
RUNS = "methods_runs.jsonl.gz"
BETWEEN = re.compile(r"(?<=<!-- methods: written by `python -m tools.methods_page` -->\n).*?(?=<!-- end of methods -->)", re.DOTALL)


def write(folder: Path, docs: Path = DOCS) -> None:
    """Write the section between the page's two comments. Raises: DehvfError where nothing has been run in the folder."""
    page = docs / "results.md"
    text = section(folder, "results")
    for name in BUDGETS:
        for file, ending in ((FIGURE, "png"), (SHEET, "csv")):
            if (folder / name / file).is_file():
                shutil.copyfile(folder / name / file, docs / "results" / f"methods_{name}.{ending}")
    keep(folder, docs / "results" / RUNS)
    page.write_text(BETWEEN.sub(lambda _: f"\n{text}\n", page.read_text(encoding="utf-8")), encoding="utf-8")


def keep(folder: Path, file: Path) -> None:
    """Write settings and result of every finished run in the folder, a line of JSON each, in the order of their names."""
    places = [place.parent for place in sorted(folder.glob(f"*/runs/*/*/{RESULT}")) if not place.parent.name.endswith(WORKING)]
    rows = [
        {"run": place.relative_to(folder).as_posix(), "job": read_json(place / JOB), "result": read_json(place / RESULT)}
        for place in places
    ]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    file.write_bytes(gzip.compress(text.encode(), mtime=0))


def restore(folder: Path, file: Path = DOCS / "results" / RUNS) -> int:
    """Put the kept runs into the folder, except those that are there; how many were put. Only numbers come back, no adapter.

    The folder's further runs are of the same dtype, whichever is faster on this machine.
    """
    count = 0
    for line in gzip.decompress(file.read_bytes()).decode().splitlines():
        row = json.loads(line)
        place = folder / row["run"]
        if not place.exists():
            working = place.with_name(place.name + WORKING)
            working.mkdir(parents=True, exist_ok=True)
            write_json(working / JOB, row["job"])
            write_json(working / RESULT, row["result"])
            working.rename(place)
            count += 1
        if not (folder / DTYPE).exists():
            write_json(folder / DTYPE, row["job"]["recipe"]["decoder"]["dtype"])
    return count


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=Path("runs") / FOLDER)
    parser.add_argument("--restore", action="store_true", help="put the kept runs into the folder")
    arguments = parser.parse_args()
    if arguments.restore:
        print(f"{arguments.folder}: {restore(arguments.folder)} runs restored")
    else:
        write(arguments.folder)
