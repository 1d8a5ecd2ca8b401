"""Mutated requests to a page: an answer or a refusal, never a traceback, and never an image that nobody uploaded."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator

import httpx
import pytest
from fuzz.mutations import CHANGES, TEXT_CHANGES, TEXTS, cut, mutated
from fuzz.settings import share
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("gradio", reason="needs the extra `chat`")
# ruff: noqa: E402

from chat_helpers import Browser, Page, png

pytestmark = pytest.mark.scaled

METHODS = ["GET", "POST", "PUT", "HEAD", "DELETE"]
ANSWERS = {200, 403, 404, 413, 422, 503}
PATHS = [
    "upload",
    "gradio_api",
    "queue",
    "join",
    "file",
    "call",
    "reply",
    "static",
    "assets",
    "..",
    ".",
    "",
    "data",
    "run",
    "cancel",
]
BODIES = {"join": {"event_data": {}, "trigger_id": 7}, "cancel": {"event_id": "a"}}
FILE = {"path": "a.png", "url": "b.png", "orig_name": "c.png", "meta": {"_type": "gradio.FileData"}}
_made: list[tuple[Page, Browser, str]] = []


def page() -> tuple[Page, Browser, str]:
    """One page for all examples, and the id of its one image."""
    if not _made:
        made = Page()
        browser = made.browser()
        _made.append((made, browser, browser.upload(png("red"), "mine.png").json()["id"]))
    return _made[0]


@pytest.fixture(autouse=True)
def quiet(capfd: pytest.CaptureFixture[str]) -> Iterator[None]:
    """After each test the page still answers, and nothing was printed."""
    yield
    made, browser, _ = page()
    browser.hash, id = secrets.token_hex(6), browser.upload(png("red"), "mine.png").json()["id"]
    answer, _, fault, *_ = browser.call(made.functions["reply"], "still there?", id, 0, None)
    assert (answer, fault) == ("mine.png (8, 8) (255, 0, 0)", "")
    assert all(image.name == "mine.png" for _, images, _ in made.speaker.asked for image in images)
    printed = capfd.readouterr()
    assert "Traceback" not in printed.err + printed.out


@share(0.5)
@given(st.sampled_from(sorted(BODIES)), st.sampled_from(["reply", "look"]), st.booleans(), CHANGES, TEXT_CHANGES)
def test_calls(path: str, function: str, file: bool, changes: list, text_changes: list) -> None:
    made, browser, id = page()
    data = ["what?", FILE if file else id, 0.5, None] if function == "reply" else [FILE if file else id]
    call = {"data": data, "fn_index": made.functions[function], "session_hash": browser.hash, **BODIES[path]}
    body = cut(json.dumps(mutated(call, changes)).encode(), text_changes)
    answer = browser.http.post(f"/gradio_api/{'queue/' if path == 'join' else ''}{path}", content=body)
    assert answer.status_code in ANSWERS
    if answer.status_code == 200 and path == "join":
        assert not any(isinstance(value, dict | list) for value in json.loads(body)["data"])


@share(0.25)
@given(st.sampled_from(METHODS), st.lists(st.sampled_from(PATHS), max_size=5), st.binary(max_size=40))
def test_addresses(method: str, parts: list[str], body: bytes) -> None:
    _, browser, _ = page()
    # As the client sends it: a path that begins with two slashes is no host.
    address = browser.http.base_url.copy_with(raw_path=("/" + "/".join(parts)).encode())
    assert browser.http.request(method, address, content=body).status_code in ANSWERS


@pytest.mark.nightly
@share(0.25)
@given(st.sampled_from(["host", "origin", "cookie", "content-type", "x-forwarded-host"]), st.sampled_from(TEXTS), st.text())
def test_headers_and_names(header: str, value: str, name: str) -> None:
    made, browser, id = page()
    plain = value.encode("ascii", "ignore").decode().translate({0: None, 10: None}).strip()
    try:
        answer = browser.upload(b"x", name.encode("utf-8", "replace").decode(), **{header: plain})
    except httpx.LocalProtocolError:  # no HTTP, so nothing was sent
        return
    assert answer.status_code in ANSWERS | {400}
    assert "does not hold" in str(Browser(made.url).call(made.functions["look"], id))
