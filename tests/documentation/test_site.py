"""The site is built strictly, and reading it asks nobody else for anything."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.nightly

ROOT = Path(__file__).parents[2]
FETCHED = re.compile(r"<(?:link|script|img|iframe|source)\b[^>]*?\b(?:href|src)=[\"']?(https?:)?//[^\s>]*", re.IGNORECASE)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    words = ["-m", "mkdocs", "build", "--strict", "--quiet", "--config-file", ROOT / "mkdocs.yml", "--site-dir", folder]
    built = subprocess.run([sys.executable, *map(str, words)], capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    return folder


def test_every_page_is_there(site: Path) -> None:
    pages = {page.relative_to(ROOT / "docs").with_suffix(".html") for page in (ROOT / "docs").rglob("*.md")}
    assert {page for page in pages if not (site / page).is_file()} == set()
    assert all((site / name).is_file() for name in ("index.html", "recipes.html", "plugins.html", "changelog.html"))


def test_nothing_is_fetched_from_elsewhere(site: Path) -> None:
    for page in site.rglob("*.html"):
        found = FETCHED.search(page.read_text(encoding="utf-8"))
        assert found is None or 'rel="canonical"' in found[0], f"{page}: {found[0]}"
    for sheet in site.rglob("*.css"):
        assert not re.search(r"url\([\"']?(https?:)?//", sheet.read_text(encoding="utf-8")), sheet


def test_pictures_are_there(site: Path) -> None:
    for page in site.rglob("*.html"):
        for picture in re.findall(r"<img[^>]*\bsrc=\"?([^\"\s>]+)", page.read_text(encoding="utf-8")):
            assert picture.startswith("data:") or (page.parent / picture).is_file(), f"{page}: {picture}"


def test_code_is_kept_inside_lists(site: Path) -> None:
    """A fence that Markdown does not see stays in the text as back quotes."""
    for page in site.rglob("*.html"):
        text = re.sub(r"<(code|pre|script)\b.*?</\1>", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
        assert "```" not in text, page
