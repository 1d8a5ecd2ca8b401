#!/usr/bin/env bash
# transformers' ProphetNet gives other logits in one pass over a text than token by token with a cache, and in a pass they depend
# on how long the text is.
#
# Versions: torch 2.14.1, transformers 5.23.0, Python 3.11. Random weights: it is the computation, not a checkpoint.
# Surprise: logits of the same tokens differ by as much as they vary. The predicted stream's relative position bias is gathered
#   with two orders of the axes: the projected states are flattened as (batch, token, n-gram, head), the indices as (n-gram, batch,
#   head, token), so that a query takes the bias of another token and head, which ones depending on the length. With one token
#   both orders are the same, as in cached generation. With the bias gathered in one order, whole text, beginning and single tokens agree.
# Who meets it: whoever trains or scores texts in one pass (losses, perplexity, multiple choice by likelihood) and generates with
#   a cache: the model that is trained is not the one that answers.
# Workaround: generate with use_cache=False, so that both are the same computation; it remains dependent on padding and length.
# Output when written (2026-11-30), largest difference of a logit, whose standard deviation is 1.15:
#   one pass over 8 tokens, its first 7 logits against a pass over 7: 2.37
#   one pass over 8 tokens against single tokens with a cache: 2.03
#   with the bias in one order: 1.3e-06 and 1.7e-06
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3.11 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --no-compile torch==2.14.1 transformers==5.23.0 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import torch
from transformers import ProphetNetConfig, ProphetNetForCausalLM
from transformers.models.prophetnet.modeling_prophetnet import ProphetNetNgramSelfAttention

torch.manual_seed(0)
config = ProphetNetConfig(
    vocab_size=64, hidden_size=32, decoder_ffn_dim=64, num_decoder_layers=2, num_decoder_attention_heads=4, init_std=0.2,
    max_position_embeddings=64, is_decoder=True, is_encoder_decoder=False, add_cross_attention=False,
)  # fmt: skip
model = ProphetNetForCausalLM(config).eval()
tokens = torch.randint(3, 64, (1, 8), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def differences():
    whole = model(input_ids=tokens, use_cache=False).logits
    beginning = model(input_ids=tokens[:, :-1], use_cache=False).logits
    cache, single = None, []
    for token in tokens.split(1, dim=1):
        output = model(input_ids=token, past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        single.append(output.logits)
    print(f"standard deviation of the logits: {whole.std():.2f}")
    return (whole[:, :-1] - beginning).abs().max().item(), (whole - torch.cat(single, 1)).abs().max().item()


length, caching = differences()
print(f"one pass over 8 tokens, its first 7 logits against a pass over 7: {length:.2f}")
print(f"one pass over 8 tokens against single tokens with a cache: {caching:.2f}")

theirs = ProphetNetNgramSelfAttention.get_predict_relative_pos_embeddings


def in_one_order(attention, states, weights, positions, buckets):
    if buckets is None:  # a single token
        return theirs(attention, states, weights, positions, buckets)
    bias = attention.relative_pos_embeddings(states).unflatten(-1, (attention.num_buckets, attention.num_attn_heads))
    bias = torch.einsum("btnkh->bnhtk", bias)
    return bias.gather(-1, buckets.long()[:, None, None].expand(*bias.shape[:4], buckets.shape[-1]))


ProphetNetNgramSelfAttention.get_predict_relative_pos_embeddings = in_one_order
fixed = differences()
print(f"with the bias in one order: {fixed[0]:.1e} and {fixed[1]:.1e}")
if min(length, caching) < 0.1 or max(fixed) > 1e-4:
    raise SystemExit("changed: this is no longer as described")
PYTHON
echo "as described"
