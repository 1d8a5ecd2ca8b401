"""Adds to the residual stream of a frozen decoder before or after its layers: the twin of `ffn_sites` and `hook_ffns`.

Source: the place of Flamingo's gated cross-attention (arXiv:2204.14198) and of DeepStack's tokens (arXiv:2406.04334).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from dehvf_kit.backbones.base import text_config
from dehvf_kit.backbones.ffn.memory_hooks import Delta, FfnHooks, add_first, ask, first_tensor, place_hooks
from dehvf_kit.backbones.ffn.sites import ffn_sites
from dehvf_kit.backbones.ffn.structure import forward_arguments
from dehvf_kit.errors import DecoderError

STREAMS, PROMPT = "its layers pass on several streams", "its states begin with a prompt of its own"
NO_STREAM: dict[str, str] = {
    "blt": "its states are of patches of bytes, not of tokens",
    "cpmant": PROMPT,
    "deepseek_v4": STREAMS,
    "gemma3n_text": STREAMS,
    "hy_v4": STREAMS,
    "prophetnet": "its states hold the predicted tokens' streams beside the text",
    "qwen4_exp_text": STREAMS,
    "reformer": "its layers are reversible and pass on two streams",
}
"""model_type -> why there is no one residual stream of the text's tokens between its layers."""


@dataclass(frozen=True)
class LayerSite:
    """One decoder layer: its number (0 first), its path in the model, the width of the states that enter and leave it."""

    layer_idx: int
    path: str
    hidden_size: int
    tokens_first: bool = field(default=False, repr=False)

    @property
    def layer_path(self) -> str:
        """The layer's path, as sites of FFNs name it; also the module whose input and output are hooked."""
        return self.path

    entry = exit = layer_path


def layer_sites(decoder: nn.Module) -> list[LayerSite]:
    """Every layer of a decoder that holds an FFN, in the order they run; a layer that runs several times is one site.

    Raises: DecoderError where no layer has an FFN, and for families whose states between the layers are not one stream
        of the text's tokens, with the reason. Cost: milliseconds; nothing is run.
    """
    refuse(decoder, NO_STREAM, "between its layers")
    sites = {site.layer_path: site for site in ffn_sites(decoder)}
    return [LayerSite(site.layer_idx, path, site.hidden_size, site.tokens_first) for path, site in sites.items()]


def refuse(decoder: nn.Module, reasons: Mapping[str, str], place: str) -> None:
    """Raises: DecoderError where `reasons` names the decoder's model type."""
    reason = reasons.get(getattr(text_config(decoder), "model_type", ""))
    if reason is not None:
        raise DecoderError(
            f"{type(decoder).__name__}: nothing can be added {place}: {reason}. "
            "Add to its feed-forward networks instead (ffn_sites, hook_ffns)."
        )


def hook_layers(decoder: nn.Module, sites: Sequence[LayerSite], where: Literal["before", "after"], delta: Delta) -> FfnHooks:
    """Add `delta(index_into_sites, x)` to the hidden states x that enter ("before") or leave ("after") each layer.

    Shapes: x is [rows, tokens, hidden_size]; the tensor returned has x's shape, and None leaves the model's own object as it
    is. "before" of the first layer sees the embeddings, "after" of the last what the final norm reads.

    Args:
        decoder: the model; its weights stay as they are.
        sites: `layer_sites(decoder)` or some of them.
        where: "before" or "after".
        delta: asked at each site, each time the layer runs.

    Returns:
        The hooks: `remove()`, or the end of a `with` block, gives the untouched decoder back.

    Raises:
        DecoderError: for another `where`, or a site that is not in the model.
        ShapeError: in the forward pass, for a delta of another shape.
    """
    if where not in ("before", "after"):
        raise DecoderError(f"hook_layers: where is {where!r}; give 'before' or 'after'")

    def hook(index: int, site: LayerSite) -> list[RemovableHandle]:
        layer = decoder.get_submodule(site.path)
        kind: Any = type(layer)
        names = forward_arguments(kind)
        place = f"hook_layers {where} {site.path}"

        def added(x: Tensor) -> Tensor | None:
            return ask(delta, index, x, site.hidden_size, place, (), site.tokens_first)

        def change_input(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            states = first_tensor(args, kwargs, names)
            more = added(states)
            if more is None:
                return None
            if args:
                return add_first(args, more), kwargs
            name = next(name for name, value in kwargs.items() if value is states)
            return args, {**kwargs, name: add_first(states, more)}

        def change_output(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
            states = output if isinstance(output, torch.Tensor) else output[0]
            return add_first(output, added(states))

        if where == "before":
            return [layer.register_forward_pre_hook(change_input, with_kwargs=True)]
        return [layer.register_forward_hook(change_output)]

    return place_hooks(decoder, sites, hook)
