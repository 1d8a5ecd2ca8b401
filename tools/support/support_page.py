"""Writes docs/support.md from a run of the matrix, and tells whether the page is older than its code."""

from __future__ import annotations

import datetime
import importlib.metadata
import importlib.util
import platform
from collections.abc import Sequence

import torch
import transformers
from dehvf_kit_doctor.decoder_family import FamilyResult

from tools.support.fingerprint import fingerprint
from tools.support.plan_item import MATRIX

SOURCES = (
    "backbones/ffn/*.py",
    *(f"testing/{name}.py" for name in ("decoder_contract", "*_items", "reference", "subject", "tiny_models")),
)
SYMBOLS = {"pass": "yes", "family": "family", "not run": "-", "broken": "**no**"}


OLDER = "The code that finds and hooks layers has changed since this run."
"""What a page must say that is older than the code."""


def is_stale(page: str) -> bool:
    """Whether a page was written by other code, or for another transformers, than is installed now."""
    return f"fingerprint: {fingerprint(SOURCES)}" not in page


def support_page(results: Sequence[FamilyResult]) -> str:
    """The page: what was run, the counts, a row a family, the reasons for whatever is not a plain yes."""
    ran = [result for result in results if result.items]
    passed = [result for result in ran if result.status == "pass"]
    bare = [result for result in passed if not result.overridden]
    lines = [
        "# Supported decoders",
        "",
        "<!-- Written by `python -m tools.support.matrix`; edits by hand are lost. -->",
        f"<!-- fingerprint: {fingerprint(SOURCES)} -->",
        "",
        f"Run on {datetime.date.today().isoformat()} with transformers {transformers.__version__}, torch "
        f"{torch.__version__}{_optional_versions()}, Python {platform.python_version()}, on the CPU; all models "
        "tiny, with random weights.",
        "",
        f"- {len(results)} decoder types in transformers' causal-LM mapping, {len(ran)} of which have an FFN and can "
        "be built alone.",
        f"- **{len(passed)} of {len(ran)} pass the whole contract**, {len(bare)} of them detected by structure, "
        f"{len(passed) - len(bare)} with an entry in `dehvf_kit/backbones/ffn/overrides.py`.",
        f"- {sum(result.status == 'broken' for result in ran)} fail an item (listed at the end).",
        "",
        "`yes`: passed. `family`: the unmodified model fails the same check, for the reason below the table. "
        "`-`: not run because a library is missing.",
        "",
        "| item | what must hold |",
        "|---|---|",
        *(f"| {name} | {_first_line(check.__doc__)} |" for name, check in MATRIX.items()),
        "",
        "## Families",
        "",
        "FFN: sites found of layers, in the tiny model; the first site's module; its activation.",
        "",
        "| type | FFN | " + " | ".join(MATRIX) + " |",
        "|---|---|" + "---|" * len(MATRIX),
        *(_row(result) for result in ran),
    ]
    lines += _section("What fails in the unmodified models", [_limits(result) for result in ran])
    lines += _section("Models with an override", [f"- {r.model_type}: {r.overridden}" for r in ran if r.overridden])
    lines += _section("Broken", [_reasons(result, "broken") for result in ran])
    lines += _section("Not in the table", [f"- {result.model_type}: {result.note}" for result in results if result.note])
    return "\n".join(lines) + "\n"


def _optional_versions() -> str:
    """Versions of the libraries that some items or families need, where they are installed."""
    named = [name for name in ("bitsandbytes", "timm") if importlib.util.find_spec(name) is not None]
    return "".join(f", {name} {importlib.metadata.version(name)}" for name in named)


def _row(result: FamilyResult) -> str:
    status = {item.item: SYMBOLS[item.status] for item in result.items}
    place = f"{result.num_sites} of {result.num_layers}: `{result.first_path}` ({result.activation_name})"
    return f"| {result.model_type} | {place} | " + " | ".join(status.get(name, "") for name in MATRIX) + " |"


def _limits(result: FamilyResult) -> str:
    return _reasons(result, "family")


def _reasons(result: FamilyResult, status: str) -> str:
    reasons = [f"{item.item}: {item.reason}" for item in result.items if item.status == status]
    return f"- {result.model_type}: " + "; ".join(reasons) if reasons else ""


def _section(title: str, lines: Sequence[str]) -> list[str]:
    lines = [line for line in lines if line]
    return ["", f"## {title}", "", *(lines or ["Nothing."])]


def _first_line(docstring: str | None) -> str:
    return (docstring or "").strip().split("\n")[0]
