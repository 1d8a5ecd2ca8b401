"""One decoder under test and what the contract's items measure it with."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from dehvf_kit.backbones.base import config_size, text_config
from dehvf_kit.backbones.ffn.memory_hooks import MemoryHandle, attach_memory
from dehvf_kit.backbones.ffn.sites import FfnSite, ffn_sites
from dehvf_kit.errors import DehvfError

BATCH, TOKENS, SLOTS, NEW_TOKENS, OUTPUT_SCALE = 2, 7, 3, 5, 0.5


class Broken(DehvfError):
    """The kit breaks an item of the contract."""


class FamilyLimit(DehvfError):
    """The untouched model fails the very same check; nothing can be said about the kit."""


class NotRun(DehvfError):
    """The check needs something that is not there."""


@dataclass
class Subject:
    """One decoder under test: `make` builds it afresh, with the same weights each time."""

    make: Callable[[], nn.Module]

    def build(self) -> nn.Module:
        """A fresh frozen copy in evaluation mode."""
        return self.make().eval().requires_grad_(False)

    @cached_property
    def model(self) -> nn.Module:
        """One frozen copy that items share; they leave it as they found it."""
        return self.build()

    @cached_property
    def sites(self) -> list[FfnSite]:
        return ffn_sites(self.model)

    @cached_property
    def input_ids(self) -> Tensor:
        vocab_size = config_size(text_config(self.model), "vocab_size") or 0
        generator = torch.Generator().manual_seed(3)
        return torch.randint(4, min(vocab_size, 90), (BATCH, TOKENS), generator=generator)

    @cached_property
    def needs_input_gradients(self) -> bool:
        """Whether gradients only flow where the embeddings require them too (Reformer's reversible layers)."""
        keys, values = self.memory()
        with self.attached(self.model, [key.requires_grad_() for key in keys], values):
            return not logits(self.model, self.input_ids).requires_grad

    def memory(self, only: int | None = None, scale: float = 0.3) -> tuple[list[Tensor], list[Tensor]]:
        """Random keys and values [BATCH, SLOTS, hidden_size] a site.

        Args: only, the one site whose are not zero; scale, their standard deviation.
        """
        generator = torch.Generator().manual_seed(5)
        draws = [
            scale * torch.randn(2, BATCH, SLOTS, site.hidden_size, generator=generator) * (only in (None, index))
            for index, site in enumerate(self.sites)
        ]
        return [keys for keys, _ in draws], [values for _, values in draws]

    @contextmanager
    def attached(self, model: nn.Module, keys: list[Tensor], values: list[Tensor]) -> Iterator[MemoryHandle]:
        """`model` with this memory inside the block. Args: as in `attach_memory`."""
        handle = attach_memory(model, keys, values, output_scale=OUTPUT_SCALE)
        try:
            yield handle
        finally:
            handle.detach()


def logits(model: nn.Module, input_ids: Tensor, **kwargs: Any) -> Tensor:
    """The logits of one pass, the random numbers some models draw even in evaluation fixed."""
    torch.manual_seed(0)
    return model(input_ids=input_ids, **kwargs).logits


def distance(a: Tensor, b: Tensor) -> float:
    """Largest difference, relative to the larger of the reference's largest value and 1."""
    return float((a.float() - b.float()).abs().max() / b.float().abs().max().clamp(min=1))


def require(condition: bool, message: str) -> None:
    if not condition:
        raise Broken(message)


def generated(model: nn.Module, input_ids: Tensor, **way: Any) -> tuple[Tensor, Tensor] | str:
    """Generated token ids and the logits of each step, or the message of the error that generation ended in."""
    torch.manual_seed(0)
    way = {"max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS, "pad_token_id": 0, **way}
    mask = torch.ones_like(input_ids)
    try:
        output = model.generate(input_ids, attention_mask=mask, return_dict_in_generate=True, output_logits=True, **way)
    except Exception as error:  # noqa: BLE001 - whatever a model's own generate raises is compared, not handled
        return f"{type(error).__name__}: {error}"
    return output.sequences, torch.stack(output.logits)


def attempt(compute: Callable[[], Any]) -> Any:
    """A result, or the message of the error it ended in (models refuse what they cannot do in many ways)."""
    try:
        return compute()
    except DehvfError:
        raise
    except Exception as error:  # noqa: BLE001 - compared with the untouched model's, not handled
        return f"{type(error).__name__}: {error}"


def close(a: Any, b: Any, tolerance: float = 1e-4) -> bool:
    if not isinstance(a, Tensor) or not isinstance(b, Tensor):
        return False
    return a.shape == b.shape and bool(torch.isfinite(a).all()) and distance(a, b) < tolerance


def without_noise(model: nn.Module) -> nn.Module:
    """A model whose dropout, layer drop and routing noise are switched off, so that training passes can be compared."""
    for module in model.modules():
        for name, value in vars(module).items():
            if isinstance(value, float) and any(word in name for word in ("drop", "jitter")) or name == "p":
                setattr(module, name, 0.0)
    return model


def no_cache(model: nn.Module) -> dict[str, Any]:
    return {"use_cache": False} if "use_cache" in inspect.signature(model.forward).parameters else {}
