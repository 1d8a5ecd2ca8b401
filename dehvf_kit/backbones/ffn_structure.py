"""Tells a feed-forward network (FFN) from the other parts of a layer, by what its code and weights look like.

Nothing here runs the model or reads a weight's values: signatures, forward sources and weight shapes are enough, so
a 7B model on the meta device is read in milliseconds. Results about a class are cached per class.
"""

from __future__ import annotations

import ast
import functools
import inspect
import textwrap
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from transformers.activations import ACT2CLS, ACT2FN

# What only a module that lets tokens see one another takes as an argument, calls, or contains.
MIXING_ARGUMENTS = ("attention_mask", "past_key_value", "past_key_values", "cache_params", "position_embeddings")
MIXING_CALLS = ("scaled_dot_product_attention", "softmax", "cumsum", "conv1d", "attention_interface")
MIXING_MODULES = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.RNNBase, nn.MultiheadAttention)
FUNCTIONAL_ACTIVATIONS = ("silu", "gelu", "relu", "swish", "sigmoid", "tanh")


@functools.lru_cache(maxsize=None)
def forward_tree(cls: type) -> ast.AST:
    """The syntax tree of a class's own forward, empty where no source is to be had (C extensions, exec)."""
    try:
        source = textwrap.dedent(inspect.getsource(inspect.unwrap(cls.forward)))
        return ast.parse(source)
    except (OSError, TypeError, SyntaxError):
        return ast.Module(body=[], type_ignores=[])


@functools.lru_cache(maxsize=None)
def called_names(cls: type) -> frozenset[str]:
    """The last name of everything a class's forward calls: `nn.functional.silu(x)` gives `silu`."""
    names = set()
    for node in ast.walk(forward_tree(cls)):
        if isinstance(node, ast.Call):
            target = node.func
            names.add(target.attr if isinstance(target, ast.Attribute) else getattr(target, "id", ""))
    return frozenset(names)


@functools.lru_cache(maxsize=None)
def forward_arguments(cls: type) -> tuple[str, ...]:
    """The names of a class's forward arguments, `self` left out."""
    try:
        return tuple(inspect.signature(inspect.unwrap(cls.forward)).parameters)[1:]
    except (TypeError, ValueError):
        return ()


@functools.lru_cache(maxsize=None)
def mixes_tokens(cls: type) -> bool:
    """Whether a class itself (its children apart) lets one token's output depend on another token."""
    if issubclass(cls, MIXING_MODULES):
        return True
    if any(name in MIXING_ARGUMENTS for name in forward_arguments(cls)):
        return True
    calls = called_names(cls)
    # A router calls softmax too; only attention multiplies two activations as well.
    attends = "softmax" in calls and calls & {"matmul", "bmm", "einsum", "baddbmm"}
    return bool(attends or calls & (set(MIXING_CALLS) - {"softmax"}))


def linear_shape(module: nn.Module) -> tuple[int, int] | None:
    """(in, out) widths of a linear layer of whatever make (plain, Conv1D, 8 or 4 bit), or None if it is none."""
    name = type(module).__name__
    if hasattr(module, "in_features") and hasattr(module, "out_features"):
        return int(module.in_features), int(module.out_features)
    if name == "Conv1D" and hasattr(module, "nf"):
        return int(module.nx), int(module.nf)
    return None


def weight_shapes(module: nn.Module) -> Iterator[tuple[int, int]]:
    """(in, out) of every matrix in a module: its linear layers, and stacked expert weights in both readings."""
    for part in module.modules():
        shape = linear_shape(part)
        if shape is not None:
            yield shape
            continue
        for weight in part.parameters(recurse=False):
            if weight.ndim >= 2:
                yield tuple(weight.shape[-2:])
                yield tuple(weight.shape[:-3:-1])


def activation_modules(module: nn.Module) -> Iterator[nn.Module]:
    """The activation modules below (or at) a module, in definition order; norms, dropout and identities are none."""
    for part in module.modules():
        if is_activation(part):
            yield part


def is_activation(module: nn.Module) -> bool:
    """Whether a module is an elementwise non-linearity: one of torch's or of transformers' activation classes."""
    cls = type(module)
    if cls.__module__ == "torch.nn.modules.activation":
        return not isinstance(module, (nn.MultiheadAttention, nn.Softmax, nn.LogSoftmax, nn.Softmin))
    return cls in _activation_classes()


@functools.lru_cache(maxsize=None)
def _activation_classes() -> frozenset[type]:
    return frozenset(entry[0] if isinstance(entry, tuple) else entry for entry in ACT2CLS.values())


def is_norm(module: nn.Module) -> bool:
    """Whether a module normalises: named so by its class, with weights of one dimension at most."""
    return "norm" in type(module).__name__.lower() and all(p.ndim <= 1 for p in module.parameters())


def find_activation(module: nn.Module, layer: nn.Module) -> tuple[Callable[[Tensor], Tensor], str] | None:
    """The activation an FFN applies and its name: a module of its own, one its code calls, or one of the layer's."""
    for part in activation_modules(module):
        return part, activation_name(part)
    for part in module.modules():
        for name, value in vars(part).items():
            if "act" in name and callable(value) and not isinstance(value, nn.Module):
                return value, getattr(value, "__name__", type(value).__name__)
    for part in module.modules():
        for name in FUNCTIONAL_ACTIVATIONS:
            if name in called_names(type(part)):
                return getattr(torch.nn.functional, name, ACT2FN[name] if name in ACT2FN else torch.sigmoid), name
    if module is not layer:
        for part in layer.children():
            if is_activation(part):
                return part, activation_name(part)
    return None


def activation_name(activation: nn.Module) -> str:
    """transformers' name of an activation module (`gelu_new`), or its class name in lower case."""
    for name, entry in ACT2CLS.items():
        cls, settings = entry if isinstance(entry, tuple) else (entry, {})
        if type(activation) is cls and repr(activation) == repr(cls(**settings)):
            return name
    return type(activation).__name__.lower()


def is_ffn(module: nn.Module, hidden_size: int) -> bool:
    """Whether a module is a feed-forward network on its own: hidden -> wider -> hidden, an activation, no mixing."""
    if linear_shape(module) is not None or is_norm(module):
        return False
    if any(mixes_tokens(type(part)) for part in module.modules()):
        return False
    shapes = list(weight_shapes(module))
    reads = any(width_in == hidden_size for width_in, _ in shapes)
    writes = any(width_out == hidden_size for _, width_out in shapes)
    return len(shapes) > 1 and reads and writes and find_activation(module, module) is not None
