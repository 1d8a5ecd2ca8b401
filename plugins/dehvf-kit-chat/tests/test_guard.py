"""What a page may be asked over HTTP. The files that nobody uploaded are the test's own, and harmless."""

from __future__ import annotations

import asyncio
import base64
import functools
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

pytest.importorskip("gradio", reason="needs the extra `chat`")
# ruff: noqa: E402

from chat_helpers import LIMIT, Browser, Page, png
from dehvf_kit_chat.guard import COOKIE, MAX_BODY
from dehvf_kit_chat.uploads import INCOMING, KEPT, KEPT_SIZES, Uploads

from dehvf_kit.errors import DataError


@pytest.fixture(scope="module")
def page() -> Page:
    return Page()


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """An image that nobody uploaded."""
    (tmp_path / "private").mkdir()
    file = tmp_path / "private" / "secret.png"
    file.write_bytes(png("green"))
    return file


def test_an_uploaded_image_reaches_the_answer_and_the_preview(page: Page) -> None:
    browser = page.browser()
    sent = browser.upload(png("red"), "../../my red.png")
    assert sent.status_code == 200 and len(sent.json()["id"]) == 43
    cookie = sent.headers["set-cookie"].lower()
    assert "httponly" in cookie and "samesite=strict" in cookie
    answer, _, fault, *_ = browser.call(page.functions["reply"], "what?", sent.json()["id"], 0, None)
    assert (answer, fault) == ("my red.png (8, 8) (255, 0, 0)", "")
    (preview,) = browser.call(page.functions["look"], sent.json()["id"])
    assert str(preview).startswith("<img alt='my red.png' src='data:image/png;base64,")


def names(secret: Path) -> list[str]:
    """Texts that a client may send in place of an id."""
    data = "data:image/png;base64," + base64.b64encode(secret.read_bytes()).decode()
    return [str(secret), secret.as_uri(), secret.name, f"./{secret.name}", "http://127.0.0.1:9/a.png", data, "x" * 43, " "]


@pytest.mark.parametrize("function", ["reply", "look"])
def test_a_text_that_is_no_id_opens_nothing(page: Page, secret: Path, monkeypatch: pytest.MonkeyPatch, function: str) -> None:
    monkeypatch.chdir(secret.parent)
    browser = page.browser()
    browser.upload(png("red"))
    for name in names(secret):
        data = ("what?", name, 0, None) if function == "reply" else (name,)
        assert "does not hold that image" in str(browser.call(page.functions[function], *data)), name
    assert all(image.name != secret.name for asked in page.speaker.asked for image in asked[1])


def test_a_file_of_gradio_is_refused_in_every_function(page: Page, secret: Path) -> None:
    browser = page.browser()
    asked = len(page.speaker.asked)
    meta = {"meta": {"_type": "gradio.FileData"}}
    for path in names(secret):
        for file in ({"path": path, **meta}, {"url": path, "path": path, **meta}, [{"path": path, **meta}], [path]):
            for name, number in page.functions.items():
                for place in range(4):
                    data: list[Any] = ["what?", "", 0, None] if name == "reply" else [""]
                    data[min(place, len(data) - 1)] = file
                    assert browser.join(number, *data).status_code == 422
    assert browser.join(page.functions["look"], "", event_data={"path": str(secret), **meta}).status_code == 200
    assert len(page.speaker.asked) == asked


def test_an_id_is_good_for_its_session_alone(page: Page) -> None:
    owner, other = page.browser(), page.browser()
    id = owner.upload(png("red")).json()["id"]
    other.upload(png("blue"))
    for browser in (other, page.browser()):
        assert "does not hold that image" in str(browser.call(page.functions["look"], id))
    forged = page.browser(cookie=f"{COOKIE}=chosen")
    assert COOKIE in forged.upload(png("blue")).headers["set-cookie"]
    assert "does not hold" in str(forged.call(page.functions["look"], id))
    assert "<img" in str(owner.call(page.functions["look"], id))


