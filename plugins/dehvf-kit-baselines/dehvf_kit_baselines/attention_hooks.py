"""Beside a decoder's attention, or before it: hooks on the attention of any family that calls transformers' interface."""

from __future__ import annotations

import copy
import inspect
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from dehvf_kit.api import BuildContext, ConfigMismatchError, DecoderError, DecoderSpec
from dehvf_kit.backbones.base import first_line
from dehvf_kit.backbones.map_hooks import role_of
from dehvf_kit.errors import listing
from dehvf_kit_baselines.decoder_outline import in_layer, modules_of
from dehvf_kit_baselines.peft_tuner import NAME

Delta = Callable[[Tensor, "float | None"], "Tensor | None"]


def needs_attention(decoder: DecoderSpec) -> None:
    """Raises: ConfigMismatchError for a decoder whose layers have no attention, or several."""
    if not decoder.num_heads:
        raise ConfigMismatchError(
            "works beside attention: in every layer one module that calls transformers' attention interface; this decoder "
            f"('{decoder.model_type}') has none; take LLaMA, Qwen, Gemma, GPT-2, GPT-NeoX, Phi, OPT or their like"
        )


def map_size(context: BuildContext, role: str) -> tuple[int, int]:
    """(in, out) of the maps of a role, one in each layer. Raises: ConfigMismatchError where there are none, or of several sizes."""
    maps = {path: linear for path, (_, linear, _) in modules_of(context.decoder).items() if linear is not None and in_layer(path)}
    found = [linear for path, linear in maps.items() if role_of(path) == role]
    if len(set(found)) != 1 or len(found) != context.decoder.num_layers:
        held = listing(dict.fromkeys(map(role_of, maps)))
        has = "none" if not found else f"{len(found)} in {context.decoder.num_layers} layers, of sizes {listing(set(found))}"
        raise ConfigMismatchError(f"needs one {role} map of one size in each layer, but there are {has}; its layers hold {held}")
    return found[0]


def attention_modules(modules: Mapping[str, Any]) -> list[str]:
    """Paths of the attention of a decoder's layers, one in each: the module that holds its query map, or its joint one.

    Raises: ConfigMismatchError where no layer has one, or one has several (cross-attention too).
    """
    maps = [path for path, (_, linear, _) in modules.items() if linear is not None and in_layer(path)]
    found = list(dict.fromkeys(path.rpartition(".")[0] for path in maps if role_of(path) in ("query", "qkv")))
    layers = [path.split(".")[: 1 + next(i for i, part in enumerate(path.split(".")) if part.isdigit())] for path in found]
    if not found or any(one == other for one, other in pairwise(layers)):
        held = listing(dict.fromkeys(role_of(path) for path in maps))
        raise ConfigMismatchError(f"needs one attention with a query map in each layer; this decoder's layers hold the maps {held}")
    return found


def before_attention(module: nn.Module, change: Callable[[Tensor], Tensor | None]) -> RemovableHandle:
    """Pass the hidden states [rows, token, hidden] on their way into an attention module through `change` (None: as is)."""

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        name = next((name for name in ("hidden_states", "hidden", "x") if name in kwargs), None) if not args else None
        changed = change(args[0] if name is None else kwargs[name])
        if changed is None:
            return None
        return ((changed, *args[1:]), kwargs) if name is None else (args, {**kwargs, name: changed})

    return module.register_forward_pre_hook(hook, with_kwargs=True)


