"""What must hold for every decoder that is given memory: the items of the contract and their names."""

from __future__ import annotations

from collections.abc import Callable

from dehvf_kit.testing import handling_items as handling
from dehvf_kit.testing import inference_items as inference
from dehvf_kit.testing import training_items as training
from dehvf_kit.testing.subject import Subject

# In the order they are run and reported.
CONTRACT: dict[str, Callable[[Subject], None]] = {
    "zero memory": inference.zero_memory_changes_nothing,
    "token by token": inference.sites_are_token_by_token,
    "each layer": inference.each_layer_equals_the_reference,
    "generation": inference.cached_generation_equals_uncached,
    "rows": inference.rows_follow_their_sample,
    "left padding": inference.left_padding_changes_nothing,
    "gradients": training.only_memory_gets_gradients,
    "checkpointing": training.checkpointing_and_cache_change_nothing,
    "bfloat16": training.half_precision_runs,
    "detach": handling.detach_restores_the_model,
    "save": handling.saved_while_attached_loads_untouched,
    "deepcopy": handling.deepcopy_keeps_the_memory,
    "compile": handling.compiles,
    "8 and 4 bit": handling.quantised_base_equals_the_reference,
}