def test_several_images_are_each_of_this_session_and_no_more_than_allowed(page: Page) -> None:
    browser, other = page.browser(), page.browser()
    red, blue = (browser.upload(png(colour), f"{colour}.png").json()["id"] for colour in ("red", "blue"))
    foreign = other.upload(png("green")).json()["id"]
    answer, *_ = browser.call(page.functions["reply"], "what?", f"{red} {blue}", 0, None)
    assert answer == "red.png (8, 8) (255, 0, 0); blue.png (8, 8) (0, 0, 255)"
    assert str(browser.call(page.functions["look"], f"{blue} {red}")).count("<img") == 2
    asked = len(page.speaker.asked)
    unknown = "does not hold that image"
    for ids, says in ((f"{red} {foreign}", unknown), (f"{red}  {blue}", unknown), (" ".join([red] * 9), "at most 8 images")):
        assert says in str(browser.call(page.functions["reply"], "what?", ids, 0, None))
        assert says in str(browser.call(page.functions["look"], ids))
    assert len(page.speaker.asked) == asked
    for forged in ("[]", 0, [["asked", "said", ""]]):
        assert browser.join(page.functions["reply"], "what?", red, 0, forged).status_code == 422, "the server keeps conversations"


@pytest.mark.parametrize("prefix", ["", "/gradio_api"])
def test_addresses_that_gradio_would_serve_are_closed(page: Page, secret: Path, prefix: str) -> None:
    browser = page.browser()
    file = str(secret)
    gets = [f"/file={file}", f"/file/{file}", f"/proxy={page.url}", "/info", "/config", "/openapi.json", "/runs", "/token"]
    gets += ["/monitoring", "/deep_link", "/upload_progress?upload_id=a", "/app_id", "/dev/reload", "/vibe-code", "/mcp"]
    gets += ["/custom_component/0/client/component/index.js", "/queue/status", "/call/reply/0", "/stream/a/0/0/playlist.m3u8"]
    gets += [f"/static/{file}", "/static/../../secret.png", "/assets//secret.png", "/file%3Dsecret.png"]
    for path in gets:
        assert browser.http.get(prefix + path).status_code == 404, path
    call = {"data": ["what?", file, 0], "fn_index": 0, "session_hash": browser.hash}
    posts = ["/run/reply", "/api/reply", "/run/predict", "/call/reply", "/call/v2/reply", "/component_server", "/login"]
    posts += ["/process_recording", "/stream/a", "/vibe-edit", "/queue/join/"] + ([] if prefix == "" else ["/upload"])
    for path in posts:
        assert browser.http.post(prefix + path, json=call).status_code == 404, path
        assert browser.http.post(prefix + path, files={"files": ("a.png", png("red"))}).status_code == 404, path
    assert browser.http.put("/upload").status_code == browser.http.options("/upload").status_code == 404


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://elsewhere.example"},
        {"origin": "http://127.0.0.1:1"},
        {"origin": "null"},
        {"origin": ""},
        {"host": "elsewhere.example"},
        {"host": "127.0.0.1.elsewhere.example"},
        {"host": "elsewhere.example", "origin": "http://elsewhere.example"},
    ],
)
def test_other_pages_are_refused_before_anything_is_kept(page: Page, headers: dict[str, str]) -> None:
    browser = page.browser(**headers)
    kept = len(page.uploads)
    assert browser.upload(png("red")).status_code == 403
    assert browser.join(page.functions["reply"], "what?", "", 0, None).status_code == 403
    assert browser.http.get("/").status_code == 403
    assert len(page.uploads) == kept


def test_this_page_under_both_its_names(page: Page) -> None:
    for host in (f"127.0.0.1:{page.port}", f"localhost:{page.port}", "localhost:9999"):
        browser = page.browser(host=host, origin=f"http://{host}")
        assert browser.http.get("/").status_code == 200
        assert browser.upload(png("red")).status_code == 200
    headers = browser.http.get("/").headers
    assert "connect-src 'self'" in headers["content-security-policy"]
    assert headers["cross-origin-resource-policy"] == "same-origin"


def test_too_much_is_refused_before_it_is_read(page: Page) -> None:
    """Once by what the client announces, with no body sent; once by what arrives, where nothing is announced."""
    with socket.create_connection(("127.0.0.1", page.port), timeout=20) as plain:
        head = f"POST /upload HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {LIMIT + 1}\r\n\r\n"
        plain.sendall(head.encode())
        assert plain.recv(99).startswith(b"HTTP/1.1 413")
    sent = []

    def endless() -> Iterator[bytes]:
        for number in range(10_000):
            sent.append(number)
            yield b"x" * 1024
            time.sleep(0.001)

    kept = len(page.uploads)
    try:
        refused = page.browser().http.post("/upload", content=endless())
        assert refused.status_code == 413 and "--max-upload-mb" in refused.text
    except httpx.TransportError:  # the connection was closed while the client was still sending
        pass
    assert len(sent) < 10_000 and len(page.uploads) == kept
    assert page.browser().upload(b"x" * LIMIT).status_code == 200
    assert page.browser().join(0, "x" * MAX_BODY, "", 0).status_code == 413


