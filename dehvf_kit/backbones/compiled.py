"""Hooks and torch.compile: compiled code does not notice a hook that is placed after its first run."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

import torch


def forget_compiled() -> None:
    """Have everything compiled so far compiled anew at its next run, with the hooks that are there then."""
    if "torch._dynamo" in sys.modules and not torch.compiler.is_compiling():
        torch.compiler.reset()


@contextlib.contextmanager
def run_eagerly() -> Iterator[None]:
    """Inside, compiled modules run as they were written, for hooks that stay for one pass."""
    if "torch._dynamo" not in sys.modules or torch.compiler.is_compiling():
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield
