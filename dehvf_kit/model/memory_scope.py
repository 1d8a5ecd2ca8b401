"""What the decoder reads while it runs: a batch's memory, held again where gradient checkpointing runs a layer twice."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

from torch import nn

from dehvf_kit.errors import DehvfError


class Holding(contextlib.AbstractContextManager[None]):
    """Inside, the decoder reads a batch's memory. It may be entered again, as each backward over a kept graph does."""

    def __init__(self, nodes: nn.ModuleDict, memory: Mapping[str, Any]) -> None:
        self.nodes, self.memory = nodes, memory
        self.open: list[contextlib.ExitStack] = []

    def __enter__(self) -> None:
        self.open.append(contextlib.ExitStack())
        for name, state in self.memory.items():
            self.open[-1].enter_context(self.nodes[name].holding(state))

    def __exit__(self, *error: object) -> None:
        self.open.pop().close()


class RecomputedLayers:
    """The part of a model that switches gradient checkpointing of its decoder, in transformers' words."""

    decoder: nn.Module
    nodes: nn.ModuleDict
    training: bool
    _checkpointing: bool

    def _checkpoint_contexts(self) -> tuple[Any, Any]:
        """For gradient checkpointing: the second run of a layer, in backward, sees the memory of the first."""
        held = {name: node.memory for name, node in self.nodes.items() if hasattr(node, "holding")}
        return contextlib.nullcontext(), Holding(self.nodes, held)

    def activation_checkpointing_enable(
        self, activation_checkpointing_kwargs: dict[str, Any] | None = None, **_: Any
    ) -> None:
        """Recompute the decoder's layers in backward. Raises: DehvfError for the reentrant form, which loses gradients."""
        settings = dict(activation_checkpointing_kwargs or {})
        if settings.get("use_reentrant"):
            raise DehvfError(
                "reentrant gradient checkpointing cannot reach the memory, so the adapter would get no gradient; "
                "use gradient_checkpointing_kwargs={'use_reentrant': False}"
            )
        settings |= {"use_reentrant": False, "context_fn": self._checkpoint_contexts}
        self.decoder.activation_checkpointing_enable(activation_checkpointing_kwargs=settings)
        self._checkpointing = True
        self.train(self.training)

    def activation_checkpointing_disable(self) -> None:
        """Keep the decoder's activations for backward again."""
        self.decoder.activation_checkpointing_disable()
        self._checkpointing = False
        self.train(self.training)

    def gradient_checkpointing_enable(
        self, gradient_checkpointing_kwargs: dict[str, Any] | None = None, **_: Any
    ) -> None:
        """The older name of `activation_checkpointing_enable`."""
        self.activation_checkpointing_enable(gradient_checkpointing_kwargs)

    def gradient_checkpointing_disable(self) -> None:
        """The older name of `activation_checkpointing_disable`."""
        self.activation_checkpointing_disable()

    @property
    def is_gradient_checkpointing(self) -> bool:
        return any(getattr(module, "gradient_checkpointing", False) for module in self.decoder.modules())

    def enable_input_require_grads(self) -> None:
        """Nothing to do: gradients reach the adapter through the memory, not through the input embeddings."""
