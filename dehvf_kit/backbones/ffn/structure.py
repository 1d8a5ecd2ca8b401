"""Tells a feed-forward network (FFN) from the other parts of a layer, by its source code and the shapes of its weights.

Nothing here runs the model or reads a weight's values: syntax trees, signatures and weight shapes are enough, so a 7B model
on the meta device is read in milliseconds. Results about a class are cached per class.

Attention and the router of a mixture of experts both apply softmax and multiply matrices. Attention takes a softmax of a product of
two activations (queries and keys), a router one of activations times weights: what a method's values are made of is followed
through its source code, assignment by assignment.
"""

from __future__ import annotations

import ast
import functools
import inspect
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

PRODUCTS = frozenset({"matmul", "bmm", "einsum", "baddbmm", "mm", "addmm", "tensordot"})
COUNTS = frozenset({"one_hot", "argmax", "argsort", "bincount", "histc"})
"""What yields places and counts, of which a router takes sums over tokens (its experts' capacity)."""
# What a value is made of: activations; their product with one another; their product with weights; a softmax; several experts.
DATA, SCORES, PROJECTED, SHARES, SEVERAL = "data", "scores", "projected", "shares", "several"
PASSES = 3
"""Times that a method is read, so that a loop's values reach its beginning."""

# What only a module that lets tokens see one another takes as an argument, calls, or contains.
MIXING_ARGUMENTS = ("attention_mask", "past_key_value", "past_key_values", "cache_params", "position_embeddings")
MIXING_CALLS = ("attention", "conv1d", "scan", "delta_rule")
MIXING_MODULES = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.RNNBase, nn.MultiheadAttention)
FUNCTIONAL_ACTIVATIONS = ("silu", "gelu", "relu", "swish", "sigmoid", "tanh")
NAMED_ACTIVATIONS = ("gelu", "silu", "swish", "relu", "mish", "activation")

Activation = Callable[[Tensor], Tensor]


def activations() -> Mapping[str, Activation]:
    """transformers' activations by name; imported here, since that takes seconds."""
    from transformers.activations import ACT2FN

    return ACT2FN


def _activation_entries() -> Mapping[str, Any]:
    from transformers.activations import ACT2CLS

    return ACT2CLS


@functools.cache
def mixes_tokens(cls: type) -> bool:
    """Whether a class itself (its children apart) lets one token's output depend on another token."""
    if issubclass(cls, MIXING_MODULES):
        return True
    if any(name in MIXING_ARGUMENTS for name in forward_arguments(cls)):
        return True
    if {"q", "k", "v"} <= called_keywords(cls) or {"query", "key", "value"} <= called_keywords(cls):
        return True
    return any(mixer in name for name in called_names(cls) for mixer in MIXING_CALLS) or attends(cls, class_tree(cls))


def linear_shape(module: nn.Module) -> tuple[int, int] | None:
    """(in, out) widths of a linear layer of whatever make (plain, Conv1D, 8 or 4 bit), or None if it is none."""
    name, wrapped = type(module).__name__, getattr(module, "base_layer", None)
    if isinstance(wrapped, nn.Module) and linear_shape(wrapped) is None:  # peft's wrapper of a mixture's stacked weights
        return None
    if getattr(module, "in_features", None) and getattr(module, "out_features", None):  # a norm tuned by peft has them, None
        return int(module.in_features), int(module.out_features)
    if name == "Conv1D" and hasattr(module, "nf"):
        return int(module.nx), int(module.nf)
    return None


def parts(module: nn.Module) -> Iterator[nn.Module]:
    """A module and all below it, without what is inside a linear layer: peft wraps the plain one and puts its own beside it."""
    yield module
    if linear_shape(module) is None:
        for child in module.children():
            yield from parts(child)


def matrices(module: nn.Module, recurse: bool = True) -> list[tuple[set[int], set[int]]]:
    """(widths it can read, widths it can write) of every matrix a module holds.

    A linear layer says which is which; a stacked expert weight [experts, a, b] may be read either way round.
    """
    found: list[tuple[set[int], set[int]]] = []
    for part in parts(module) if recurse else (module, *module.children()):
        shape = linear_shape(part)
        if shape is not None:
            found.append(({shape[0]}, {shape[1]}))
        elif recurse or part is module:
            widths = [set(weight.shape[-2:]) for weight in part.parameters(recurse=False) if weight.ndim >= 2]
            found += [(pair, pair) for pair in widths]
    return found


def reads_and_writes(module: nn.Module, hidden_size: int, recurse: bool = True) -> bool:
    """Whether one matrix of a module reads the hidden size and another writes it."""
    held = matrices(module, recurse)
    readers = {index for index, (reads, _) in enumerate(held) if hidden_size in reads}
    writers = {index for index, (_, writes) in enumerate(held) if hidden_size in writes}
    return bool(readers) and bool(writers) and len(readers | writers) > 1


