"""What reaches the page: requests of this page's own scripts, with plain values. Everything else is refused before gradio sees it.

Gradio opens the files that a request names, fetches addresses and serves folders. None of that is needed here: images come in by
`POST /upload`, and questions name them by id (`uploads.py`).
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Annotated, Any
from urllib.parse import parse_qs

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.datastructures import Headers
from starlette.requests import cookie_parser
from starlette.responses import JSONResponse, PlainTextResponse, Response

from dehvf_kit_chat.uploads import TooLarge, TooMany, Uploads

HOSTS = ("127.0.0.1", "localhost")
COOKIE = "dehvf_kit_chat"
MAX_BODY = 2**20  # bytes of a request that is not an upload
UPLOAD_S = 120  # seconds that an upload may take
_NAME = r"[\w@+-][\w@.+-]*"
GET = re.compile(
    rf"/|/theme\.css|/favicon\.ico|/manifest\.json|/(assets|static|svelte)(/{_NAME})+"
    rf"|/gradio_api/(startup-events|queue/data|heartbeat/{_NAME})",
    re.ASCII,
)
# Whatever the page's scripts ask for, the browser fetches from here alone.
POLICY = (
    "default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "connect-src 'self' data: blob:; frame-ancestors 'none'"
)
HEADERS = [
    (b"content-security-policy", POLICY.encode()),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
]
_Hash = Annotated[str, Field(pattern=r"^\w{1,64}$")]
_Index = Annotated[int, Field(ge=0, lt=2**31)]


class _Body(BaseModel):
    """What is passed on of a request to gradio; what else a client sends is not."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)


class Join(_Body):
    """A call of the page: texts and numbers alone."""

    session_hash: _Hash
    fn_index: _Index
    data: Annotated[list[str | Annotated[float, Field(ge=-1e6, le=1e6)] | None], Field(max_length=16)]
    trigger_id: _Index | None = None


class Cancel(_Body):
    """The end of a call."""

    session_hash: _Hash
    fn_index: _Index
    event_id: _Hash


class Reset(_Body):
    """The end of a call that answers in pieces."""

    event_id: _Hash


BODIES = {"/gradio_api/queue/join": Join, "/gradio_api/cancel": Cancel, "/gradio_api/reset": Reset}


Value = str | float | None
Takes = Callable[[Value], bool]


class Guard:
    """An ASGI application in front of another one.

    Args:
        app: what is protected.
        uploads: where images go.
        inputs: for each function of the page, what tells whether a value is one that it takes.
    """

    def __init__(self, app: Any, uploads: Uploads, inputs: Mapping[int, Sequence[Takes]]) -> None:
        self.app, self.uploads, self.inputs = app, uploads, inputs

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return

        async def with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), *HEADERS]
            await send(message)

        try:
            answer = foreign(Headers(scope=scope))
            if answer is not None:
                await _read_away(receive)
            else:
                answer = await self._answer(scope, receive, with_headers)
        except _Gone:
            return
        if answer is not None:
            await answer(scope, receive, with_headers)

    async def _answer(self, scope: Any, receive: Any, send: Any) -> Response | None:
        """The guard's own answer, or None where the page has answered."""
        if (scope["method"], scope["path"]) == ("POST", "/upload"):
            return await self._upload(scope, receive)
        if scope["method"] == "POST" and scope["path"] in BODIES:
            return await self._checked(BODIES[scope["path"]], scope, receive, send)
        if scope["method"] == "GET" and GET.fullmatch(scope["path"]):
            await self.app(scope, receive, send)
            return None
        await _read_away(receive)
        return refusal("the page has no such address", 404)

    def _taken(self, call: Join) -> bool:
        takes = self.inputs.get(call.fn_index)
        return (
            takes is not None
            and len(takes) == len(call.data)
            and all(fits(value) for fits, value in zip(takes, call.data, strict=True))
        )

    async def _upload(self, scope: Any, receive: Any) -> Response:
        headers = Headers(scope=scope)
        session = cookie_parser(headers.get("cookie", "")).get(COOKIE, "")
        name = parse_qs(scope["query_string"].decode("latin-1")).get("name", [""])[0]
        length = headers.get("content-length", "0")
        announced = int(length) if length.isdecimal() else 0
        try:
            async with asyncio.timeout(UPLOAD_S):
                session, id = await self.uploads.receive(session, name, announced, _chunks(receive))
        except TooLarge as error:
            return refusal(str(error), 413)
        except TooMany as error:
            return refusal(str(error), 503)
        except TimeoutError:
            return refusal(f"an upload takes {UPLOAD_S} seconds at most", 408)
        answer = JSONResponse({"id": id})
        answer.set_cookie(COOKIE, session, httponly=True, samesite="strict")
        return answer

    async def _checked(self, kind: type[_Body], scope: Any, receive: Any, send: Any) -> Response | None:
        raw = bytearray()
        async for chunk in _chunks(receive):
            if len(raw) + len(chunk) > MAX_BODY:
                return refusal(f"a request has at most {MAX_BODY:,} bytes", 413)
            raw += chunk
        try:
            body = kind.model_validate_json(bytes(raw))
        except ValidationError:
            return refusal("a call of the page holds texts and numbers alone", 422)
        if isinstance(body, Join) and not self._taken(body):
            return refusal("the page has no function of these values", 422)
        await self.app(*_replaced(scope, receive, body.model_dump_json().encode()), send)
        return None


def foreign(headers: Headers) -> Response | None:
    """A refusal for requests of other pages: another host name (DNS rebinding), another origin, another site."""
    hosts, origins = headers.getlist("host"), headers.getlist("origin")
    if len(hosts) != 1 or not re.fullmatch(rf"({'|'.join(map(re.escape, HOSTS))})(:[0-9]+)?", hosts[0]):
        return refusal(f"this page answers under {' and '.join(HOSTS)} alone", 403)
    if any(origin != f"http://{hosts[0]}" for origin in origins):
        return refusal("another page has no access to this one", 403)
    return None


def refusal(reason: str, status: int) -> Response:
    """Says why and closes the connection, so that the rest of the request is not read."""
    return PlainTextResponse(reason, status, {"connection": "close"})


class _Gone(Exception):
    """The client went away in the middle of its request."""


async def _chunks(receive: Any) -> AsyncIterator[bytes]:
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _Gone
        yield message.get("body", b"")
        if not message.get("more_body", False):
            return


async def _read_away(receive: Any) -> None:
    """Read a body that nobody wants: a connection closed with bytes unread may lose the answer on its way to the client."""
    size = 0
    async for chunk in _chunks(receive):
        size += len(chunk)
        if size > MAX_BODY:
            return


def _replaced(scope: Any, receive: Any, body: bytes) -> tuple[Any, Any]:
    """The request with another JSON body."""
    dropped = (b"content-length", b"content-type", b"transfer-encoding", b"content-encoding")
    headers = [(name, value) for name, value in scope["headers"] if name.lower() not in dropped]
    headers += [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def once() -> Any:
        return messages.pop() if messages else await receive()

    return {**scope, "headers": headers}, once
