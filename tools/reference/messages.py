"""Every message of the kit to its users, read from the source: the texts given to its errors, with `…` for what varies.

A text counts where it is the message of an error of `dehvf_kit.errors` or a subclass, of a `ConfigMismatchError`, a `Fault` or an
`Issue`, of a `fault(path, message)` of the checkers, or of a ValueError in a config class (pydantic hands it on). Where the
message is a constant or what a function of the kit returns, their texts count; where it is put together beforehand, as
`"\\n".join(faults)` is, the texts that went into it in the same function. A place whose texts come from further away stands
in `RELAYS`. `str(error)` and `f"{file}: {error}"` pass another text on.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

ROOT = Path(__file__).resolve().parents[2]
# The kit and its plugins: folders and files whose messages the troubleshooting pages cover.
SOURCES = (ROOT / "dehvf_kit", *sorted((ROOT / "plugins").glob("dehvf-kit-*/dehvf_kit_*")))
HOLE = "…"
# Which argument is the message, for calls that are not errors themselves. `Issue`: the kind, printed when data is refused.
CALLS = {"Fault": 1, "fault": 1, "port_fault": 2, "ConfigMismatchError": 0, "Issue": 0}
# What speaks to plugin authors: results of contract items, not messages that a user acts on.
EXCLUDED = ("dehvf_kit/testing/",)
# Functions whose every text is a message, returned or raised as something else that a caller turns into a kit error.
SPOKEN = (
    "dehvf_kit/recipe/wording.py:_wording",
    "dehvf_kit/api/registry.py:find",
    "plugins/dehvf-kit-benchmarks/dehvf_kit_benchmarks/scienceqa_prompt.py:check_format",
    "dehvf_kit/api/config.py:too_many",
    "dehvf_kit/utils/atomic.py:unwritable",
)
# Functions that pass on messages made elsewhere, and where that is.
RELAYS = {
    "dehvf_kit/data/samples.py:refuse": "the kinds of its issues",
    "dehvf_kit/data/tokens.py:require_tokenizer": "the tokenizer's faults",
    "plugins/dehvf-kit-streams/dehvf_kit_streams/llava.py:read_file": "the kinds of the row faults",
    "dehvf_kit/data/rows.py:read_rows": "the kinds of the row faults",
    "dehvf_kit/data/rows.py:note": "its callers' texts",
    "plugins/dehvf-kit-doctor/dehvf_kit_doctor/data_report.py:inspect_data": "the refusal of a split that cannot be read",
    "dehvf_kit/model/builder.py:component_faults": "what building a component raises",
    "dehvf_kit/recipe/files.py:override": "the fault beside it",
    "dehvf_kit/recipe/graph.py:fault": "its callers' texts",
    "dehvf_kit/recipe/graph.py:port_fault": "its callers' texts",
    "dehvf_kit/recipe/parser.py:fault": "its callers' texts",
    "dehvf_kit/recipe/parser.py:parse": "the faults collected",
    "dehvf_kit/recipe/parser.py:parse_data": "the faults collected",
    "dehvf_kit/recipe/parser.py:_validate": "the texts of wording",
    "dehvf_kit/recipe/recipe.py:check": "the graph's faults",
    "plugins/dehvf-kit-plan/dehvf_kit_plan/several.py:load_all": "each recipe's faults",
    "plugins/dehvf-kit-compare/dehvf_kit_compare/comparison.py:compare": "each recipe's faults",
    "plugins/dehvf-kit-scaffold/dehvf_kit_scaffold/starter.py:_size": "the towers' errors",
    "dehvf_kit/training/run_folder.py:_from_worker": "a worker's error",
    "dehvf_kit/utils/plain_data.py:parse_yaml": "the faults collected",
}


Function = ast.FunctionDef | ast.AsyncFunctionDef
# What a name stands for, wherever it is: the value of a constant, what a function returns.
Elsewhere = Mapping[str, Sequence[ast.expr]]


@dataclass(frozen=True)
class Message:
    """One text and the place that says it: `file.py:function`."""

    text: str
    place: str


def messages(*sources: Path) -> list[Message]:
    """All messages of some folders and files, of `SOURCES` if none is given, file by file.

    Raises: LookupError for a message that cannot be traced to a text and is not in `RELAYS`.
    """
    files = {
        _name(file, source): ast.parse(file.read_text(encoding="utf-8"))
        for source in sources or SOURCES
        for file in ([source] if source.is_file() else sorted(source.rglob("*.py")))
    }
    errors, elsewhere = _error_names(files.values()), _elsewhere(files.values())
    found: list[Message] = []
    for name, tree in files.items():
        if not name.startswith(EXCLUDED):
            found += _in_file(name, tree, errors, elsewhere)
    return found


def _name(file: Path, source: Path) -> str:
    return file.relative_to(ROOT if file.is_relative_to(ROOT) else source).as_posix()


def normal(text: str) -> str:
    """What two spellings of a message share: file names before it and variables at its end left out."""
    text = re.sub(f"{HOLE}+", HOLE, " ".join(text.split()))
    return re.sub(rf"^({HOLE}:\s?)+", "", text).rstrip(f"{HOLE} ")


def _error_names(trees: Iterable[ast.Module]) -> set[str]:
    """Names of `DehvfError` and all classes below it."""
    parents = {
        node.name: {ast.unparse(base).rpartition(".")[2] for base in node.bases}
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
    }
    names = {"DehvfError"}
    while more := {name for name, bases in parents.items() if bases & names} - names:
        names |= more
    return names - {"RecipeError"}  # its messages are its faults


def _in_file(name: str, tree: ast.Module, errors: set[str], elsewhere: Elsewhere) -> Iterator[Message]:
    for function, owner in _functions(tree):
        if f"{name}:{function.name}" in SPOKEN:
            for node in ast.walk(function):
                said = node.value if isinstance(node, ast.Return) else node.args[0] if _is_error(node) else None
                yield from (Message(text, f"{name}:{function.name}") for text in _texts(said) if " " in text)
            continue
        for call in _own_calls(function):
            argument = _message_of(call, errors, owner)
            if argument is None:
                continue
            place = f"{name}:{function.name}"
            texts = list(dict.fromkeys(_texts(argument) or [*_gathered(argument, function), *_followed(argument, elsewhere)]))
            if not texts and not _passes_on(argument) and place not in RELAYS:
                raise LookupError(f"{name}:{call.lineno}: cannot tell this message's text; give it here, or add {place} to RELAYS")
            yield from (Message(text, place) for text in texts)


def _is_error(node: ast.AST) -> TypeGuard[ast.Call]:
    return isinstance(node, ast.Call) and ast.unparse(node.func).endswith("Error") and bool(node.args)


def _functions(tree: ast.Module) -> Iterator[tuple[Function, str]]:
    """Every function with the bases of its class, written out."""
    classes = {
        inner: " ".join(ast.unparse(base) for base in node.bases)
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
        for inner in node.body
    }
    for node in ast.walk(tree):
        if isinstance(node, Function):
            yield node, classes.get(node, "")


def _own_calls(function: Function) -> Iterator[ast.Call]:
    """Calls in a function, those of functions inside it left out."""
    waiting: list[ast.AST] = list(function.body)
    while waiting:
        node = waiting.pop(0)
        if isinstance(node, Function):
            continue
        if isinstance(node, ast.Call):
            yield node
        waiting = [*ast.iter_child_nodes(node), *waiting]


def _message_of(call: ast.Call, errors: set[str], owner: str) -> ast.expr | None:
    """The argument that is the message; None where the call is none of ours."""
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    if name in CALLS:
        index = CALLS[name]
    elif name in errors or (name == "ValueError" and any(word in owner for word in ("Settings", "Config", "BaseModel"))):
        index = 0
    else:
        return None
    return call.args[index] if len(call.args) > index else None


def _texts(node: ast.expr | None) -> list[str]:
    """The texts an expression may be, `…` where something varies; none where it says nothing of its own."""
    texts = (" ".join(text.split()) for text in _parts(node))
    return [text for text in texts if any(letter.isalpha() for letter in text)]


def _parts(node: ast.expr | None) -> list[str]:
    if isinstance(node, ast.IfExp):
        return [*_parts(node.body), *_parts(node.orelse)]
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return [f"{left}{right}" for left in _parts(node.left) for right in _parts(node.right)]
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return [node.value]
    if isinstance(node, ast.JoinedStr):
        return ["".join(str(part.value) if isinstance(part, ast.Constant) else HOLE for part in node.values)]
    return [HOLE]


def _passes_on(node: ast.expr) -> bool:
    """Whether an expression is another error's text, perhaps with a place before it: `str(error)`, `f"{file}: {error}"`."""
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Call) and ast.unparse(node.func) == "str")


