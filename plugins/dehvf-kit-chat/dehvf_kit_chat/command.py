"""`dehvf-kit chat`: a page on this machine that asks one adapter, or two side by side."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from dehvf_kit.cli.arguments import split_words
from dehvf_kit.cli.console import waiting
from dehvf_kit.errors import DehvfError


def chat(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="ADAPTER [ADAPTER] [KEY=VALUE]...",
            help="One adapter's folder, or two to compare, and fields to change in both recipes.",
            show_default=False,
        ),
    ],
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="Where to listen; 0: any free port.")] = 7860,
    max_upload_mb: Annotated[float, typer.Option("--max-upload-mb", min=0.01, max=1000, help="Largest image file, in MiB.")] = 20,
    open_browser: Annotated[bool, typer.Option("--open", help="Open the page in the browser too.")] = False,
) -> None:
    """Load the adapters, serve the page and print its address.

    Raises: DehvfError without gradio or for a taken port, AdapterError for what is not an adapter.
    """
    if find_spec("gradio") is None:
        raise DehvfError("the chat page needs gradio; pip install 'dehvf-kit[chat]'")
    named, overrides = split_words(words)
    folders = [Path(word) for word in named]
    if len(folders) not in (1, 2):
        raise DehvfError(f"{len(folders)} adapters were named; the page shows one, or two side by side")
    from dehvf_kit_chat.server import address, listen, serve

    bound = listen(port)
    adapters = []
    for folder in folders:
        with waiting(f"Loading {folder}", plain=True):
            from dehvf_kit_chat.answering import load_answerer

            adapters.append(load_answerer(folder, overrides))
    from dehvf_kit_chat.page import chat_page
    from dehvf_kit_chat.uploads import Uploads

    print(f"{address(bound)}  (this machine alone; ctrl-C ends it)", flush=True)
    uploads = Uploads(max_upload_mb)
    serve(chat_page(adapters, uploads), bound, uploads, open_browser)
