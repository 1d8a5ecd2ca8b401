"""mkdocs hook: the READMEs of the repository as pages of the site, links between them, and pages that the nav forgot."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
PAGES = {
    "index.md": "README.md",
    "recipes.md": "recipes/README.md",
    "plugins.md": "plugins/README.md",
    "benchmarks.md": "benchmarks/README.md",
    "findings.md": "findings/README.md",
    "changelog.md": "CHANGELOG.md",
    "contributing.md": "CONTRIBUTING.md",
    "security.md": "SECURITY.md",
    **{
        f"plugins/{readme.parent.name}.md": f"plugins/{readme.parent.name}/README.md"
        for readme in sorted(ROOT.glob("plugins/*/README.md"))
    },
}
LINK = re.compile(r"\[([^\]]+)\]\(([^)\s#]+)(#[^)\s]*)?\)")
FENCE = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)


def on_config(config: Any) -> Any:
    """Pages in docs/ that the nav does not name come last, under their own headings."""
    named = set(re.findall(r"[\w/]+\.md", str(config.nav)))
    more = sorted(page.name for page in (ROOT / "docs").glob("*.md") if page.name not in named)
    if more:
        config.nav = [*config.nav, {"More": more}]
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add the READMEs."""
    for uri, source in PAGES.items():
        files.append(File.generated(config, uri, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Links as the repository has them -> links of the site; what is no page of it is named instead."""
    here = page.file.src_uri
    source = PAGES.get(here, f"docs/{here}")

    def moved(found: re.Match[str]) -> str:
        text, target, anchor = found.groups()
        if ":" in target:
            return found[0]
        place = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        names = {readme: uri for uri, readme in PAGES.items()}
        uri = names.get(place) or names.get(f"{place}/README.md")
        if uri is None and place.startswith("docs/"):
            uri = place.removeprefix("docs/")
        if uri is None and (ROOT / place).exists():
            return f"{text} (`{place}` in the repository)" if text.strip("`") != place else f"`{place}`"
        return f"[{text}]({posixpath.relpath(uri or target, posixpath.dirname(here) or '.')}{anchor or ''})"

    parts = FENCE.split(markdown)
    return "".join(part if part.startswith("```") else LINK.sub(moved, part) for part in parts)
