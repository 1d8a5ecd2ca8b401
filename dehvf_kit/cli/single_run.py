"""`python -m dehvf_kit.cli.single_run JOB.json`: one run of a comparison, in a process of its own."""

from __future__ import annotations

import sys
from pathlib import Path

from dehvf_kit.cli.console import Reporter, quiet_transformers
from dehvf_kit.errors import DehvfError


def main(file: Path) -> int:
    """Run the job; a fault that the user can correct is printed without a traceback."""
    from dehvf_kit.evaluation.compare.single_run import run_job

    quiet_transformers()
    try:
        run_job(file, Reporter(None))
    except DehvfError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
