#!/usr/bin/env bash
# torch's FlopCounterMode cannot count a BLIP-2 or a Perceiver under torch.no_grad() while the model's weights are trainable.
#
# Versions: torch 2.14.1, transformers 5.23.0, Python 3.11.
# Surprise: the counter also follows modules, through a hook on every input that requires a gradient. A view of a parameter that
#   is made under no_grad still says requires_grad=True but has no gradient function, and the hook raises a bare AssertionError.
#   BLIP-2 expands its query tokens and a Perceiver its latents, so both fail in their first layer. Neither the no_grad block
#   nor the counter is at fault alone: each works without the other, and freezing the weights helps as well. Models whose learned
#   tokens are concatenated first, as a ViT's class token, are counted.
# Who meets it: whoever counts FLOPs of a query transformer, a resampler or any module that is fed its own learned tokens.
# Workaround: model.requires_grad_(False), or count with gradients enabled.
# Output when written (2026-11-29):
#   BLIP-2, no_grad: AssertionError: Expected gradient function to be set
#   BLIP-2, enable_grad: 746,752 FLOPs; no_grad and frozen: 746,752 FLOPs
#   Perceiver, no_grad: AssertionError: Expected gradient function to be set
#   Perceiver, enable_grad: 162,816 FLOPs; no_grad and frozen: 162,816 FLOPs
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3.11 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --no-compile torch==2.14.1 transformers==5.23.0 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import Blip2Config, Blip2ForConditionalGeneration, PerceiverConfig, PerceiverModel

small = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)
text = dict(
    model_type="opt", vocab_size=60, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, ffn_dim=64,
    word_embed_proj_dim=32, max_position_embeddings=64,
)  # fmt: skip
blip2 = Blip2ForConditionalGeneration(
    Blip2Config(
        vision_config=dict(small, image_size=28, patch_size=14), text_config=text, num_query_tokens=4, image_token_index=59,
        qformer_config=dict(small, encoder_hidden_size=32, vocab_size=50),
    )
)  # fmt: skip
perceiver = PerceiverModel(
    PerceiverConfig(
        num_latents=4, d_latents=32, d_model=32, num_blocks=1, num_self_attends_per_block=2, num_self_attention_heads=2,
        num_cross_attention_heads=2,
    )
)  # fmt: skip
cases = {
    "BLIP-2": (blip2, dict(pixel_values=torch.rand(1, 3, 28, 28), input_ids=torch.tensor([[59] * 4 + [1, 2, 3]]))),
    "Perceiver": (perceiver, dict(inputs=torch.rand(1, 6, 32))),
}


def count(model, inputs):
    with FlopCounterMode(display=False) as counter:
        model(**inputs)
    return counter.get_total_flops()


for name, (model, inputs) in cases.items():
    model.eval()
    try:
        with torch.no_grad():
            raise SystemExit(f"changed: {name} was counted, {count(model, inputs):,} FLOPs")
    except AssertionError as error:
        print(f"{name}, no_grad: AssertionError: {error}")
    with torch.enable_grad():
        trainable = count(model, inputs)
    model.requires_grad_(False)
    with torch.no_grad():
        frozen = count(model, inputs)
    print(f"{name}, enable_grad: {trainable:,} FLOPs; no_grad and frozen: {frozen:,} FLOPs")
    assert trainable == frozen > 0
PYTHON
echo "as described"
