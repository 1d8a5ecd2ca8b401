"""What structure cannot tell about a family's feed-forward networks, said in a few lines of data.

A plugin adds a line for a decoder of its own with `register_ffn_override`; everything else is found by structure.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import Tensor

from dehvf_kit.errors import DecoderError


@dataclass(frozen=True)
class FfnOverride:
    """Where the FFNs of one `model_type` are, as far as structure does not say.

    `layers`: the layer lists meant, the end of their paths being enough (`"global_transformer.layers"`).
    `entry`, `exit`: paths below a layer of the modules whose input is x and whose output is FFN(x).
    `activation`: the FFN's activation, by transformers' name or as a callable.
    `tokens_first`: the model keeps its states as [tokens, rows, hidden].
    """

    layers: tuple[str, ...] | None = None
    entry: str | None = None
    exit: str | None = None
    activation: str | Callable[[Tensor], Tensor] | None = None
    tokens_first: bool = False
    reason: str = ""


_OVERRIDES: dict[str, FfnOverride] = {
    "blt": FfnOverride(
        layers=("model.global_transformer.layers",),
        reason="four stacks of two widths; the latent transformer between the byte encoder and decoder is the decoder",
    ),
    "xlnet": FfnOverride(tokens_first=True, reason="states are [tokens, rows, hidden]"),
}


def register_ffn_override(
    model_type: str,
    *,
    layers: str | tuple[str, ...] | None = None,
    entry: str | None = None,
    exit: str | None = None,  # noqa: A002
    activation: str | Callable[[Tensor], Tensor] | None = None,
    tokens_first: bool = False,
    reason: str = "",
) -> None:
    """Say for one `config.model_type` what structure cannot tell; see `FfnOverride` for the fields.

    Raises: DecoderError if the type has another description already, or only one of `entry` and `exit` is given.
    """
    if (entry is None) != (exit is None):
        raise DecoderError(f"register_ffn_override: {model_type}: entry and exit go together; give both or neither")
    stacks = (layers,) if isinstance(layers, str) else layers
    override = FfnOverride(stacks, entry, exit, activation, tokens_first, reason)
    known = _OVERRIDES.setdefault(model_type, override)
    if replace(known, reason="") != replace(override, reason=""):
        raise DecoderError(
            f"register_ffn_override: {model_type} is described already ({known}); "
            "remove one of the two plugins, or give your model a model_type of its own"
        )


def ffn_override(model_type: str | None) -> FfnOverride | None:
    """The description registered for a `model_type`, or None."""
    return _OVERRIDES.get(model_type or "")


def overridden_types() -> dict[str, str]:
    """The model types described by hand and why."""
    return {model_type: override.reason for model_type, override in _OVERRIDES.items()}
