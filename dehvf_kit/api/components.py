"""Parents of the modules that attach to a tower: they place hooks, take them off again, and hold what a batch brings."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, Protocol

from torch import nn

from dehvf_kit.errors import DecoderError

CONTRACT = {"decoder": ("attach", "detach", "holding", "memory"), "vision": ("attach", "detach"), "input": ("attach",)}
"""What a module has, by its config's `attaches`."""


class Removable(Protocol):
    """What torch's `register_forward_hook` and the kit's `hook_ffns` return."""

    def remove(self) -> None: ...


class VisionComponent(nn.Module):
    """Parent of a module whose config says `attaches = "vision"`. A subclass writes `hook`; all else is done here."""

    def __init__(self) -> None:
        super().__init__()
        self._placed: list[Removable] = []
        self._attached = False

    def hook(self, tower: nn.Module) -> Iterable[Removable]:
        """Place the hooks and return (or yield) each, so that `detach` can remove it."""
        raise NotImplementedError(f"{type(self).__name__}.hook")

    def attach(self, tower: nn.Module) -> None:
        """Place the hooks. Raises: DecoderError if it is attached already; hooks placed before an error are taken off."""
        if self._attached:
            raise DecoderError("this component is attached already; detach() it first")
        try:
            placed: Any = self.hook(tower)
            if not isinstance(placed, Iterable):
                raise DecoderError(
                    f"{type(self).__name__}.hook returned {type(placed).__name__}; it must yield, or list, its handles"
                )
            for handle in placed:
                self._placed.append(handle)
        except BaseException:
            self.detach()
            raise
        self._attached = True

    def detach(self) -> None:
        """Take the hooks away: the model is bit-identical to before. A second call does nothing."""
        while self._placed:
            self._placed.pop().remove()
        self._attached = False

    def forward(self) -> Any:
        """Nothing to prepare, unless a subclass takes ports."""


class DecoderComponent(VisionComponent):
    """Parent of a module whose config says `attaches = "decoder"`.

    What its `forward` returns for a batch is `self.memory` while the decoder reads that batch (in training, in generation, and
    again when gradient checkpointing repeats a layer), and None outside; hooks read it there and add nothing where it is None.
    `self.places` says where an image's tokens stand in the input, if a component put them there: [row, token], a token's number in
    its image, -1 for text; None in passes without any, as all but the first of cached generation are.
    replaces_modules: True for one that puts modules in the place of the decoder's; it is attached before others place hooks there.
    """

    replaces_modules: ClassVar[bool] = False

    def __init__(self) -> None:
        super().__init__()
        self.memory: Any = None
        self.places: Any = None

    def detach(self) -> None:
        """Take the hooks and the memory away: the decoder is bit-identical to before."""
        super().detach()
        self.memory = None

    @contextmanager
    def holding(self, memory: Any) -> Iterator[None]:
        """Inside, the hooks see this memory."""
        before, self.memory = self.memory, memory
        try:
            yield
        finally:
            self.memory = before
