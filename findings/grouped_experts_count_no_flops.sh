#!/usr/bin/env bash
# torch's FlopCounterMode counts none of the experts' FLOPs of a mixture-of-experts model that runs on grouped matrix products.
#
# Versions: torch 2.14.1, transformers 5.23.0, Python 3.11.
# Surprise: transformers can compute the same experts in three ways (experts_implementation). With "eager" and "batched_mm" the
#   counter gives the same total. With "grouped_mm" it knows no formula for aten._grouped_mm, counts it as zero and says nothing,
#   so that a sparse model seems to cost its attention, router and head alone. The outputs are the same.
# Who meets it: whoever reports FLOPs or model FLOPs utilisation of Mixtral, Qwen MoE or DeepSeek kinds, or compares a dense model
#   with a sparse one.
# Workaround: count with experts_implementation="eager", or give FlopCounterMode(custom_mapping=...) a formula for the operator.
# Output when written (2026-11-29):
#   eager: 1,122,304 FLOPs, batched_mm: 1,122,304 FLOPs, grouped_mm: 335,872 FLOPs
#   operators counted with grouped_mm: aten.mm
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3.11 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --no-compile torch==2.14.1 transformers==5.23.0 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import MixtralConfig, MixtralForCausalLM

config = MixtralConfig(
    vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2,
    num_local_experts=4, num_experts_per_tok=2,
)  # fmt: skip
ids, flops, outputs = torch.arange(16)[None], {}, {}
for implementation in ("eager", "batched_mm", "grouped_mm"):
    torch.manual_seed(0)
    model = MixtralForCausalLM._from_config(config, experts_implementation=implementation).eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        outputs[implementation] = model(ids).logits
    flops[implementation] = counter.get_total_flops()
    operators = sorted(str(name) for name in counter.get_flop_counts()["Global"])
print(", ".join(f"{name}: {count:,} FLOPs" for name, count in flops.items()))
print("operators counted with grouped_mm:", ", ".join(operators))
assert torch.allclose(outputs["eager"], outputs["grouped_mm"], atol=1e-5), "the same model"
assert flops["eager"] == flops["batched_mm"], "eager and batched experts are counted alike"
tokens, chosen, layers = 16, 2, 2
experts = 2 * 3 * 32 * 64 * tokens * chosen * layers
assert flops["eager"] - flops["grouped_mm"] == experts, "what is missing is all of the experts"
PYTHON
echo "as described"
