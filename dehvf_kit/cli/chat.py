"""`dehvf-kit chat`: a page on this machine that asks one adapter, or several side by side."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from dehvf_kit.cli.console import quiet_transformers, waiting
from dehvf_kit.errors import DehvfError


def run(words: Sequence[str], port: int, max_upload_mb: float, open_browser: bool) -> None:
    """Load, serve, say where. Raises: DehvfError without gradio or for a taken port, AdapterError for what is no adapter."""
    if find_spec("gradio") is None:
        raise DehvfError("the chat page needs gradio; pip install 'dehvf-kit[chat]'")
    folders = [Path(word) for word in words if "=" not in word]
    overrides = [word for word in words if "=" in word]
    if len(folders) not in (1, 2):
        raise DehvfError(f"{len(folders)} adapters were named; the page shows one, or two side by side")
    quiet_transformers()
    from dehvf_kit_chat.server import address, listen, serve

    bound = listen(port)
    adapters = []
    for folder in folders:
        with waiting(f"Loading {folder}", plain=True):
            from dehvf_kit_chat.answering import load_answerer

            adapters.append(load_answerer(folder, overrides))
    from dehvf_kit_chat.page import chat_page

    print(f"{address(bound)}  (this machine alone; ctrl-C ends it)", flush=True)
    serve(chat_page(adapters), bound, max_upload_mb, open_browser)
