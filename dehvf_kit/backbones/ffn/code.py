"""Reads what the source code of a layer says: which modules its forward calls, in which order and with what.

Works on syntax trees alone, so nothing is run. Results are cached per class.
"""

from __future__ import annotations

import ast
import functools
import inspect
import textwrap


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
    """The names of a class's forward arguments, `self` left out."""
    try:
        return tuple(inspect.signature(inspect.unwrap(cls.forward)).parameters)[1:]
    except (TypeError, ValueError):
        return ()


@functools.cache
def child_calls(cls: type) -> tuple[tuple[str, int], ...]:
    """The modules a forward calls, in source order, as (path below the module, number of arguments).

    `self.mlps[0](x)` gives `("mlps.0", 1)`. Calls in a loop or through a local name are not resolved.
    """
    calls: list[tuple[int, int, str, int]] = []
    for definition in ast.walk(class_tree(cls)):
        if isinstance(definition, ast.FunctionDef) and definition.name == "forward":
            for node in ast.walk(definition):
                path = _self_path(node.func) if isinstance(node, ast.Call) else None
                if path:
                    # The end of a call orders nested calls inside out, the way they run.
                    end = (node.end_lineno or 0, node.end_col_offset or 0)
                    calls.append((*end, path, len(node.args) + len(node.keywords)))
            break
    return tuple((path, count) for _, _, path, count in sorted(calls))


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


def _self_path(node: ast.AST) -> str | None:
    """`self.a.b[0]` as `a.b.0`; None for anything else."""
    if isinstance(node, ast.Attribute):
        if isinstance(node.value, ast.Name) and node.value.id == "self":
            return node.attr
        owner = _self_path(node.value)
        return f"{owner}.{node.attr}" if owner else None
    if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
        owner = _self_path(node.value)
        return f"{owner}.{node.slice.value}" if owner else None
    return None
