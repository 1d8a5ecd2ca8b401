"""uvicorn, ended so that every open request gets an answer or an error in OpenAI's form."""

from __future__ import annotations

import socket
from types import FrameType
from typing import Any

import uvicorn

from dehvf_kit_serve.app import Service

SENDING_S = 15
"""Seconds, after the patience with open answers, in which clients take what was sent to them."""


class Server(uvicorn.Server):
    """Serves until it is ended. patience_s: what open answers then get."""

    def __init__(self, service: Service, patience_s: float) -> None:
        self.service, self.patience_s = service, patience_s
        settings: Any = {"log_level": "warning", "lifespan": "off", "ws": "none", "server_header": False}
        super().__init__(uvicorn.Config(service.app(), timeout_graceful_shutdown=int(patience_s) + SENDING_S, **settings))

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal ends the server, a second one its patience, a third one waits for nobody."""
        if self.should_exit and self.patience_s:
            self.patience_s = 0
            self.service.end(0)
        else:
            super().handle_exit(sig, frame)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.service.end(self.patience_s)
        await super().shutdown(sockets)
