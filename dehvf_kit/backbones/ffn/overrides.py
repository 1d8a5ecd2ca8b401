"""Where the feed-forward networks are when auto-detection fails: one entry per `model_type`.

A plugin adds an entry for a decoder of its own with `register_ffn_override`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from dehvf_kit.errors import DecoderError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class FfnOverride:
    """Where the FFNs of one `model_type` are, when auto-detection fails.

    `layers`: the layer lists meant, the end of their paths being enough (`"global_transformer.layers"`).
    `entry`, `exit`: paths below a layer of the modules whose input is x and whose output is FFN(x).
    `activation`: the FFN's activation, by transformers' name or as a callable.
    `activation_of`: the same, made from the configuration.
    `tokens_first`: the model keeps its states as [tokens, rows, hidden].
    """

    layers: tuple[str, ...] | None = None
    entry: str | None = None
    exit: str | None = None
    activation: str | Callable[[Tensor], Tensor] | None = None
    activation_of: Callable[[Any], Callable[[Tensor], Tensor]] | None = None
    tokens_first: bool = False
    reason: str = ""


def _capped_silu(config: Any) -> Callable[[Tensor], Tensor]:
    from dehvf_kit.backbones.ffn.structure import ScaledSilu

    return ScaledSilu(limit=config.mlp_gate_softcap)


FFN_OVERRIDES: dict[str, FfnOverride] = {
    "blt": FfnOverride(
        layers=("model.global_transformer.layers",),
        reason="four stacks of two widths; the latent transformer between the byte encoder and decoder is the decoder",
    ),
    "doge": FfnOverride(entry="mlp", exit="mlp", reason="its mixture reads experts by keys, which looks like attention"),
    "fsmt": FfnOverride(tokens_first=True, reason="states are [tokens, rows, hidden]"),
    "inkling2_text": FfnOverride(activation_of=_capped_silu, reason="its activation is a module of two arguments, gate and up"),
    "nllb-moe": FfnOverride(
        entry="ffn", exit="ffn", reason="its router counts tokens for the experts' capacity, which looks like mixing"
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
    """Describe one `config.model_type` where auto-detection fails; see `FfnOverride` for the fields.

    Raises: DecoderError if the type has another description already, or only one of `entry` and `exit` is given.
    """
    if (entry is None) != (exit is None):
        raise DecoderError(f"register_ffn_override: {model_type}: entry and exit go together; give both or neither")
    stacks = (layers,) if isinstance(layers, str) else layers
    override = FfnOverride(stacks, entry=entry, exit=exit, activation=activation, tokens_first=tokens_first, reason=reason)
    known = FFN_OVERRIDES.setdefault(model_type, override)
    if replace(known, reason="") != replace(override, reason=""):
        raise DecoderError(
            f"register_ffn_override: {model_type} is described already ({known}); "
            "remove one of the two plugins, or give your model a model_type of its own"
        )
