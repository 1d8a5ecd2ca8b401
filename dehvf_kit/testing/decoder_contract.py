"""The contract that every decoder given memory must keep: its items, and how they are run and reported (also for encoders)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from dehvf_kit.errors import DehvfError, did_you_mean, listing
from dehvf_kit.testing import handling_items as handling
from dehvf_kit.testing import hook_items as hooks
from dehvf_kit.testing import inference_items as inference
from dehvf_kit.testing import recipe_items
from dehvf_kit.testing.subject import Broken, FamilyLimit, NotRun, Subject
from dehvf_kit.testing.tiny_models import tiny_decoder

# In the order they are run and reported.
CONTRACT: dict[str, Callable[[Subject], None]] = {
    "zero memory": inference.zero_memory_changes_nothing,
    "token by token": inference.sites_are_token_by_token,
    "each layer": inference.each_layer_equals_the_reference,
    "generation": inference.cached_generation_equals_uncached,
    "rows": inference.rows_follow_their_sample,
    "left padding": inference.left_padding_changes_nothing,
    "gradients": handling.only_memory_gets_gradients,
    "checkpointing": handling.checkpointing_and_cache_change_nothing,
    "bfloat16": handling.half_precision_runs,
    "detach": handling.detach_restores_the_model,
    "save": handling.saved_while_attached_loads_untouched,
    "deepcopy": handling.deepcopy_keeps_the_memory,
    "compile": handling.compiles,
    "8 and 4 bit": handling.quantised_base_equals_the_reference,
    "layers": hooks.layers_take_what_is_added,
    "maps": hooks.maps_take_what_is_added,
    "recipe": recipe_items.built_counted_saved_and_loaded,
}


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

    Args:
        make: builds the decoder afresh at each call with the same weights (small and on the CPU), or is the name of a
            transformers model type, which is then built tiny.
        items: their names; all where not given.

    Nothing raises but a wrong item name (DehvfError) and a decoder
    that has no FFN (DecoderError). Cost: one to ten seconds for a tiny model, most of it torch.compile.
    """
    subject = Subject((lambda: tiny_decoder(make)) if isinstance(make, str) else make)
    _ = subject.sites
    return run_items(CONTRACT, subject, items)


def run_items(contract: Mapping[str, Callable[[Any], None]], subject: Any, items: Iterable[str] | None) -> list[ItemResult]:
    """Results of a contract's items (None: all) on a subject. Raises: DehvfError for an item that it does not have."""
    chosen = list(contract) if items is None else list(items)
    for item in chosen:
        if item not in contract:
            near = did_you_mean(item, contract)
            raise DehvfError(f"the contract has no item '{item}'{near} Items: {listing(contract)}")
    return [_run(item, contract[item], subject) for item in chosen]


def _run(item: str, check: Callable[[Any], None], subject: Any) -> ItemResult:
    start, status, reason = time.perf_counter(), "pass", ""
    try:
        check(subject)
    except FamilyLimit as limit:
        status, reason = "family", str(limit)
    except NotRun as missing:
        status, reason = "not run", str(missing)
    except Exception as error:  # noqa: BLE001 - a model may fail in any way; the report says which
        status, reason = "broken", str(error) if isinstance(error, Broken) else f"{type(error).__name__}: {error}"
    return ItemResult(item, status, " ".join(reason.split())[:300], round(time.perf_counter() - start, 2))


def check_decoder(make: str | Callable[[], nn.Module], items: Iterable[str] | None = None) -> list[ItemResult]:
    """Run the contract as `run_contract` does and raise Broken, naming every item that does not hold.

    Args: make, items, as in `run_contract`.
    The whole test of a plugin's decoder: `check_decoder(lambda: MyDecoder(MyConfig(hidden_size=32)))`.
    """
    return none_broken(make, run_contract(make, items))


def none_broken(make: str | Callable[[], nn.Module], results: list[ItemResult]) -> list[ItemResult]:
    """The results of `make`'s contract. Raises: Broken, naming every item that does not hold."""
    broken = [str(result) for result in results if result.status == "broken"]
    if broken:
        name = make if isinstance(make, str) else type(make()).__name__
        raise Broken(f"{name}: {len(broken)} of {len(results)} items of the contract do not hold\n" + "\n".join(broken))
    return results