def is_activation(module: nn.Module) -> bool:
    """Whether a module is an elementwise non-linearity: of torch, of transformers, or weightless and named like one."""
    cls = type(module)
    if cls.__module__ == "torch.nn.modules.activation":
        return not isinstance(module, (nn.MultiheadAttention, nn.Softmax, nn.LogSoftmax, nn.Softmin))
    if cls in _activation_classes():
        return True
    bare = not any(True for _ in module.parameters()) and not any(True for _ in module.children())
    return bare and any(name in cls.__name__.lower() for name in NAMED_ACTIVATIONS)


@functools.cache
def _activation_classes() -> frozenset[type]:
    return frozenset(entry[0] if isinstance(entry, tuple) else entry for entry in _activation_entries().values())


def is_norm(module: nn.Module) -> bool:
    """Whether a module normalises, going by its class's name (LayerNorm, LlamaRMSNorm, a gated norm)."""
    return "norm" in type(module).__name__.lower()


def norm_width(module: nn.Module) -> int | None:
    """The width a norm works on, or None for a norm that does not say, and for what is no norm."""
    if not is_norm(module):
        return None
    shape = getattr(module, "normalized_shape", None)
    widths = [weight.shape[0] for weight in module.parameters(recurse=False) if weight.ndim == 1]
    widths += [shape[-1]] if isinstance(shape, (tuple, list, torch.Size)) else []
    return int(widths[0]) if widths else None


def find_activation(ffn: nn.Module, layer: nn.Module, hidden_size: int) -> tuple[Activation, str] | None:
    """The activation an FFN applies and its name, or None.

    Looked at first are a mixture's experts (their router has an activation too), then the part that holds the FFN's two matrices:
    its activation modules and functions, then the activations its code calls; then the layer around it.
    """
    cores = [part for part in parts(ffn) if reads_and_writes(part, hidden_size, recurse=False)]
    inside = [part for core in cores for part in parts(core)]
    for part in [*_experts(ffn), *cores, *inside, ffn, layer, *parts(ffn)]:
        found = _own_activation(part)
        if found is not None:
            return found
    return None


def _experts(ffn: nn.Module) -> Iterator[nn.Module]:
    """What holds a mixture's stacked weights [experts, a, b], or the parts of the first of its experts."""
    for part in parts(ffn):
        if any(weight.ndim > 2 for weight in part.parameters(recurse=False)):
            yield part
        elif isinstance(part, nn.ModuleList) and len(part) > 1 and len({type(expert) for expert in part}) == 1:
            yield from parts(part[0])


def _own_activation(part: nn.Module) -> tuple[Activation, str] | None:
    for child in (part, *part.children()):
        if is_activation(child) and len(forward_arguments(type(child))) == 1:
            return child, activation_name(child)
    for name, value in vars(part).items():
        if "act" in name and callable(value) and _is_elementwise(value):
            return value, activation_name(value)
    calls = called_names(type(part))
    for name in FUNCTIONAL_ACTIVATIONS:
        if name in calls:
            scaled = _scaled_sigmoid(part) if name == "sigmoid" else None
            if scaled is not None:
                return scaled, activation_name(scaled)
            name = _composed(name, calls)
            return activations()[name], name
    return None


@dataclass(frozen=True)
class ScaledSilu:
    """x * sigmoid(alpha x), as in GPT-OSS and MiniMax-M3; with a limit, as in Inkling2, limit * tanh(x / limit) for its first x.

    Families that clamp their gates (GPT-OSS at 7) do so before their activation; what memory reads is not clamped.
    """

    alpha: float = 1.0
    limit: float | None = None

    def __call__(self, x: Tensor) -> Tensor:
        linear = x if self.limit is None else self.limit * torch.tanh(x / self.limit)
        return linear * torch.sigmoid(x if self.alpha == 1 else self.alpha * x)

    @property
    def __name__(self) -> str:
        bound = "x" if self.limit is None else f"{self.limit:g} tanh(x / {self.limit:g})"
        return f"{bound} * sigmoid({'' if self.alpha == 1 else f'{self.alpha:g} '}x)"


def _scaled_sigmoid(part: nn.Module) -> ScaledSilu | None:
    """x * sigmoid(x * self.alpha) as a module's code spells it out."""
    for node in ast.walk(class_tree(type(part))):
        if isinstance(node, ast.Call) and _name(node.func) == "sigmoid" and len(node.args) == 1:
            product = node.args[0]
            if isinstance(product, ast.BinOp) and isinstance(product.op, ast.Mult):
                for factor in (product.left, product.right):
                    scale = getattr(part, factor.attr, None) if isinstance(factor, ast.Attribute) else None
                    scale = factor.value if isinstance(factor, ast.Constant) else scale
                    if isinstance(scale, int | float):
                        return ScaledSilu(float(scale))
    return None


