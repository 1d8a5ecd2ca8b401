"""Runs the decoder contract on tiny models of transformers' decoder types, several at a time, and keeps the results."""

from __future__ import annotations

import logging
import multiprocessing
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import transformers

from dehvf_kit.backbones.base import config_size, text_config
from dehvf_kit.backbones.ffn.overrides import FFN_OVERRIDES, FfnOverride
from dehvf_kit.backbones.ffn.sites import ffn_sites
from dehvf_kit.errors import DecoderError
from dehvf_kit.testing.decoder_contract import CONTRACT, ItemResult, run_items
from dehvf_kit.testing.subject import Subject
from dehvf_kit.testing.tiny_models import tiny_decoder

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
    model_types: Sequence[str],
    processes: int = 2,
    on_result: Callable[[FamilyResult], None] | None = None,
    contract: Mapping[str, Callable[[Subject], None]] = CONTRACT,
) -> list[FamilyResult]:
    """Run the contract on decoder types, several at a time, each pass on one thread; results in the order given.

    `on_result` is told of each as it comes; `contract` holds the items (module-level functions). Cost: about 5 seconds a type
    and process, 1 GiB of memory a process.
    """
    results: dict[str, FamilyResult] = {}
    context = multiprocessing.get_context("spawn")
    # Fresh processes now and then: what torch.compile keeps of each model would fill the memory.
    round_size = TYPES_PER_PROCESS * processes
    for start in range(0, len(model_types), round_size):
        with ProcessPoolExecutor(processes, mp_context=context) as pool:
            for done in as_completed(pool.submit(family_result, t, contract) for t in model_types[start : start + round_size]):
                result = done.result()
                results[result.model_type] = result
                if on_result is not None:
                    on_result(result)
    return [results[model_type] for model_type in model_types]


@contextmanager
def quiet() -> Iterator[None]:
    """One thread, and neither warnings nor advice of transformers, for a while."""
    threads, disabled, verbosity = torch.get_num_threads(), logging.root.manager.disable, transformers.logging
    before = verbosity.get_verbosity()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    verbosity.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.set_num_threads(threads)
        logging.disable(disabled)
        verbosity.set_verbosity(before)


@quiet()
def family_result(model_type: str, contract: Mapping[str, Callable[[Subject], None]] = CONTRACT) -> FamilyResult:
    """The contract on one tiny decoder, in this process; whatever goes wrong is in the result."""
    transformers.logging.disable_progress_bar()
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
        items=tuple(run_items(contract, Subject(lambda: tiny_decoder(model_type)), None)),
        num_sites=len(sites),
        num_layers=config_size(text_config(model), "num_hidden_layers") or 0,
        first_path=sites[0].path,
        activation_name=sites[0].activation_name,
        overridden=FFN_OVERRIDES.get(model.config.model_type, FfnOverride()).reason,
    )
