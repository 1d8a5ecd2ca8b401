#!/usr/bin/env bash
# torch's non-reentrant checkpoint ends a layer's second run by an exception, which the layer's own `except Exception` catches.
#
# Versions: torch 2.14.1, Python 3.11.
# Surprise: in backward the layer runs again only until the last tensor that backward needs is there; then an exception of torch's
#   own, a subclass of Exception, leaves it. A layer that tries a fast kernel and falls back on any exception takes that for a
#   failure of the kernel: it remembers that the kernel does not work, and runs the fallback, which fails on an assertion that says
#   nothing of this. A layer whose fallback keeps no tensor goes on without a word, with its kernel switched off. The forward
#   pass, and all of it without checkpointing, are right.
# Who meets it: whoever trains with gradient checkpointing (transformers' default is this form) layers that guard a kernel, a
#   cache or a log by a broad `except`; hooks and context managers inside a layer see the exception too.
# Workaround: catch the kernel's own errors, or torch.utils.checkpoint.set_checkpoint_early_stop(False), or early_stop=False.
# Output when written (2026-11-30):
#   no checkpoint: kernel still used True, gradient right
#   checkpoint: AssertionError: Unexpected state: target_frame.early_stop is set; kernel still used False, caught _StopRecomputationError
#   checkpoint, early_stop=False: kernel still used True, gradient right
#   checkpoint, a fallback that keeps nothing: kernel still used False, caught _StopRecomputationError, gradient right
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3.11 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --no-compile torch==2.14.1 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint


class Guarded(nn.Module):
    """SiLU of a linear map by the kernel, and where that has failed once, written out from then on."""

    def __init__(self, fallback):
        super().__init__()
        torch.manual_seed(0)
        self.linear, self.fallback, self.kernel, self.caught = nn.Linear(8, 8), fallback, True, None

    def forward(self, x):
        if self.kernel:
            try:
                return F.silu(self.linear(x))
            except Exception as error:
                self.kernel, self.caught = False, type(error).__name__
        return self.fallback(self.linear, x)


def written_out(linear, x):
    y = linear(x)
    return y * torch.sigmoid(y)


@torch.no_grad()
def keeps_nothing(linear, x):
    return written_out(linear, x)


def run(name, fallback=written_out, **settings):
    layer, x = Guarded(fallback), torch.linspace(-1, 1, 32).view(4, 8).requires_grad_()
    wanted, *_ = torch.autograd.grad(written_out(layer.linear, x).sum(), layer.linear.weight)
    try:
        checkpoint(layer, x, use_reentrant=False, **settings).sum().backward()
    except AssertionError as error:
        result = f"{type(error).__name__}: {error}; "
    else:
        result = ""
    found = result + f"kernel still used {layer.kernel}"
    found += f", caught {layer.caught}" if layer.caught else ""
    if not result:
        found += ", gradient right" if torch.allclose(layer.linear.weight.grad, wanted, atol=1e-6) else ", gradient wrong"
    print(f"{name}: {found}")
    return found


layer, x = Guarded(written_out), torch.linspace(-1, 1, 32).view(4, 8)
wanted, *_ = torch.autograd.grad(written_out(layer.linear, x).sum(), layer.linear.weight)
layer(x).sum().backward()
right = torch.allclose(layer.linear.weight.grad, wanted, atol=1e-6)
print(f"no checkpoint: kernel still used {layer.kernel}, gradient {'right' if right else 'wrong'}")
ended = run("checkpoint")
whole = run("checkpoint, early_stop=False", early_stop=False)
silent = run("checkpoint, a fallback that keeps nothing", keeps_nothing)
assert layer.kernel and right
assert ended.startswith("AssertionError") and "kernel still used False, caught _StopRecomputationError" in ended
assert whole == "kernel still used True, gradient right"
assert silent == "kernel still used False, caught _StopRecomputationError, gradient right"
PYTHON
