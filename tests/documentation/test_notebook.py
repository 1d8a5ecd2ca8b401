"""The notebook of the documentation runs from top to bottom twice in one process, and leaves nothing attached."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from dehvf_kit.backbones.attached import attached_to

NOTEBOOK = Path(__file__).parents[2] / "docs" / "notebook.ipynb"


@pytest.mark.nightly
def test_every_cell_runs_twice(caplog: pytest.LogCaptureFixture) -> None:
    cells = [cell for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    assert len(cells) > 5 and not any(cell["outputs"] for cell in cells)
    names: dict[str, Any] = {}
    for _ in range(2):
        with caplog.at_level(logging.WARNING, "dehvf_kit"):
            for cell in cells:
                exec(compile("".join(cell["source"]), str(NOTEBOOK), "exec"), names)
        assert names["result"].steps == 10 and len(names["answers"]) == 2
        assert len(names["found"].predictions) == 6 and not attached_to(names["decoder"])
    assert not [record.message for record in caplog.records if "attached" in record.message]
