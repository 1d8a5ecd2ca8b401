"""A digest of what a support page depends on: code and transformers' version."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterable
from pathlib import Path

import transformers

import dehvf_kit

PACKAGE = Path(dehvf_kit.__file__).parent


def fingerprint(patterns: Iterable[str], package: Path = PACKAGE) -> str:
    """The digest of files of the package. Moving a file, or rewording a comment, docstring or error, does not change it."""
    codes = {code(path.read_text(encoding="utf-8")) for pattern in patterns for path in package.glob(pattern)}
    return hashlib.sha256("\0".join([transformers.__version__, *sorted(codes)]).encode()).hexdigest()[:16]


def code(source: str) -> str:
    """Source without comments, docstrings, imports, layout and the arguments of what is raised."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            node.exc.args = []
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [child for child in body if not _says_nothing(child)] or [ast.Pass()]  # type: ignore[attr-defined]
    return ast.unparse(tree)


def _says_nothing(node: ast.stmt) -> bool:
    docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    return docstring or isinstance(node, ast.Import | ast.ImportFrom)