def _is_elementwise(function: Activation) -> bool:
    """Whether a function maps a tensor to one of its shape."""
    grid = torch.linspace(-1, 1, 3, device="cpu")
    try:
        return function(grid).shape == grid.shape
    except (TypeError, ValueError, RuntimeError, AttributeError):
        return False


def _composed(name: str, calls: frozenset[str]) -> str:
    """Two activations that code spells out: relu then square, and x * sigmoid(x)."""
    if name == "relu" and calls & {"square", "pow"}:
        return "relu2"
    return "silu" if name == "sigmoid" else name


def activation_name(activation: Activation) -> str:
    """transformers' name of an activation (`gelu_new`), found by its class or by what it computes; else its own."""
    for name, entry in _activation_entries().items():
        cls, settings = entry if isinstance(entry, tuple) else (entry, {})
        if type(activation) is cls and repr(activation) == repr(cls(**settings)):
            return name
    own_name = getattr(activation, "__name__", type(activation).__name__).lower()
    if isinstance(activation, nn.Module) and any(True for _ in activation.parameters()):
        return own_name
    grid = torch.linspace(-4, 4, 33, device="cpu")
    for name in ("gelu", "gelu_new", "silu", "relu", "relu2", "quick_gelu", "tanh", "sigmoid"):
        if torch.allclose(activation(grid), activations()[name](grid), atol=1e-6):
            return name
    return own_name


def is_ffn(module: nn.Module, hidden_size: int) -> bool:
    """Whether a module is a feed-forward network on its own: hidden -> wider -> hidden, an activation, no mixing."""
    if isinstance(module, (nn.ModuleList, nn.ModuleDict)) or linear_shape(module) is not None or is_norm(module):
        return False
    if _is_bottleneck(module, hidden_size):
        return False
    if any(mixes_tokens(type(part)) for part in parts(module)):
        return False
    if not reads_and_writes(module, hidden_size):
        return False
    return find_activation(module, module, hidden_size) is not None


def _is_bottleneck(module: nn.Module, hidden_size: int) -> bool:
    """Whether a module only narrows (an adapter); a mixture's single experts may, it has many of them."""
    if any(isinstance(part, nn.ModuleList) for part in module.modules()):
        return False
    if any(weight.ndim > 2 for part in parts(module) for weight in part.parameters(recurse=False)):
        return False
    return all(max(writes) < hidden_size for reads, writes in matrices(module) if hidden_size in reads)


@functools.cache
def class_tree(cls: type) -> ast.AST:
    """The syntax tree of a class's source, empty where none is to be had (C extensions, exec)."""
    try:
        return ast.parse(textwrap.dedent(inspect.getsource(cls)))
    except (OSError, TypeError, SyntaxError):
        return ast.Module(body=[], type_ignores=[])


@functools.cache
def called_names(cls: type) -> frozenset[str]:
    """The last name of everything a class's methods call: `nn.functional.silu(x)` gives `silu`."""
    names = set()
    for node in ast.walk(class_tree(cls)):
        if isinstance(node, ast.Call):
            target = node.func
            names.add(target.attr if isinstance(target, ast.Attribute) else getattr(target, "id", ""))
    return frozenset(names)


@functools.cache
def called_keywords(cls: type) -> frozenset[str]:
    """The names of all keyword arguments that a class's methods pass on."""
    nodes = ast.walk(class_tree(cls))
    return frozenset(word.arg for node in nodes if isinstance(node, ast.Call) for word in node.keywords if word.arg)


@functools.cache
def forward_arguments(cls: type) -> tuple[str, ...]:
    """The names of a class's forward arguments, `self` excluded."""
    try:
        return tuple(inspect.signature(inspect.unwrap(cls.forward)).parameters)[1:]
    except (TypeError, ValueError):
        return ()


@functools.cache
def overwrites_input(cls: type) -> bool:
    """Whether a forward changes its first argument in place (`x *= noise`, `x.mul_(...)`), as some mixtures do."""
    first = forward_arguments(cls)[:1]
    for node in ast.walk(class_tree(cls)):
        if isinstance(node, ast.AugAssign) and isinstance(node.target, ast.Name) and (node.target.id,) == first:
            return True
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            owner, name = node.func.value, node.func.attr
            in_place = name.endswith("_") and not name.endswith("__")
            if in_place and isinstance(owner, ast.Name) and (owner.id,) == first:
                return True
    return False


def attends(cls: type, tree: ast.AST) -> bool:
    """Whether some method of a class takes a softmax, or a running sum, over other tokens' activations."""
    flow = _Flow(cls, tree)
    for method in flow.methods:
        flow.read(method)
    return flow.mixes


def _name(function: ast.AST) -> str:
    """The last name of what is called."""
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


