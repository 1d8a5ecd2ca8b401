"""Two commits side by side: this working tree against an older one, every job in processes of their own, in turn.

    python benchmarks/against.py da588fc                            # every job, 5 pairs
    python benchmarks/against.py da588fc --jobs images --pairs 9    # one job; 1,000 photographs
    python benchmarks/against.py HEAD~1 --quick --pairs 1           # few and small: that it runs

REV is checked out into a temporary worktree. A pair runs a job once on each side, the older first in every second pair; the
table gives the median of the ratios within pairs and its 95% bootstrap interval, and says whether both sides gave the same
result. Jobs are in `against_jobs.py`. `--clock cpu` compares processor seconds in place of wall time, for a machine that does
other work as well.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from against_jobs import JOBS, Job
from compare_timing import load, processor, ratio

ROOT = Path(__file__).parents[1]
WORKER = Path(__file__).with_name("against_jobs.py")
BEGIN, END = "<!-- against:begin -->", "<!-- against:end -->"
HEADER = ("", "unit", "before", "today", "ratio (interval)", "same result", "pairs")


@contextmanager
def checked_out(revision: str) -> Iterator[Path]:
    """A temporary worktree of a revision."""
    with tempfile.TemporaryDirectory(prefix="against-") as folder:
        place = Path(folder) / "tree"
        _git("worktree", "add", "--detach", str(place), revision)
        try:
            yield place
        finally:
            _git("worktree", "remove", "--force", str(place))


def _git(*arguments: str) -> str:
    found = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    if found.returncode:
        raise SystemExit(f"git {' '.join(arguments)}: {found.stderr.strip()}")
    return found.stdout.strip()


def run(tree: Path, job: str, work: Path, options: argparse.Namespace) -> dict[str, Any]:
    """What a job prints when a tree's code runs it. Raises: SystemExit with its error where it fails."""
    path = os.pathsep.join(map(str, [tree, *sorted((tree / "plugins").glob("*"))]))
    own = {"PYTHONPATH": path, "DEHVF_KIT_CACHE": str(work / "cache" / tree.name), "OMP_NUM_THREADS": str(options.threads)}
    wanted = dict(one.split("=") for one in JOBS[job].environment) if job in JOBS else {}
    command = [sys.executable, str(WORKER), job, str(work), *(["--quick"] if options.quick else [])]
    found = subprocess.run(command, cwd=tree, env={**os.environ, **own, **wanted}, capture_output=True, text=True, check=False)
    if found.returncode:
        raise SystemExit(f"{job} at {tree}:\n{found.stderr[-3000:]}")
    return json.loads(found.stdout.splitlines()[-1])


def pairs(trees: Sequence[Path], job: str, work: Path, options: argparse.Namespace) -> list[list[dict[str, Any]]]:
    """What the older and this tree found, pair by pair; the older runs first in every second one."""
    found = []
    for number in range(options.pairs):
        order = [0, 1] if number % 2 == 0 else [1, 0]
        sides = {side: run(trees[side], job, work, options) for side in order}
        found.append([sides[0], sides[1]])
        print(f"{job} {number + 1}/{options.pairs}: {json.dumps(found[-1])}", file=sys.stderr, flush=True)
    return found


def row(name: str, job: Job, found: Sequence[Sequence[Mapping[str, Any]]], clock: str) -> list[str]:
    """A line of the table: medians, the ratio of today to before, and whether results agree."""
    value = clock if job.timed else "value"
    before, today = ([job.figure(pair[side], value) for pair in found] for side in (0, 1))
    medians = [f"{statistics.median(side):,.4g}" for side in (before, today)]
    digests = {one["digest"] for pair in found for one in pair}
    same = "-" if digests == {""} else "yes" if len(digests) == 1 else "no"
    if "shown" in found[0][1]:
        same = "; ".join(f"{pair[0]['shown']} and {pair[1]['shown']}" for pair in found)
    return [f"{name}: {job.what}", job.unit, *medians, str(ratio(today, before)), same, str(len(found))]


def table(rows: Sequence[Sequence[str]]) -> str:
    lines = [HEADER, ["---"] * len(HEADER), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("revision", help="the older commit")
    parser.add_argument("--jobs", nargs="+", choices=list(JOBS), default=list(JOBS))
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="what timed jobs are compared by")
    parser.add_argument("--work", type=Path, help="a folder that keeps adapter and photographs for another run")
    parser.add_argument("--quick", action="store_true", help="few and small inputs")
    parser.add_argument("--write-readme", action="store_true", help="put the table into benchmarks/README.md")
    options = parser.parse_args()
    started, rows = load(), []
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the worktree is removed
    with checked_out(options.revision) as before, tempfile.TemporaryDirectory(prefix="against-work-") as folder:
        work = options.work or Path(folder)
        work.mkdir(parents=True, exist_ok=True)
        for name in options.jobs:
            if JOBS[name].prepare:
                run(before, f"prepare-{JOBS[name].prepare}", work, options)
            rows.append(row(name, JOBS[name], pairs([before, ROOT], name, work, options), options.clock))
            print(table(rows[-1:]), flush=True)
    clock = "processor seconds" if options.clock == "cpu" else "wall time"
    busy = f"load {started[0]} before and {load()[0]} after"
    about = f"{_git('rev-parse', '--short', options.revision)} against {_git('rev-parse', '--short', 'HEAD')}, {processor()}, "
    report = f"{about}{options.threads} threads of {os.cpu_count()} cores, {clock}, {busy}.\n\n{table(rows)}"
    print(f"\n{report}")
    if options.write_readme:
        readme = Path(__file__).with_name("README.md")
        text = readme.read_text(encoding="utf-8")
        start, _, rest = text.partition(BEGIN)
        end = rest.partition(END)[2]
        readme.write_text(f"{start}{BEGIN}\n{report}\n{END}{end}", encoding="utf-8")


if __name__ == "__main__":
    main()
