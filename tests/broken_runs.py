"""Training runs in which some steps are not finite."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch import Tensor

import dehvf_kit
from dehvf_kit.model.builder import build
from dehvf_kit.training.run import TrainResult, train


class Broken:
    """A model whose layer query gives what is not a number in some steps, forward or backward."""

    def __init__(self, world: Path, bad: set[int], spoil: Callable[[Tensor], Tensor | None], *settings: str) -> None:
        self.recipe = dehvf_kit.load_recipe(world / "tiny.yaml", settings)
        self.model = build(self.recipe)
        self.bad, self.step = bad, 1
        self.weights: dict[int, dict[str, Tensor]] = {}
        self.model.nodes["layer_query"].register_forward_hook(
            lambda module, given, output: spoil(output) if self.step in bad else None
        )

    def progress(self, stage: str, done: int, total: int, note: str = "") -> None:
        if stage == "training":
            self.step = done + 1
            self.weights[done] = {name: p.detach().clone() for name, p in self.model.named_trainable_parameters().items()}

    def train(self, folder: Path) -> TrainResult:
        return train(self.recipe, folder, self.model, progress=self.progress)


def nan_forward(output: Tensor) -> Tensor:
    return output * float("nan")


def inf_backward(output: Tensor) -> Tensor:
    if output.requires_grad:
        output.register_hook(lambda gradient: gradient * float("inf"))
    return output
