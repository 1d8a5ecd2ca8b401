"""The page as people meet it: `dehvf-kit chat` as a process of its own, in a real headless Chromium."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Thread

import pytest
from bad_files.image_cases import png
from chat_helpers import Pixels, Speaker
from helpers import LAYERS, VISION_LAYERS
from PIL import Image

pytest.importorskip("gradio", reason="needs the extra `chat`")
# ruff: noqa: E402
sync_api = pytest.importorskip("playwright.sync_api", reason="needs the extra `test`, which brings playwright")

from dehvf_kit_chat.page import chat_page
from dehvf_kit_chat.server import address, listen, serve
from dehvf_kit_chat.uploads import Uploads

pytestmark = pytest.mark.nightly

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
CHROMIUM = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
QUESTION = "what colour is it ?"
WAIT_MS = 20_000
PACE_MS = 500  # gradio 6.31.0 never delivers what is queued in the milliseconds in which the last answer's stream closes

if CHROMIUM is None:
    pytest.skip("needs a Chromium: apt install chromium, or say where it is in CHROMIUM", allow_module_level=True)


@pytest.fixture(scope="module")
def server(adapter: Path, blind: Path) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """The page of two adapters on a free port, 20 KiB a picture."""
    words = [sys.executable, "-m", "dehvf_kit", "chat", adapter, blind, "--port", "0", "--max-upload-mb", "0.02"]
    process = subprocess.Popen([str(word) for word in words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    line = process.stdout.readline()
    found = re.match(r"http://127\.0\.0\.1:\d+", line)
    if found is None:
        pytest.fail(f"no address: {line!r} {process.communicate()[1]}")
    yield found.group(), process
    if process.poll() is None:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def browser() -> Iterator[sync_api.Browser]:
    with sync_api.sync_playwright() as play:
        # No sandbox: test machines run as root. No other host: names lead nowhere.
        options = ["--no-sandbox", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"]
        browser = play.chromium.launch(executable_path=CHROMIUM, args=options)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: sync_api.Browser, server: tuple[str, subprocess.Popen[str]]) -> Iterator[sync_api.Page]:
    """The page, opened; afterwards, that nobody else was asked for anything."""
    page = browser.new_page(viewport={"width": 1280, "height": 1000})
    page.set_default_timeout(WAIT_MS)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(server[0])
    page.locator("#ask").wait_for()
    yield page
    elsewhere = [url for url in asked if not url.startswith((server[0], "data:", "blob:"))]
    page.close()
    assert asked and not elsewhere, f"requests that left this machine: {elsewhere}"


def upload(page: sync_api.Page, file: Path) -> None:
    """Hand an image over, at the pace of a person."""
    page.wait_for_timeout(PACE_MS)
    page.locator("#image input[type=file]").set_input_files(file)


def ask(page: sync_api.Page, question: str) -> None:
    """Ask, at the pace of a person."""
    page.wait_for_timeout(PACE_MS)
    page.locator("#question textarea").fill(question)
    page.locator("#ask").click()


def answered(page: sync_api.Page, number: int) -> str:
    """Wait for a text in the answer of an adapter, and return the text that ended the wait."""
    return page.wait_for_function(f"document.querySelector('#adapter{number} textarea').value.trim()").json_value()


def test_upload_ask_answer_and_what_was_read(page: sync_api.Page, world: Path, tmp_path: Path) -> None:
    upload(page, world / "train0.png")
    page.locator("#preview img").wait_for()
    ask(page, QUESTION)
    assert answered(page, 0) and answered(page, 1)
    page.locator("#depths0 svg").first.wait_for()
    assert page.locator("#depths0 svg").count() == 2, "keys and values"
    last = page.locator("#depths0 rect title").last.text_content()
    assert re.fullmatch(rf"layer {LAYERS}, {VISION_LAYERS}: [01]\.\d\d\d", last or "")
    assert "This graph reads no image." in page.locator("#depths1").inner_text()
    assert page.locator("[role=alert]:visible").count() == 0
    page.get_by_role("button", name="Remove train0.png").click()
    page.locator("#preview img").wait_for(state="detached")
    page.set_viewport_size({"width": 390, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") == 390, "no sideways scrolling on a phone"
    shot = tmp_path / "page.png"
    page.screenshot(path=shot, full_page=True)
    assert len(Image.open(shot).convert("RGB").getcolors(1 << 24)) > 50, "something is drawn"


def test_several_images_and_a_conversation(browser: sync_api.Browser, world: Path, tmp_path: Path) -> None:
    speaker, bound, uploads = Pixels(), listen(0), Uploads(1)
    Thread(target=serve, args=(chat_page([speaker], uploads), bound, uploads), daemon=True).start()
    page = browser.new_page(viewport={"width": 1280, "height": 1000})
    page.goto(address(bound))
    page.locator("#ask").wait_for()
    page.wait_for_timeout(PACE_MS)
    page.locator("#image input[type=file]").set_input_files([world / "train0.png", world / "train1.png"])
    sync_api.expect(page.locator("#preview img")).to_have_count(2)
    for number, question in enumerate(("first", "second", "third")):
        ask(page, question)
        sync_api.expect(page.locator("#earlier0 .asked")).to_have_text(["first", "second", "third"][:number])
        assert comes_true(lambda: len(speaker.asked) == number + 1)  # noqa: B023 - called at once
        assert answered(page, 0).count("train") == 2
    page.screenshot(path=os.environ.get("CHAT_SHOT", tmp_path / "page.png"), full_page=True)
    assert [asked for asked, _ in speaker.earlier[-1]] == ["first", "second"]
    page.locator("#anew").click()
    sync_api.expect(page.locator("#earlier0 .asked")).to_have_count(0)
    ask(page, "fourth")
    assert comes_true(lambda: len(speaker.asked) == 4) and speaker.earlier[-1] == []
    page.locator("#image input[type=file]").set_input_files([world / f"train{number}.png" for number in range(9)])
    sync_api.expect(page.locator("#image [role=alert]")).to_contain_text("at most 8 images")
    sync_api.expect(page.locator("#preview img")).to_have_count(8)
    page.close()


def test_faults_are_told_and_the_page_goes_on(page: sync_api.Page, world: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.png"
    bad.write_text("no picture")
    bomb = tmp_path / "bomb.png"
    bomb.write_bytes(png(60_000, 60_000))
    for file, says in ((bad, "it is empty or no "), (bomb, "it has more than 89,478,485 pixels")):
        upload(page, file)
        said = re.compile(rf"'{file.name}' cannot be read: {re.escape(says)}")
        sync_api.expect(page.locator("#preview [role=alert]")).to_have_text(said)
        ask(page, QUESTION)
        for number in (0, 1):
            sync_api.expect(page.locator(f"#fault{number} [role=alert]")).to_have_text(said)
        page.get_by_role("button", name=f"Remove {file.name}").click()
        sync_api.expect(page.locator("#preview [role=alert]")).to_have_count(0)
    large = tmp_path / "large.bmp"
    Image.new("RGB", (200, 200)).save(large)
    upload(page, large)
    sync_api.expect(page.locator("#image [role=alert]")).to_contain_text("raise --max-upload-mb")
    upload(page, world / "train0.png")
    page.locator("#preview img").wait_for()
    ask(page, " ")
    sync_api.expect(page.locator("#fault0 [role=alert]")).to_have_text("the question is empty")
    ask(page, "what " * 600)
    sync_api.expect(page.locator("#fault0 [role=status]")).to_contain_text("The prompt lost")
    ask(page, QUESTION)
    sync_api.expect(page.locator("#fault0 [role=status]")).to_have_count(0)  # the last question's answer is cleared
    assert answered(page, 0) and answered(page, 1)
    sync_api.expect(page.locator("[role=alert]:visible")).to_have_count(0)


def test_stop_ends_the_answer_and_two_people_take_turns(browser: sync_api.Browser) -> None:
    speaker = Speaker(words=2000)
    bound = listen(0)
    uploads = Uploads(1)
    Thread(target=serve, args=(chat_page([speaker], uploads), bound, uploads), daemon=True).start()
    first, second = (browser.new_page() for _ in range(2))
    for page in (first, second):
        page.goto(address(bound))
        page.locator("#ask").wait_for()
        ask(page, "first" if page is first else "second")
        if page is first:
            answered(page, 0)
    second.get_by_text("queue: 1/1").wait_for()
    assert speaker.most == 1 and len(speaker.asked) == 1, "the second waits"
    first.locator("#stop").click()
    assert answered(second, 0)
    assert [asked[0] for asked in speaker.asked] == ["first", "second"]
    assert comes_true(lambda: speaker.speaking == 1), "the first has stopped"
    second.close()
    assert comes_true(lambda: speaker.speaking == 0), "whoever leaves has stopped, too"
    assert speaker.said < speaker.words
    first.close()


def test_enter_sends_and_shift_enter_makes_a_new_line(browser: sync_api.Browser) -> None:
    speaker, bound, uploads = Speaker(), listen(0), Uploads(1)
    Thread(target=serve, args=(chat_page([speaker], uploads), bound, uploads), daemon=True).start()
    page = browser.new_page()
    page.goto(address(bound))
    field = page.locator("#question textarea")
    field.fill("first")
    field.press("Shift+Enter")
    field.press_sequentially("second")
    assert not speaker.asked
    field.press("Enter")
    assert answered(page, 0) == "a b" or comes_true(lambda: answered(page, 0) == "a b")
    assert [asked[0] for asked in speaker.asked] == ["first\nsecond"]
    page.close()


def comes_true(condition: Callable[[], bool], timeout_s: float = 10) -> bool:
    """Whether it does in time."""
    deadline = time.monotonic() + timeout_s
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    return condition()


def test_control_c_ends_it_without_a_traceback(server: tuple[str, subprocess.Popen[str]]) -> None:
    """Last in this file: it ends the server of the others."""
    process = server[1]
    process.send_signal(signal.SIGINT)
    _, printed = process.communicate(timeout=20)
    assert process.returncode == 0
    assert not re.search("Traceback|Error|interrupted", printed), printed
