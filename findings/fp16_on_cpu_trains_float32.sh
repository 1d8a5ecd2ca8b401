#!/usr/bin/env bash
# transformers' Trainer with fp16=True on a CPU trains in float32 without a word; bf16=True there does use bfloat16.
#
# Versions: transformers 5.23.0, accelerate 1.15.0, torch 2.14.1, Python 3.11.
# Surprise: the arguments are accepted, accelerate reports mixed precision "fp16", but it neither enters autocast nor makes a
#   gradient scaler, and nothing is logged. PyTorch itself has float16 autocast and a gradient scaler for the CPU.
# Who meets it: whoever tests a float16 recipe on a CPU before renting a GPU: overflow, scaling and skipped steps are never met.
# Workaround: after the Trainer is made, refuse fp16=True where trainer.accelerator.scaler is None.
# Output when written (2026-11-30):
#   fp16=True: accelerate says fp16, autocast False, scaler False, the layer computes in torch.float32, 0 warnings
#   bf16=True: accelerate says bf16, autocast True, scaler False, the layer computes in torch.bfloat16, 0 warnings
#   torch.autocast("cpu", torch.float16): the layer computes in torch.float16
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3.11 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --no-compile torch==2.14.1 transformers==5.23.0 accelerate==1.15.0 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import logging
import warnings

import torch
from torch import nn
from transformers import Trainer, TrainingArguments

said = []


class Listener(logging.Handler):
    def emit(self, record):
        said.append(record.getMessage())


for name in ("accelerate", "transformers"):
    logging.getLogger(name).addHandler(Listener(logging.WARNING))


class OneLayer(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        y = self.layer(x)
        self.dtype = y.dtype
        return {"loss": y.float().square().mean()}


def run(**precision):
    model = OneLayer()
    arguments = TrainingArguments(
        "out", use_cpu=True, max_steps=1, save_strategy="no", report_to=[], disable_tqdm=True, logging_strategy="no", **precision
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        said.clear()
        trainer = Trainer(model, arguments, train_dataset=[{"x": torch.ones(4)}] * 8)
        trainer.train()
    about = [line for line in (*said, *(str(one.message) for one in caught)) if "precision" in line.lower() or "16" in line]
    accelerator = trainer.accelerator
    name = next(iter(precision))
    print(
        f"{name}=True: accelerate says {accelerator.mixed_precision}, autocast {accelerator.native_amp}, "
        f"scaler {accelerator.scaler is not None}, the layer computes in {model.dtype}, {len(about)} warnings"
    )
    return accelerator.mixed_precision, accelerator.native_amp, accelerator.scaler, model.dtype, about


half, brain = run(fp16=True), run(bf16=True)
layer = OneLayer()
with torch.autocast("cpu", torch.float16):
    layer(torch.ones(4))
print('torch.autocast("cpu", torch.float16): the layer computes in', layer.dtype)
assert half == ("fp16", False, None, torch.float32, []), half
assert brain == ("bf16", True, None, torch.bfloat16, []), brain
assert layer.dtype == torch.float16
PYTHON
