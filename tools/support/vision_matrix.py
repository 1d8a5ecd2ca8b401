"""Runs the vision contract on every image encoder transformers knows, and writes docs/support_vision.md and .json.

python -m tools.support.vision_matrix                             # all types, one process, about two minutes
python -m tools.support.vision_matrix clip_vision_model --output -  # some types, the page to standard output
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from dehvf_kit_doctor.decoder_family import quiet
from dehvf_kit_doctor.vision_family import EncoderResult, run_vision_matrix
from dehvf_kit_timm.check import verdicts

from dehvf_kit.errors import DehvfError, did_you_mean
from dehvf_kit.testing.vision_models import image_encoder_types
from tools.support.vision_page import vision_page


def main(arguments: Sequence[str] | None = None) -> int:
    """The command: run, show progress, write the page and its data. Returns 1 if an encoder breaks the contract."""
    parser = argparse.ArgumentParser(prog="python -m tools.support.vision_matrix", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("types", nargs="*", help="transformers model types; all image encoder types if none is given")
    parser.add_argument(
        "--output", default="docs/support_vision.md", help="the page to write, its data beside it; - for standard output"
    )
    given = parser.parse_args(arguments)
    with quiet():
        known = image_encoder_types()
    for model_type in given.types:
        if model_type not in known:
            near = did_you_mean(model_type, known)
            raise DehvfError(f"vision_matrix: no image encoder type is named '{model_type}'{near}")
    results = run_vision_matrix(given.types or known, _say)
    page = vision_page(results, () if given.types else verdicts(lambda line: print(line, file=sys.stderr, flush=True)))
    if given.output == "-":
        print(page)
    else:
        target = Path(given.output)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(page, encoding="utf-8")
        data = [{**asdict(result), "status": result.status} for result in results]
        target.with_suffix(".json").write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    counts = Counter(result.status for result in results)
    print(", ".join(f"{count} {status}" for status, count in counts.most_common()), file=sys.stderr)
    return 1 if counts["broken"] else 0


def _say(result: EncoderResult) -> None:
    broken = "; ".join(str(item) for item in result.items if item.status == "broken")
    seconds = sum(item.seconds for item in result.items)
    detail = broken or result.note[:100]
    print(f"{result.model_type}: {result.status} ({seconds:.1f} s) {detail}".rstrip(), file=sys.stderr, flush=True)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except DehvfError as error:
        sys.exit(str(error))
