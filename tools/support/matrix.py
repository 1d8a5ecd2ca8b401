"""Runs the contract on every decoder type that transformers' causal-LM mapping knows, and writes docs/support.md.

python -m tools.support.matrix                        # all types, two processes, about 15 minutes
python -m tools.support.matrix llama opt --output -   # some types, the page to standard output
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from dehvf_kit.errors import DecoderError, DehvfError, did_you_mean
from dehvf_kit.testing.report import ItemResult

CANNOT_RUN, NO_FFN = "cannot be built", "no FFN"
TYPES_PER_PROCESS = 24


@dataclass(frozen=True)
class FamilyResult:
    """One decoder type's results; `note` says why there are none (no FFN, or the type cannot be built here)."""

    model_type: str
    items: tuple[ItemResult, ...] = ()
    num_sites: int = 0
    num_layers: int = 0
    first_path: str = ""
    activation_name: str = ""
    overridden: str = ""
    note: str = ""

    @property
    def status(self) -> str:
        """`pass`, `broken`, or what `note` says in short."""
        if self.note:
            return NO_FFN if self.note.startswith(NO_FFN) else CANNOT_RUN
        return "broken" if any(item.status == "broken" for item in self.items) else "pass"


def run_matrix(
    model_types: Sequence[str], processes: int = 2, on_result: Callable[[FamilyResult], None] | None = None
) -> list[FamilyResult]:
    """Run the contract on decoder types, several at a time, each pass on one thread; results in the order given.

    `on_result` is told of each as it comes. Cost: about 5 seconds a type and process, 1 GiB of memory a process.
    """
    results: dict[str, FamilyResult] = {}
    context = multiprocessing.get_context("spawn")
    # Fresh processes now and then: what torch.compile keeps of each model would fill the memory.
    round_size = TYPES_PER_PROCESS * processes
    for start in range(0, len(model_types), round_size):
        with ProcessPoolExecutor(processes, mp_context=context) as pool:
            for done in as_completed(pool.submit(family_result, t) for t in model_types[start : start + round_size]):
                result = done.result()
                results[result.model_type] = result
                if on_result is not None:
                    on_result(result)
    return [results[model_type] for model_type in model_types]


def family_result(model_type: str) -> FamilyResult:
    """The contract on one tiny decoder, in this process; whatever goes wrong is in the result."""
    import logging
    import warnings

    import torch
    import transformers

    from dehvf_kit.backbones.ffn.overrides import overridden_types
    from dehvf_kit.backbones.ffn.sites import ffn_sites
    from dehvf_kit.testing.report import run_contract
    from dehvf_kit.testing.tiny_models import tiny_decoder

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    logging.disable(logging.WARNING)
    try:
        model = tiny_decoder(model_type)
    except Exception as error:  # noqa: BLE001 - the reason goes into the page
        return FamilyResult(model_type, note=f"{CANNOT_RUN}: {' '.join(str(error).split())[:160]}")
    try:
        sites = ffn_sites(model)
    except DecoderError:
        return FamilyResult(model_type, note=f"{NO_FFN}: no layer maps hidden size -> wider -> hidden size")
    return FamilyResult(
        model_type,
        tuple(run_contract(model_type)),
        len(sites),
        int(getattr(model.config.get_text_config(decoder=True), "num_hidden_layers", 0)),
        sites[0].path,
        sites[0].activation_name,
        overridden_types().get(model.config.model_type, ""),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """The command: run, show progress, write the page. Returns 1 if a family breaks the contract."""
    from dehvf_kit.testing.tiny_models import decoder_types
    from tools.support.support_page import support_page

    parser = argparse.ArgumentParser(prog="python -m tools.support.matrix", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("types", nargs="*", help="transformers model types; all decoder types if none is given")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--output", default="docs/support.md", help="the page to write; - for standard output")
    given = parser.parse_args(arguments)
    known = decoder_types()
    for model_type in given.types:
        if model_type not in known:
            raise DehvfError(f"matrix: no decoder type is named '{model_type}'{did_you_mean(model_type, known)}")
    results = _run_with_progress(given.types or known, given.processes)
    page = support_page(results)
    if given.output == "-":
        print(page)
    else:
        Path(given.output).write_text(page, encoding="utf-8")
    counts = Counter(result.status for result in results)
    print(", ".join(f"{count} {status}" for status, count in counts.most_common()), file=sys.stderr)
    return 1 if counts["broken"] else 0


def _run_with_progress(model_types: Sequence[str], processes: int) -> list[FamilyResult]:
    """A progress bar in a terminal, elsewhere a line of plain text a type."""
    console = Console(stderr=True)
    if not console.is_terminal:

        def say(result: FamilyResult) -> None:
            broken = "; ".join(str(item) for item in result.items if item.status == "broken")
            seconds = sum(item.seconds for item in result.items)
            print(
                f"{result.model_type}: {result.note or broken or 'pass'} ({seconds:.0f} s)", file=sys.stderr, flush=True
            )

        return run_matrix(model_types, processes, say)
    with Progress(console=console) as progress:
        task = progress.add_task("contract", total=len(model_types))
        return run_matrix(model_types, processes, lambda result: progress.advance(task))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except DehvfError as error:
        sys.exit(str(error))
