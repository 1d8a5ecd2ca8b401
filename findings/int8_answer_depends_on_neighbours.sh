#!/usr/bin/env bash
# A bitsandbytes 8-bit layer gives a row another result when a row with large values is in the same batch.
#
# Versions: bitsandbytes 0.50.2, torch 2.13.0, Python 3.11 (on the CPU; no rounding noise between batch sizes is involved).
# Surprise: LLM.int8 computes columns with an entry above the threshold (6.0) in half precision and the rest in int8. The
#   columns are chosen over the whole batch, so one row with outliers moves columns of *all* rows to the other path. A neighbour
#   without outliers changes not a single bit.
# Who meets it: image features and register-like patches have large entries. A question's logits then depend on the images it
#   is batched with: scores differ between batch sizes, and cached or re-ordered evaluation is not reproducible.
# Workaround: set llm_int8_threshold=0.0 (no outlier columns) where equal results matter, or evaluate with batch size 1.
# Output when written (2026-11-29):
#   threshold 6.0: change with a quiet neighbour 0.0, with a loud one 0.025 (mean |output| 6.0)
#   threshold 0.0: change with a quiet neighbour 0.0, with a loud one 0.0 (mean |output| 6.0)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3.11 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --no-compile torch==2.13.0 bitsandbytes==0.50.2 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
from importlib.metadata import version

import bitsandbytes
import torch

print("bitsandbytes", version("bitsandbytes"), "torch", torch.__version__)
torch.manual_seed(0)
weight, row, quiet, loud = torch.randn(64, 64), torch.randn(1, 64), torch.randn(1, 64), torch.randn(1, 64)
loud[0, :8] = 20


def changes(threshold):
    layer = bitsandbytes.nn.Linear8bitLt(64, 64, bias=False, has_fp16_weights=False, threshold=threshold)
    layer.load_state_dict({"weight": weight}, strict=False)
    layer = layer.to("cpu").eval()
    assert layer.weight.dtype == torch.int8
    with torch.no_grad():
        alone = layer(row)
        found = [(layer(torch.cat([row, other]))[:1] - alone).abs().max().item() for other in (quiet, loud)]
    by_quiet, by_loud = (round(change, 4) for change in found)
    print(f"threshold {threshold}: change with a quiet neighbour {by_quiet}, with a loud one {by_loud}", end=" ")
    print(f"(mean |output| {alone.abs().mean():.1f})")
    return found


by_quiet, by_loud = changes(6.0)
assert by_quiet == 0 and by_loud > 0.01
assert changes(0.0) == [0, 0]
PYTHON
