"""The code blocks of the documentation, in order, with what the comment above each says about running it.

`<!-- runs: demo -->`: needs the demo's models, run by `make docs-demo`. `<!-- fails: why -->`: ends with a message.
`<!-- not run: why -->`: needs what no test has; its commands are still compared with the command line.
"""

from __future__ import annotations

import re
import shlex
import textwrap
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
FENCE = re.compile(
    r"(?:^ *<!-- (?P<mark>runs|not run|fails): (?P<note>[^>]*) -->\n)?^(?P<indent> *)```(?P<language>\w+)\n(?P<text>.*?)^ *```$",
    re.MULTILINE | re.DOTALL,
)
SHELLS = ("sh", "bash")
GENERATED = ("recipe_reference.md", "component_reference.md", "support.md", "support_vision.md")


@dataclass(frozen=True)
class Block:
    """One fenced block: its place, language, mark (`runs`, `not run`, `fails` or nothing) and the mark's note."""

    page: Path
    line: int
    language: str
    mark: str
    note: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def demo(self) -> bool:
        return self.mark == "runs" and self.note == "demo"

    def commands(self) -> list[list[str]]:
        """The words of each command of a shell block, continued lines joined, comments and here-documents left out."""
        text = re.sub(r"<<'(\w+)'\n.*?^\1$", "", self.text.replace("\\\n", " "), flags=re.MULTILINE | re.DOTALL)
        found: list[list[str]] = [[]]
        for line in text.splitlines():
            lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
            lexer.whitespace_split = True
            for word in lexer:
                if set(word) <= set(";&|>"):
                    found.append([])
                else:
                    found[-1].append(word)
            found.append([])
        return [words for words in found if words]


def pages() -> list[Path]:
    """Every page that people write by hand."""
    own = [*ROOT.glob("*.md"), *ROOT.glob("*/README.md"), *ROOT.glob("plugins/*/README.md"), *ROOT.glob("docs/**/*.md")]
    return sorted({page for page in own if page.name not in GENERATED})


def blocks(page: Path) -> list[Block]:
    """The blocks of a page."""
    text = page.read_text(encoding="utf-8")
    return [
        Block(
            page,
            text.count("\n", 0, found.start("language")) + 1,
            found["language"],
            found["mark"] or "",
            (found["note"] or "").strip(),
            textwrap.dedent(found["text"]),
        )
        for found in FENCE.finditer(text)
    ]
