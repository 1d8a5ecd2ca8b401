#!/usr/bin/env bash
# Beam search in transformers continues a beam of MiniMax or RecurrentGemma with another beam's recurrent state.
#
# Versions: torch 2.14.1, transformers 5.23.0, Python 3.11. Random weights: it is the computation, not a checkpoint.
# Surprise: after every step beam search tells the cache which beams go on, and the cache reorders its keys and values. MiniMaxCache
#   reorders those of its full attention layers alone, not the states of its linear ones; RecurrentGemma keeps its states in its
#   modules, where no reordering reaches them. Nothing is said, and texts other than without a cache come out: greedy ones agree, beams do not.
#   Told to reorder these states too, both families agree with and without a cache. xLSTM and RWKV refuse beams with a cache.
# Who meets it: whoever captions or answers with num_beams on these two families.
# Workaround: use_cache=False with num_beams above one, or greedy search.
# Output when written (2026-11-30), rows of 8 that are the same with and without a cache:
#   MiniMax: greedy 8, 4 beams 0, 4 beams with states reordered 8
#   RecurrentGemma: greedy 8, 4 beams 5, 4 beams with states reordered 8
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3.11 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --no-compile torch==2.14.1 transformers==5.23.0 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import torch
from transformers import MiniMaxConfig, MiniMaxForCausalLM, RecurrentGemmaConfig, RecurrentGemmaForCausalLM
from transformers.cache_utils import DynamicCache
from transformers.models.minimax.modeling_minimax import MiniMaxCache

ROWS = 8
small = dict(vocab_size=64, hidden_size=32, intermediate_size=64, num_attention_heads=4, initializer_range=0.2)
torch.manual_seed(0)
models = {
    "MiniMax": MiniMaxForCausalLM(
        MiniMaxConfig(
            **small, num_hidden_layers=2, layer_types=["linear_attention", "full_attention"], head_dim=8, num_key_value_heads=2,
            num_local_experts=2, num_experts_per_tok=1,
        )
    ).eval(),
    "RecurrentGemma": RecurrentGemmaForCausalLM(
        RecurrentGemmaConfig(**small, num_hidden_layers=3, lru_width=32, attention_window_size=32)
    ).eval(),
}  # fmt: skip
prompts = torch.randint(3, 64, (ROWS, 6), generator=torch.Generator().manual_seed(1))


def same_rows(model, beams):
    with_cache, without = (
        model.generate(
            prompts, num_beams=beams, use_cache=cache, do_sample=False, max_new_tokens=10, min_new_tokens=10, pad_token_id=0,
        )
        for cache in (True, False)
    )  # fmt: skip
    return (with_cache == without).all(1).sum().item()


before = {name: (same_rows(model, 1), same_rows(model, 4)) for name, model in models.items()}
inherited = DynamicCache.reorder_cache


def reorder(cache, beams):
    inherited(cache, beams)
    if isinstance(cache, MiniMaxCache):
        cache.linear_cache = [state[beams] if len(state) else state for state in cache.linear_cache]
    for module in models["RecurrentGemma"].modules():
        for name in ("recurrent_states", "conv1d_state"):
            if getattr(module, name, None) is not None:
                setattr(module, name, getattr(module, name)[beams])


DynamicCache.reorder_cache = MiniMaxCache.reorder_cache = reorder
for name, model in models.items():
    greedy, beams = before[name]
    reordered = same_rows(model, 4)
    print(f"{name}: greedy {greedy}, 4 beams {beams}, 4 beams with states reordered {reordered}")
    if greedy != ROWS or beams == ROWS or reordered != ROWS:
        raise SystemExit("changed: this is no longer as described")
PYTHON
echo "as described"
