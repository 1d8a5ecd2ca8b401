#!/usr/bin/env bash
# After one evaluation pass on the CPU, bitsandbytes 4-bit layers pass no gradient any more, not even back in train mode.
#
# Versions: bitsandbytes 0.50.2, torch 2.13.0, Python 3.11, an x86 CPU with AVX512-BF16 (the script skips itself elsewhere).
# Surprise: the first forward of Linear4bit in eval mode on an input without gradient repacks its weight for a fused kernel that
#   has no backward, and train() does not undo that. A layer alone then gives x.grad None; inside a residual block (every
#   transformer FFN) there is no error: the gradient keeps the skip connection's share and silently loses the layer's. The
#   forward is also computed in bfloat16 from then on, although compute_dtype is float32.
# Who meets it: a frozen 4-bit decoder with a projector, prefix or adapter trained in front of it, on a laptop or in CI:
#   training is right until the first evaluation or generate(), and wrong after it. The loss may still fall.
# Workaround: set support_avx512bf16_for_cpu = False on every Linear4bit before the first evaluation. (state_dict() also
#   restores the layout, but not the exact weights.)
# Output when written (2026-11-29):
#   before evaluation:   gradient error 0.000000, output error 0.000000
#   after evaluation:    gradient is the skip connection's alone: True, output error 0.014
#   without skip connection: x.grad is None
#   after state_dict():  gradient error 0.003627, output error 0.007199
#   with the workaround: gradient error 0.000000, output error 0.000000
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
from bitsandbytes.functional import dequantize_4bit, has_avx512bf16

print("bitsandbytes", version("bitsandbytes"), "torch", torch.__version__)
if not has_avx512bf16():
    raise SystemExit("skipped: this CPU has no AVX512-BF16, so the fused kernel is not used")

torch.manual_seed(0)
start = torch.randn(256, 256) / 16


def quantised():
    layer = bitsandbytes.nn.Linear4bit(256, 256, bias=False, compute_dtype=torch.float32, quant_type="nf4")
    layer.weight = bitsandbytes.nn.Params4bit(start.clone(), requires_grad=False, quant_type="nf4")
    return layer.to("cpu")


layer = quantised()
weight = dequantize_4bit(layer.weight.data, layer.weight.quant_state).float()
given = torch.randn(4, 256)
expected_output = given + given @ weight.T
expected_gradient = torch.ones(4, 256) + torch.ones(4, 256) @ weight


def block(x):
    return x + layer(x)


def step():
    """One training step: the largest error of the output and of the gradient, and the gradient."""
    layer.train()
    x = given.clone().requires_grad_()
    output = block(x)
    output.sum().backward()
    return (output - expected_output).abs().max().item(), (x.grad - expected_gradient).abs().max().item(), x.grad


def evaluate():
    layer.eval()
    with torch.no_grad():
        block(given)


def errors(title):
    output_error, gradient_error, _ = step()
    print(f"{title:20} gradient error {gradient_error:.6f}, output error {output_error:.6f}")
    return max(output_error, gradient_error)


assert errors("before evaluation:") < 1e-4

evaluate()
output_error, _, gradient = step()
only_skip = torch.equal(gradient, torch.ones(4, 256))
print(f"after evaluation:    gradient is the skip connection's alone: {only_skip}, output error {output_error:.3f}")
assert only_skip and output_error > 1e-3

x = given.clone().requires_grad_()
layer(x).sum().backward()
print("without skip connection: x.grad is", x.grad)
assert x.grad is None

layer.state_dict()
assert 1e-4 < errors("after state_dict():") < 0.05

layer = quantised()
layer.support_avx512bf16_for_cpu = False
evaluate()
assert errors("with the workaround:") < 1e-4
PYTHON
