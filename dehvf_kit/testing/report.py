"""Runs the contract on one decoder and says how it went."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from torch import nn

from dehvf_kit.errors import DehvfError, did_you_mean, listing
from dehvf_kit.testing.decoder_contract import CONTRACT
from dehvf_kit.testing.subject import Broken, FamilyLimit, NotRun, Subject
from dehvf_kit.testing.tiny_models import tiny_decoder


@dataclass(frozen=True)
class ItemResult:
    """How one item of the contract went: `pass`, `family` (the untouched model fails it), `not run` or `broken`."""

    item: str
    status: str
    reason: str = ""
    seconds: float = 0.0

    def __str__(self) -> str:
        return f"{self.item}: {self.status}" + (f" ({self.reason})" if self.reason else "")


def run_contract(make: str | Callable[[], nn.Module], items: Iterable[str] | None = None) -> list[ItemResult]:
    """Run the contract, or some of its items, on a decoder.

    `make` builds the decoder afresh at each call with the same weights (small and on the CPU), or is the name of a
    transformers model type, which is then built tiny. Nothing raises but a wrong item name (DehvfError) and a decoder
    that has no FFN (DecoderError). Cost: one to ten seconds for a tiny model, most of it torch.compile.
    """
    chosen = list(CONTRACT) if items is None else list(items)
    for item in chosen:
        if item not in CONTRACT:
            near = did_you_mean(item, CONTRACT)
            raise DehvfError(f"run_contract: the contract has no item '{item}'{near}. Items: {listing(CONTRACT)}")
    subject = Subject((lambda: tiny_decoder(make)) if isinstance(make, str) else make)
    _ = subject.sites
    return [_run(item, subject) for item in chosen]


def _run(item: str, subject: Subject) -> ItemResult:
    start, status, reason = time.perf_counter(), "pass", ""
    try:
        CONTRACT[item](subject)
    except FamilyLimit as limit:
        status, reason = "family", str(limit)
    except NotRun as missing:
        status, reason = "not run", str(missing)
    except Broken as broken:
        status, reason = "broken", str(broken)
    except Exception as error:  # noqa: BLE001 - a decoder may fail in any way; the report says which
        status, reason = "broken", f"{type(error).__name__}: {error}"
    return ItemResult(item, status, " ".join(reason.split())[:300], round(time.perf_counter() - start, 2))


def check_decoder(make: str | Callable[[], nn.Module], items: Iterable[str] | None = None) -> list[ItemResult]:
    """Run the contract as `run_contract` does and raise Broken, naming every item that does not hold.

    The whole test of a plugin's decoder: `check_decoder(lambda: MyDecoder(MyConfig(hidden_size=32)))`.
    """
    results = run_contract(make, items)
    broken = [str(result) for result in results if result.status == "broken"]
    if broken:
        name = make if isinstance(make, str) else type(make()).__name__
        raise Broken(f"{name}: {len(broken)} of {len(results)} items of the contract do not hold\n" + "\n".join(broken))
    return results
