"""Bases that another library holds: memory at the same sites, gradients that stay right, one identity; docs/bases.md says so."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from bases.holders import HOLDERS, Holder, process_group, save_plain
from bases.measure import row
from bases.page import PAGE, line

pytestmark = [pytest.mark.nightly, pytest.mark.usefixtures("builtins_alone")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_plain(tmp_path_factory.mktemp("bases") / "decoder")


@pytest.fixture(scope="module", autouse=True)
def processes() -> Iterator[None]:
    with process_group():
        yield


@pytest.mark.parametrize("holder", HOLDERS, ids=lambda holder: holder.name)
def test_a_base_in_another_librarys_hands(holder: Holder, folder: Path, tmp_path: Path) -> None:
    if holder.missing():
        pytest.skip(f"{holder.library} is not installed")
    assert line(row(holder, folder, tmp_path)) in PAGE.read_text(), "run `python tests/bases/page.py`"
