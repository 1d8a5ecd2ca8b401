"""docs/support.md is written from a run, and not older than the code it speaks of."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import transformers
from dehvf_kit_doctor.decoder_family import run_matrix

from dehvf_kit.errors import DehvfError
from tools.support.fingerprint import code
from tools.support.matrix import main
from tools.support.support_page import OLDER, is_stale, support_page

PAGE = Path(__file__).parents[2] / "docs" / "support.md"


def test_the_page_is_not_stale():
    page = PAGE.read_text(encoding="utf-8")
    if f"transformers {transformers.__version__}," not in page:
        pytest.skip(f"the page was written for another transformers than {transformers.__version__}")
    if f"Python {sys.version_info.major}.{sys.version_info.minor}." not in page:
        pytest.skip("the page was written under another Python, whose ast.unparse writes the same code otherwise")
    assert is_stale(page) == (OLDER in page), (
        "run python -m tools.support.matrix and commit docs/support.md, or let the page say so"
    )


@pytest.mark.nightly
def test_a_run_in_processes_keeps_the_order_and_says_why_a_type_is_not_in_the_table():
    results = run_matrix(["mamba", "gpt2"], processes=1)
    assert [result.status for result in results] == ["no FFN", "pass"]
    page = support_page(results)
    assert "| gpt2 | 2 of 2: `transformer.h.0.mlp` (gelu_new) | yes |" in page
    assert "- mamba: no FFN" in page and "**1 of 1 pass the whole contract**" in page
    assert not is_stale(page) and is_stale(page.replace("fingerprint: ", "fingerprint: 0"))


def test_the_command_writes_the_page_and_refuses_unknown_types(tmp_path, monkeypatch):
    monkeypatch.setattr("tools.support.matrix.run_matrix", lambda types, processes, on_result, contract: [])
    assert main(["llama", "--output", str(tmp_path / "page.md")]) == 0
    assert "0 of 0 pass the whole contract" in (tmp_path / "page.md").read_text(encoding="utf-8")
    with pytest.raises(DehvfError, match="no decoder type is named 'lama'; did you mean 'llama'"):
        main(["lama"])


def test_the_fingerprint_depends_on_code_and_not_on_words():
    written = code("import os\n\ndef f(x):\n    'Words.'\n    raise ValueError(f'no {x}')  # why\n")
    assert written == code("def f(x):\n    raise ValueError('not that')\n")
    assert written != code("def f(x):\n    raise TypeError(f'no {x}')\n")