class AttentionHook:
    """Adds `delta(queries, scaling)` to what an attention's heads read, before its output map.

    Queries come as the attention itself multiplies them with its keys, normed, rotated and scaled as its family does it, with the
    factor of the softmax (None: width ** -0.5). Shapes: queries [rows, head, token, width], delta [rows, head, token, value width].
    The module's config is replaced by one that reads the same but leads to this class's `attend`; `remove()` puts it back.
    """

    def __init__(self, module: nn.Module, delta: Delta) -> None:
        self.module, self.delta = module, delta
        self._call: tuple[tuple[Any, ...], dict[str, Any]] | None = None
        config = module.config if isinstance(module.config, _Config) else _Config(module.config)
        config.hooks.append(self)
        module.config = config
        self._handle = module.register_forward_pre_hook(self._note, with_kwargs=True)

    def remove(self) -> None:
        """Take the hook away; a second call does nothing."""
        self._handle.remove()
        config = self.module.config
        if isinstance(config, _Config) and self in config.hooks:
            config.hooks.remove(self)
            if not config.hooks:
                self.module.config = config.own

    def keys_values(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """The keys and values that the attention makes of other states in the same call, not rotated.

        Only within `delta`. Where a tuner of peft is in place of a map, the decoder's own map is asked.
        Shapes: states [batch, n, hidden] -> keys [batch, key head, n, width], values [batch, key head, n, value width].
        Raises: DecoderError for an attention that cannot be asked, as one that reads another layer's keys.
        """
        if self._call is None:
            raise DecoderError(
                f"{type(self.module).__name__}: attends more than once in a call; it cannot be asked for other states"
            )
        bound = inspect.signature(self.module.forward).bind(*self._call[0], **self._call[1])
        variable = [name for name, one in bound.signature.parameters.items() if one.kind is one.VAR_KEYWORD]
        call = {name: value for name, value in bound.arguments.items() if name not in variable}
        name, *_ = call
        given = {other: _still(other, value) for other, value in call.items()} | {name: states.to(call[name])}
        config = self.module.config
        config.asking = True
        try:
            with _untuned(self.module):
                self.module.forward(**given)
        except _Asked as found:
            keys, values = found.args
            if (keys.shape[0], keys.shape[2]) == states.shape[:2]:
                return keys, values
            reason = f"its keys have shape {list(keys.shape)} for states {list(states.shape)}"
        except (TypeError, KeyError, AttributeError, RuntimeError, IndexError) as error:
            reason = first_line(error)
        else:
            reason = "it returned without them"
        finally:
            config.asking = False
        raise DecoderError(f"{type(self.module).__name__}: cannot be asked for the keys and values of other states: {reason}")

    def _note(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._call = args, kwargs  # taken apart where it is asked for: not at every token


class _Config:
    """A module's own config, but for the attention implementation's name, which leads to `attend`."""

    def __init__(self, own: Any) -> None:
        self.own, self.hooks, self.asking = own, [], False

    def __getattr__(self, name: str) -> Any:
        if name == "own":  # while it is copied
            raise AttributeError(name)
        return getattr(self.own, name)

    @property
    def _attn_implementation(self) -> str:
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

        name = _Name(self.own._attn_implementation)
        if name not in ALL_ATTENTION_FUNCTIONS:
            ALL_ATTENTION_FUNCTIONS.register(name, attend)
        return name


class _Name(str):
    """An implementation's name that modules compare as the plain one ("eager", "sdpa"), and under which `attend` is registered."""

    def __hash__(self) -> int:
        return hash((_Name, str(self)))


class _Asked(Exception):
    """Keys and values of an attention that was run for them alone."""


def attend(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: Any, **settings: Any) -> tuple[Any, ...]:
    """The attention as the model's own implementation computes it, and what the module's hooks add."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    config = module.config
    if config.asking:
        raise _Asked(key, value)
    eager = inspect.unwrap(type(module).forward).__globals__["eager_attention_forward"]
    plain = ALL_ATTENTION_FUNCTIONS.get_interface(str(config.own._attn_implementation), eager)
    output, *rest = plain(module, query, key, value, *args, **settings)
    for hook in config.hooks:
        added, hook._call = hook.delta(query, settings.get("scaling")), None
        if added is not None:
            output = output + added.transpose(1, 2).reshape(output.shape).to(output.dtype)
    return output, *rest


def _still(name: str, value: Any) -> Any:
    """An argument of an attention as other states need it: no mask, no cache, position 0, at which nothing is rotated."""
    if isinstance(value, dict):
        return {}
    if "position" in name and isinstance(value, tuple):
        cos, sin = (part[..., :1, :1, :] for part in value)
        return torch.ones_like(cos), torch.zeros_like(sin)
    if "position" in name and isinstance(value, Tensor):
        first = value[..., :1, :1, :] if value.is_floating_point() or value.is_complex() else value[..., :1, :1]
        return torch.ones_like(first) if first.is_complex() else torch.zeros_like(first)
    if isinstance(value, Tensor) or "past" in name or "cache" in name:
        return None
    return value


@contextmanager
def _untuned(module: nn.Module) -> Iterator[None]:
    """Inside, the decoder's own key and value maps stand where a `peft` node put its layers, and where others placed hooks."""
    children = [(parent, *child) for parent in module.modules() for child in parent.named_children()]
    tuned = [(parent, name, layer) for parent, name, layer in children if NAME in getattr(layer, "active_adapters", ())]
    for parent, name, layer in tuned:
        parent._modules[name] = layer.base_layer
    for parent, name, layer in children:
        if role_of(name) in ("key", "value", "qkv") and (layer._forward_hooks or layer._forward_pre_hooks):
            twin = copy.copy(parent._modules[name])
            twin._forward_hooks, twin._forward_pre_hooks = OrderedDict(), OrderedDict()
            tuned.append((parent, name, layer))
            parent._modules[name] = twin
    try:
        yield
    finally:
        for parent, name, layer in tuned:
            parent._modules[name] = layer
