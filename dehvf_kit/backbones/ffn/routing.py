"""Tells attention from the router of a mixture of experts: both apply softmax and multiply matrices.

Attention takes a softmax of a product of two activations (queries and keys), a router one of activations times weights. What a
method's values are made of is followed through its source code, assignment by assignment; nothing is run.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Sequence

PRODUCTS = frozenset({"matmul", "bmm", "einsum", "baddbmm", "mm", "addmm", "tensordot"})
COUNTS = frozenset({"one_hot", "argmax", "argsort", "bincount", "histc"})
"""What yields places and counts, of which a router takes sums over tokens (its experts' capacity)."""
# What a value is made of: activations; their product with one another; their product with weights; a softmax; several experts.
DATA, SCORES, PROJECTED, SHARES, SEVERAL = "data", "scores", "projected", "shares", "several"
PASSES = 3
"""Times that a method is read, so that a loop's values reach its beginning."""


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
