"""The page on a port of this machine, for this machine alone."""

from __future__ import annotations

import errno
import socket
import webbrowser
from typing import Any

import gradio as gr
import uvicorn
from fastapi import FastAPI

from dehvf_kit.errors import DehvfError
from dehvf_kit_chat.guard import Guard, Takes
from dehvf_kit_chat.style import CSS, theme
from dehvf_kit_chat.uploads import Uploads

HOST = "127.0.0.1"
PATIENCE_S = 1  # what open connections get when the server ends


def listen(port: int) -> socket.socket:
    """A socket on 127.0.0.1; port 0: any that is free. Raises: DehvfError where the port is taken or not allowed."""
    bound = socket.socket()
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((HOST, port))
        bound.listen()
    except OSError as error:
        bound.close()
        reason = "is in use" if error.errno == errno.EADDRINUSE else f"cannot be used: {error.strerror}"
        raise DehvfError(f"port {port} {reason}; name another with --port, or let --port 0 find one") from error
    return bound


def address(bound: socket.socket) -> str:
    """What a browser opens."""
    return f"http://{HOST}:{bound.getsockname()[1]}"


def serve(page: gr.Blocks, bound: socket.socket, uploads: Uploads, open_browser: bool = False) -> None:
    """Answer requests until ctrl-C, SIGTERM or SIGHUP.

    Args:
        page: what `chat_page` made.
        bound: what `listen` returned.
        uploads: the images that the page's functions look up.
        open_browser: whether to open the page.
    """
    config = uvicorn.Config(
        application(page, uploads), log_level="critical", lifespan="on", ws="none", timeout_graceful_shutdown=PATIENCE_S
    )
    if open_browser:
        webbrowser.open(address(bound))
    try:
        uvicorn.Server(config).run(sockets=[bound])
    except KeyboardInterrupt:  # uvicorn has ended by then, and raises it again
        pass
    finally:
        bound.close()


def application(page: gr.Blocks, uploads: Uploads) -> Guard:
    """The page behind its guard."""
    app = gr.mount_gradio_app(
        FastAPI(docs_url=None, redoc_url=None, openapi_url=None),
        page,
        path="",
        server_name=HOST,
        footer_links=[],
        run_history=False,
        show_error=True,
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
        theme=theme(),
        css=CSS,
    )
    # A function of the page's scripts alone, without one of Python, is nothing to call.
    called = {number: function for number, function in page.fns.items() if function.fn is not None}
    return Guard(app, uploads, {number: [_takes(part) for part in function.inputs] for number, function in called.items()})


def _takes(part: Any) -> Takes:
    """A slider takes a number in its range, what the server keeps nothing, every other part a text or nothing."""
    if isinstance(part, gr.State):
        return lambda value: value is None
    if isinstance(part, gr.Slider):
        return lambda value: isinstance(value, float) and part.minimum <= value <= part.maximum
    return lambda value: value is None or isinstance(value, str)
