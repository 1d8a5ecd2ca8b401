"""The page on a port of this machine, for this machine alone."""

from __future__ import annotations

import errno
import socket
import webbrowser
from typing import Any

import gradio as gr
import uvicorn
from fastapi import FastAPI
from starlette.middleware.trustedhost import TrustedHostMiddleware

from dehvf_kit.errors import DehvfError
from dehvf_kit_chat.style import CSS, theme

HOST = "127.0.0.1"
# Whatever the page's scripts ask for, the browser fetches from here alone.
POLICY = (
    "default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "connect-src 'self' data: blob:; frame-ancestors 'none'"
)
HEADERS = [(b"content-security-policy", POLICY.encode()), (b"referrer-policy", b"no-referrer")]
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


def serve(page: gr.Blocks, bound: socket.socket, max_upload_mb: float, open_browser: bool = False) -> None:
    """Answer requests until ctrl-C or SIGTERM. Files of more than `max_upload_mb` MiB are refused."""
    app = _application(page, max_upload_mb)
    config = uvicorn.Config(app, log_level="critical", lifespan="on", timeout_graceful_shutdown=PATIENCE_S)
    if open_browser:
        webbrowser.open(address(bound))
    try:
        uvicorn.Server(config).run(sockets=[bound])
    except KeyboardInterrupt:  # uvicorn has ended by then, and raises it again
        pass
    finally:
        bound.close()


class _WithHeaders:
    """Adds the policy to every answer."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), *HEADERS]
            await send(message)

        await self.app(scope, receive, with_headers)


def _application(page: gr.Blocks, max_upload_mb: float) -> FastAPI:
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(_WithHeaders)
    # A page elsewhere whose name was made to point here gets nothing.
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"])
    return gr.mount_gradio_app(
        app,
        page,
        path="",
        server_name=HOST,
        footer_links=[],
        run_history=False,
        show_error=True,
        max_file_size=int(max_upload_mb * 2**20),
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
        theme=theme(),
        css=CSS,
    )