def _elsewhere(trees: Iterable[ast.Module]) -> Elsewhere:
    found: dict[str, list[ast.expr]] = {}
    for tree in trees:
        for node in tree.body:
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                found.setdefault(node.targets[0].id, []).append(node.value)
            if isinstance(node, Function):
                returned = (inner.value for inner in ast.walk(node) if isinstance(inner, ast.Return))
                found.setdefault(node.name, []).extend(value for value in returned if value is not None)
    return found


def _followed(argument: ast.expr, elsewhere: Elsewhere) -> Iterator[str]:
    """Texts of a constant that is the whole message, or that the function returns which makes it."""
    name = argument.func if isinstance(argument, ast.Call) else argument
    for value in elsewhere.get(name.id, ()) if isinstance(name, ast.Name) else ():
        yield from _texts(value)


def _gathered(argument: ast.expr, function: Function) -> Iterator[str]:
    """Texts put into the names that `argument` reads, by assignment, `+=`, `append` or `extend`, in the same function."""
    names = {node.id for node in ast.walk(argument) if isinstance(node, ast.Name)}
    for node in ast.walk(function):
        value: ast.expr | None = None
        if isinstance(node, ast.Assign | ast.AugAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            value = node.value if names & set(map(ast.unparse, targets)) else None
        elif (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr in ("append", "extend")
            and ast.unparse(node.func.value) in names
        ):
            value = node.args[0]
        if value is not None:
            yield from _elements(value)


def _elements(value: ast.expr) -> Iterator[str]:
    """Texts of an expression, and of the elements of a list or comprehension."""
    if isinstance(value, ast.List | ast.Tuple):
        for element in value.elts:
            yield from _elements(element)
    elif isinstance(value, ast.ListComp | ast.GeneratorExp):
        yield from _elements(value.elt)
    elif isinstance(value, ast.IfExp):
        yield from (*_elements(value.body), *_elements(value.orelse))
    else:
        yield from (text for text in _texts(value) if " " in text)
