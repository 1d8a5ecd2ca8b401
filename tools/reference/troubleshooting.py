"""The troubleshooting pages beside the code: which messages have no cure there, and which are no longer in the code.

A page lists messages as bullets in double backticks, `…` for what varies; the paragraph below a list is the cure.
"""

from __future__ import annotations

import re
from pathlib import Path

from tools.reference.messages import Message, messages, normal

BULLET = re.compile(r"^- `` ?(.+?) ?``$", re.MULTILINE)


def told(pages: Path) -> dict[str, str]:
    """Messages on the pages of a folder: their normal form, and how they stand there."""
    texts = [text for page in sorted(pages.glob("*.md")) for text in BULLET.findall(page.read_text(encoding="utf-8"))]
    return {normal(text): text for text in texts}


def missing(pages: Path) -> list[Message]:
    """Messages of the code that stand on no page, each once."""
    known = told(pages)
    found: dict[str, Message] = {}
    for message in messages():
        found.setdefault(normal(message.text), message)
    return [message for text, message in found.items() if text not in known]


def stale(pages: Path) -> list[str]:
    """Messages on the pages that the code no longer says."""
    said = {normal(message.text) for message in messages()}
    return [text for key, text in told(pages).items() if key not in said]