def test_no_more_images_are_kept_than_announced() -> None:
    async def fill(uploads: Uploads, size: int, times: int) -> list[tuple[str, str]]:
        session, found = "", []
        for _ in range(times):
            session, id = await uploads.receive(session, "a", size, chunks(b"x" * size))
            found.append((session, id))
        return found

    async def chunks(*parts: bytes) -> Any:
        for part in parts:
            yield part

    small, large = Uploads(1), Uploads(LIMIT / 2**20)
    first, *_, last = asyncio.run(fill(small, 1, KEPT + 1))
    assert len(small) == KEPT and small.find(*last).data == b"x"
    with pytest.raises(DataError, match="newer ones replace the oldest"):
        small.find(*first)
    asyncio.run(fill(large, LIMIT, KEPT_SIZES + 3))
    assert len(large) == KEPT_SIZES

    async def together(number: int) -> list[Any]:
        done = asyncio.Event()

        async def slow() -> Any:
            yield b"x"
            await done.wait()

        running = [asyncio.create_task(small.receive("", "a", 0, slow())) for _ in range(number)]
        await asyncio.sleep(0)
        done.set()
        return await asyncio.gather(*running, return_exceptions=True)

    *received, refused = asyncio.run(together(INCOMING + 1))
    assert all(isinstance(one, tuple) for one in received) and "being uploaded already" in str(refused)
    assert isinstance(asyncio.run(together(1))[0], tuple), "places are given back"


def test_calls_that_are_no_calls(page: Page) -> None:
    browser = page.browser()
    for number, data in ((99, ["a"]), (page.functions["reply"], ["a"]), (page.functions["look"], ["a", "b"])):
        assert browser.join(number, *data).status_code == 422
    for temperature in (-1, 9, True, "", None):
        assert browser.join(page.functions["reply"], "what?", "", temperature, None).status_code == 422
    for body in (b"", b"[]", b"{", b"\xff", b"[" * 10_000, b'{"data":["\\ud83d"],"fn_index":0,"session_hash":"a"}'):
        assert browser.http.post("/gradio_api/queue/join", content=body).status_code == 422
    assert browser.http.post("/gradio_api/cancel", json={"event_id": None}).status_code == 422


SERVE = """
import sys
sys.path[:0] = sys.argv[1:]
from chat_helpers import Pixels
from dehvf_kit_chat.page import chat_page
from dehvf_kit_chat.server import address, listen, serve
from dehvf_kit_chat.uploads import Uploads
bound, uploads = listen(0), Uploads(1)
print(address(bound), flush=True)
serve(chat_page([Pixels()], uploads), bound, uploads)
"""


@pytest.mark.nightly
@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGKILL])
def test_nothing_is_written_to_disk(tmp_path: Path, end: signal.Signals) -> None:
    """However the server ends; its temporary files would be in the folder that TMPDIR names."""
    path = [str(Path(__file__).parent), *sys.path]
    process = subprocess.Popen(
        [sys.executable, "-c", SERVE, *path],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=None if end == signal.SIGKILL else functools.partial(signal.signal, end, signal.SIG_DFL),  # ignored under nohup
    )
    assert process.stdout is not None
    line = process.stdout.readline().strip()
    if not line:
        pytest.fail(process.communicate()[1])
    browser = Browser(line)
    id = browser.upload(png("red")).json()["id"]
    answer, *_ = browser.call(0, "what?", id, 0, None)
    assert answer == "image.png (8, 8) (255, 0, 0)"
    assert browser.upload(b"no image").status_code == 200
    kept = [file for file in tmp_path.rglob("*") if file.is_file()]
    process.send_signal(end)
    _, said = process.communicate(timeout=30)
    assert "Traceback" not in said, said
    assert kept == [file for file in tmp_path.rglob("*") if file.is_file()] == []