class _Flow:
    """Reads a class's methods; `mixes` tells what was found."""

    def __init__(self, cls: type, tree: ast.AST) -> None:
        self.cls = cls
        self.methods = {node.name: node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
        self.multiplies = any(_name(node.func) in PRODUCTS for node in ast.walk(tree) if isinstance(node, ast.Call))
        self.results: dict[str, set[str]] = {}
        self.names: dict[str, set[str]] = {}
        self.mixes = False

    def read(self, method: str) -> set[str]:
        """What a method returns is made of."""
        if method in self.results:
            return self.results[method]
        self.results[method] = {DATA}  # for a method that calls itself
        outer, definition = self.names, self.methods[method]
        arguments = definition.args
        self.names = {one.arg: {DATA} for one in [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]}
        self.names["self"] = set()
        for _ in range(PASSES):
            for node in ast.walk(definition):
                self._assign(node)
        found = self._all(node.value for node in ast.walk(definition) if isinstance(node, ast.Return) and node.value)
        self.results[method], self.names = found, outer
        return found

    def _assign(self, node: ast.AST) -> None:
        if isinstance(node, ast.Assign | ast.AugAssign | ast.AnnAssign) and node.value is not None:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            self._give(targets, self._made_of(node.value))
        elif isinstance(node, ast.For | ast.comprehension):
            self._give([node.target], self._made_of(node.iter))
        elif isinstance(node, ast.Expr):
            found = self._made_of(node.value)
            function = node.value.func if isinstance(node.value, ast.Call) else None
            if isinstance(function, ast.Attribute) and getattr(function.value, "id", None) in self.names:  # outputs.append(...)
                self._give([function.value], found | {SEVERAL})

    def _give(self, targets: Iterable[ast.AST], found: set[str]) -> None:
        """Names that are assigned to, also in part (`out[rows] = ...`)."""
        for target in targets:
            for node in ast.walk(target):
                if isinstance(node, ast.Name) and node.id != "self":
                    self.names[node.id] = self.names.get(node.id, set()) | found

    def _all(self, nodes: Iterable[ast.AST]) -> set[str]:
        return set().union(*map(self._made_of, nodes))

    def _made_of(self, node: ast.AST) -> set[str]:
        if isinstance(node, ast.Name):
            return self.names.get(node.id, set())
        if isinstance(node, ast.Attribute) and node.attr in ("shape", "ndim", "dtype", "device"):
            return set()
        if isinstance(node, ast.Subscript):  # what picks the rows, such as chosen experts, is not in them
            return self._made_of(node.value)
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.MatMult):
            return self._product([node.left, node.right])
        if isinstance(node, ast.Call):
            return self._called(node)
        if isinstance(node, ast.ListComp | ast.GeneratorExp):
            self._assign(node.generators[0])
            return self._made_of(node.elt) | {SEVERAL}
        return self._all(ast.iter_child_nodes(node))

    def _called(self, call: ast.Call) -> set[str]:
        owner = call.func.value if isinstance(call.func, ast.Attribute) else call.func
        name = _name(call.func)
        operands = [owner, *call.args, *(word.value for word in call.keywords)]
        if name in PRODUCTS:
            return self._product(operands)
        found = self._all(operands)
        if name == "softmax":
            self.mixes |= SCORES in found or (found == {DATA} and self.multiplies)  # else a router's, or of weights alone
            return {DATA, SHARES}
        if name in COUNTS:
            return set()
        if "cumsum" in name:
            self.mixes |= DATA in found
        own = isinstance(owner, ast.Name) and owner.id == "self" and isinstance(call.func, ast.Attribute)
        if own and name in self.methods:
            return self.read(name) if DATA in found else set()
        if DATA in found and (name == "linear" or (self._is_module(call.func) and not (own and hasattr(self.cls, name)))):
            several = sum(DATA in self._made_of(operand) for operand in operands) > 1  # it may multiply them
            return {DATA} if several else found - {SHARES} | {PROJECTED}
        return found | ({SEVERAL} if name == "stack" else set())

    def _is_module(self, function: ast.AST) -> bool:
        """`self.gate`, `self.experts[i]`, or a local name of one of them."""
        while isinstance(function, ast.Attribute | ast.Subscript):
            function = function.value
        return isinstance(function, ast.Name) and function.id in self.names and DATA not in self.names[function.id]

    def _product(self, operands: Sequence[ast.AST]) -> set[str]:
        made_of = [found for found in map(self._made_of, operands) if DATA in found]
        if len(made_of) < 2:
            return {DATA, PROJECTED, SEVERAL} if made_of else set()
        shares = [found for found in made_of if SHARES in found]
        if shares and any(SHARES not in found and SEVERAL not in found for found in made_of):
            self.mixes = True  # softmax times values that are not several experts' outputs
        return {DATA, *(() if shares else (SCORES,))}
