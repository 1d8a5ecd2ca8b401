"""Writes docs/support_vision.md from a run of the vision matrix, and tells whether it is older than its code."""

from __future__ import annotations

import datetime
import platform
from collections.abc import Sequence

import torch
import transformers
from dehvf_kit_doctor.vision_family import EncoderResult

from dehvf_kit.testing.vision_contract import VISION_CONTRACT
from tools.support.fingerprint import fingerprint

SOURCES = ("backbones/vision/*.py", "testing/vision_*.py", "../plugins/dehvf-kit-doctor/dehvf_kit_doctor/vision_family.py")
SYMBOLS = {"pass": "yes", "family": "family", "not run": "-", "broken": "**no**"}


def vision_fingerprint() -> str:
    """A digest of the code that the page depends on, and of transformers' version."""
    return fingerprint(SOURCES)


def is_stale(page: str) -> bool:
    """Whether a page was written by other code, or for another transformers, than is installed now."""
    return f"fingerprint: {vision_fingerprint()}" not in page


def vision_page(results: Sequence[EncoderResult], timm_verdicts: Sequence[tuple[str, str, str]] = ()) -> str:
    """The page: what was run, the counts, a row an encoder, the reasons for whatever is not a plain yes.

    timm_verdicts: of the plugin dehvf-kit-timm, each family's smallest network and what keeps it from being read.
    """
    ran = [result for result in results if result.items]
    passed = [result for result in ran if result.status == "pass"]
    bare = [result for result in passed if not result.described]
    others = [result for result in results if not result.items]
    lines = [
        "# Supported vision encoders",
        "",
        "<!-- Written by `python -m tools.support.vision_matrix`; edits by hand are lost. -->",
        f"<!-- fingerprint: {vision_fingerprint()} -->",
        "",
        f"Run on {datetime.date.today().isoformat()} with transformers {transformers.__version__}, torch "
        f"{torch.__version__}, Python {platform.python_version()}, on the CPU; all encoders tiny, with random weights.",
        "",
        f"- {len(results)} types in transformers have an image-only configuration; {len(ran)} of them "
        "are encoders that keep one token per patch in every block.",
        f"- **{len(passed)} of {len(ran)} pass the whole contract**, {len(bare)} of them detected by structure, "
        f"{len(passed) - len(bare)} with an entry in `dehvf_kit/backbones/vision/overrides.py`.",
        "- Hierarchical encoders (Swin, Hiera, ConvNeXt, PVT, Segformer, ...) are refused with the reason: their stages "
        "differ in grid and width.",
        "",
        "`yes`: passed. `family`: the unmodified model fails the same check. `-`: nothing to compare with. "
        "Reasons are below the table.",
        "",
        "| item | what must hold |",
        "|---|---|",
        *(f"| {name} | {_first_line(check.__doc__)} |" for name, check in VISION_CONTRACT.items()),
        "",
        "## Encoders",
        "",
        "| type | tokens of an image | final norm | " + " | ".join(VISION_CONTRACT) + " |",
        "|---|---|---|" + "---|" * len(VISION_CONTRACT),
        *(_row(result) for result in ran),
    ]
    lines += _section("What the unmodified models refuse", [_reasons(result, "family") for result in ran])
    lines += _section("What could not be compared", [_reasons(result, "not run") for result in ran])
    lines += _section("Models with an override", [f"- {r.model_type}: {r.described}" for r in ran if r.described])
    lines += _section("Broken", [_reasons(result, "broken") for result in ran])
    for kind in sorted({result.kind for result in others}):
        lines += _section(f"Not supported: {kind}", [f"- {r.model_type}: {_short(r.note)}" for r in others if r.kind == kind])
    if timm_verdicts:
        lines += [
            "",
            "## timm",
            "",
            "Read by the plugin dehvf-kit-timm; the smallest network of each of timm's families, tiny and random.",
        ]
        lines += ["", "| family | network | verdict |", "|---|---|---|"]
        lines += [f"| {family} | {name} | {reason or 'passes the whole contract'} |" for family, name, reason in timm_verdicts]
    return "\n".join(lines) + "\n"


def _row(result: EncoderResult) -> str:
    status = {item.item: SYMBOLS[item.status] for item in result.items}
    cells = [result.model_type, result.tokens, result.post_norm or "none"]
    return "| " + " | ".join(cells + [status.get(name, "") for name in VISION_CONTRACT]) + " |"


def _reasons(result: EncoderResult, status: str) -> str:
    reasons = [f"{item.item}: {item.reason}" for item in result.items if item.status == status]
    return f"- {result.model_type}: " + "; ".join(reasons) if reasons else ""


def _short(note: str) -> str:
    return note.partition("; the kit reads")[0].partition(" Looked for:")[0]


def _section(title: str, lines: Sequence[str]) -> list[str]:
    lines = [line for line in lines if line]
    return ["", f"## {title}", "", *(lines or ["Nothing."])]


def _first_line(docstring: str | None) -> str:
    return (docstring or "").strip().split("\n")[0]
