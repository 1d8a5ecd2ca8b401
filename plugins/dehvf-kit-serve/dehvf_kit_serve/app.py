"""The routes: `/v1/models`, `/v1/chat/completions`, plain and streamed, and `/health`."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import time
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from threading import Thread
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from dehvf_kit.data.images import fetch
from dehvf_kit.data.samples import HeldImage, is_url
from dehvf_kit_serve.adapters import Adapter, Limits, refusing
from dehvf_kit_serve.batching import Batches, Job
from dehvf_kit_serve.chat_request import ChatRequest, Refused, read_request
from dehvf_kit_serve.generation import Row

DECODED_AT_ONCE = 2
"""Images that are decoded at the same time: one can take 256 MiB."""
RECEIVING_S = 60
"""Seconds that a request's body may take."""


@dataclass
class Service:
    """What the routes work with. key: what a client must send as its API key; max_bytes: of a request's body."""

    adapters: Mapping[str, Adapter]
    batches: Batches = field(default_factory=Batches)
    limits: Limits = field(default_factory=Limits)
    key: str | None = None
    max_bytes: int = 32 * 2**20
    hosts: tuple[str, ...] = ("127.0.0.1", "localhost")
    started: int = field(default_factory=lambda: int(time.time()))

    def app(self) -> Starlette:
        """The application; `hosts` are the names it answers to, `*` for any."""
        self._coming: set[asyncio.Timeout] = set()
        self._decoding = asyncio.Semaphore(DECODED_AT_ONCE)
        routes = [
            Route("/v1/models", self.models),
            Route("/v1/models/{name:path}", self.model),
            Route("/v1/chat/completions", self.chat, methods=["POST"]),
            Route("/health", self.health),
        ]
        handlers: Any = {Refused: _refused, HTTPException: _not_found, Exception: _failed}
        return Starlette(routes=routes, exception_handlers=handlers, middleware=[Middleware(_KnownHosts, names=self.hosts)])

    def _admit(self, request: Request) -> None:
        """Raises: Refused for a missing or wrong API key."""
        if self.key is None:
            return
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), self.key.encode()):
            raise Refused(401, "the API key is missing or wrong", code="invalid_api_key")

    async def health(self, request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def models(self, request: Request) -> Response:
        self._admit(request)
        return JSONResponse({"object": "list", "data": [self._about(name) for name in self.adapters]})

    async def model(self, request: Request) -> Response:
        self._admit(request)
        return JSONResponse(self._about(self._adapter(request.path_params["name"]).name))

    def _about(self, name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": self.started, "owned_by": "dehvf-kit"}

    def _adapter(self, name: str) -> Adapter:
        if name not in self.adapters:
            raise Refused(404, f"model: there is no '{name}'; served: {', '.join(self.adapters)}", "model", "model_not_found")
        return self.adapters[name]

    async def chat(self, request: Request) -> Response:
        self._admit(request)
        # A page of another origin cannot send this type without asking first, which is not allowed.
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise Refused(415, "the body must be JSON, sent as application/json")
        loop, pieces = asyncio.get_running_loop(), asyncio.Queue[str | None]()

        def post(piece: str | None) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(pieces.put_nowait, piece)

        async with self._place():
            asked = await run_in_threadpool(read_request, await self._body(request))
            adapter = self._adapter(asked.model)
            prompt = await run_in_threadpool(adapter.prompt, asked, self.limits, post)
            asked.messages.clear()  # the images' text, which the answer needs no more
            while prompt.images:
                prompt.pixels.append(await self._pixels(adapter, prompt.images.pop(0)))
            self.batches.add(Job(prompt, lambda: post(None)))
        answer = _Answer(asked, prompt.row, pieces, len(prompt.ids))
        if asked.stream:
            return StreamingResponse(answer.events(), media_type="text/event-stream", headers={"cache-control": "no-store"})
        return await answer.whole(request)

    @contextlib.asynccontextmanager
    async def _place(self) -> AsyncIterator[None]:
        """Inside, a request is one that waits. Raises: Refused where too many do, or the server ends."""
        with self.batches.place():
            try:
                async with asyncio.timeout(None) as until:
                    self._coming.add(until)
                    yield
            except TimeoutError as error:
                if not until.expired():
                    raise
                raise Refused(503, "the server is ending", code="server_ending") from error
            finally:
                self._coming.discard(until)

    def end(self, patience_s: float) -> None:
        """Refuse what has not been asked in full; open answers get `patience_s`, and then an error in OpenAI's form."""
        self.batches.refuse()
        for until in self._coming:
            until.reschedule(0)
        Thread(target=self.batches.close, args=(patience_s,), daemon=True).start()

    async def _pixels(self, adapter: Adapter, image: str) -> Any:
        """What the encoders take of an image, which may have to be fetched. Raises: Refused for one that cannot be read."""
        with refusing():
            given = HeldImage(image, await fetch(image)) if is_url(image) else image
        async with self._decoding:
            return await run_in_threadpool(adapter.pixels, given)

    async def _body(self, request: Request) -> bytes:
        """The body, counted as it arrives. Raises: Refused for one that is too large or too slow."""
        too_large = Refused(413, f"the request has more than {self.max_bytes:,} bytes", code="request_too_large")
        length = request.headers.get("content-length", "")
        if length.isdigit() and int(length) > self.max_bytes:
            raise too_large
        data = bytearray()
        try:
            async with asyncio.timeout(RECEIVING_S):
                async for part in request.stream():
                    data += part
                    if len(data) > self.max_bytes:
                        raise too_large
        except TimeoutError as error:
            raise Refused(408, f"the request took more than {RECEIVING_S} s to arrive") from error
        except ClientDisconnect as error:
            raise Refused(400, "the request ended early") from error
        return bytes(data)


class _Answer:
    """An answer as it comes from the worker: `pieces` gives its text, then None."""

    def __init__(self, asked: ChatRequest, row: Row, pieces: asyncio.Queue[str | None], prompt_tokens: int) -> None:
        self.asked, self.row, self.pieces, self.prompt_tokens = asked, row, pieces, prompt_tokens
        self.facts = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": asked.model}

    async def whole(self, request: Request) -> Response:
        gone = asyncio.ensure_future(_gone(request))
        text = asyncio.ensure_future(self._text())
        try:
            await asyncio.wait([gone, text], return_when=asyncio.FIRST_COMPLETED)
            if not text.done():
                return Response(status_code=499)
        finally:
            gone.cancel()
            if not text.done():
                self.row.cancelled = True
                text.cancel()
        self._refuse_failed()
        message = {"role": "assistant", "content": text.result(), "refusal": None}
        choice = {"index": 0, "message": message, "finish_reason": self.row.finish, "logprobs": None}
        return JSONResponse({**self.facts, "object": "chat.completion", "choices": [choice], "usage": self._usage()})

    async def _text(self) -> str:
        found = []
        while (piece := await self.pieces.get()) is not None:
            found.append(piece)
        return "".join(found)

    def _refuse_failed(self) -> None:
        if self.row.error:
            raise Refused(500, self.row.error)
        if self.row.finish is None or self.row.cancelled:
            raise Refused(503, "the server ended before the answer did", code="server_ending")

    async def events(self) -> AsyncIterator[str]:
        try:
            yield self._event({"role": "assistant", "content": ""})
            while (piece := await self.pieces.get()) is not None:
                yield self._event({"content": piece})
            try:
                self._refuse_failed()
            except Refused as error:
                yield f"data: {json.dumps(error.body())}\n\n"
                return
            yield self._event({}, self.row.finish)
            if self.asked.stream_options is not None and self.asked.stream_options.include_usage:
                yield self._chunk([], usage=self._usage())
            yield "data: [DONE]\n\n"
        finally:  # also where the client is gone
            self.row.cancelled = True

    def _event(self, delta: Mapping[str, Any], finish: str | None = None) -> str:
        return self._chunk([{"index": 0, "delta": delta, "finish_reason": finish, "logprobs": None}])

    def _chunk(self, choices: list[Any], **more: Any) -> str:
        return f"data: {json.dumps({**self.facts, 'object': 'chat.completion.chunk', 'choices': choices, **more})}\n\n"

    def _usage(self) -> dict[str, int]:
        said = len(self.row.tokens)
        return {"prompt_tokens": self.prompt_tokens, "completion_tokens": said, "total_tokens": self.prompt_tokens + said}


class _KnownHosts:
    """Refuses requests under another host name, which a page elsewhere can make a browser send (DNS rebinding)."""

    def __init__(self, app: ASGIApp, names: Sequence[str]) -> None:
        self.app, self.names = app, {name.lower() for name in names}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        given = Headers(scope=scope).get("host", "").lower()
        name = given[1:].partition("]")[0] if given.startswith("[") else given.partition(":")[0]  # [::1]:8000
        if "*" in self.names or name in self.names:
            await self.app(scope, receive, send)
            return
        refused = Refused(400, f"Host: there is no '{name[:100]}' here; the server answers to {', '.join(sorted(self.names))}")
        await (await _refused(Request(scope), refused))(scope, receive, send)


async def _gone(request: Request) -> None:
    """Returns when the client has hung up."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _refused(request: Request, error: Refused) -> Response:
    headers = {"retry-after": "1"} if error.status in (429, 503) else {"www-authenticate": "Bearer"} if error.status == 401 else {}
    return JSONResponse(error.body(), error.status, headers)


async def _failed(request: Request, error: Exception) -> Response:
    """What nobody foresaw; starlette raises it again, so that the server logs it."""
    return await _refused(request, Refused(500, "the server failed; its log says why"))


async def _not_found(request: Request, error: HTTPException) -> Response:
    return await _refused(request, Refused(error.status_code, f"{request.method} {request.url.path}: {error.detail}"))
