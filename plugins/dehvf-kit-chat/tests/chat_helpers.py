"""Adapters with random weights, and a stand-in for one where the page is tested rather than the answer."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from threading import Thread

import httpx
from dehvf_kit_chat.answering import Turn
from dehvf_kit_chat.uploads import Upload, Uploads
from helpers import randomise
from PIL import Image

import dehvf_kit
from dehvf_kit.data.images import read_image

NEW_TOKENS = 12
LIMIT = 2**14


def save(world: Path, folder: Path, *overrides: str, seed: int = 7) -> Path:
    """An adapter with random weights."""
    recipe = dehvf_kit.load_recipe(world / "tiny.yaml", [f"generation.max_new_tokens={NEW_TOKENS}", *overrides])
    model = dehvf_kit.build(recipe)
    randomise(model.nodes, seed)
    model.save_pretrained(folder)
    return folder


def uploaded(file: Path) -> Upload:
    """A file as a browser sends it."""
    return Upload(file.name, file.read_bytes())


class Speaker:
    """Says `a`, then `a b`. error: raised after the first word; words: how many more to say, a twentieth of a second each."""

    name, temperature, about, converses = "speaker <1>", 0.0, ["Trained on: <b>"], True

    def __init__(self, error: Exception | None = None, words: int = 0) -> None:
        self.error, self.words = error, words
        self.asked: list[tuple[str, list[Upload], float]] = []
        self.earlier: list[list[tuple[str, str]]] = []
        self.speaking = self.most = self.said = 0

    def answer(self, question: str, images: list[Upload], temperature: float, earlier: list[tuple[str, str]]) -> Iterator[Turn]:
        self.asked.append((question, images, temperature))
        self.earlier.append(earlier)
        self.speaking += 1
        self.most = max(self.most, self.speaking)
        try:
            yield Turn("", why="nothing was weighed")
            yield Turn("a")
            if self.error is not None:
                raise self.error
            for number in range(self.words):
                time.sleep(0.05)
                self.said = number + 1
                yield Turn(f"a {number}")
            yield Turn("a b")
        finally:
            self.speaking -= 1


class Pixels(Speaker):
    """Answers with the name, the size and the first pixel of each image that it was asked about."""

    def answer(self, question: str, images: list[Upload], temperature: float, earlier: list[tuple[str, str]]) -> Iterator[Turn]:
        self.asked.append((question, images, temperature))
        self.earlier.append(earlier)
        read = [(one, read_image(one)) for one in images]
        yield Turn("; ".join(f"{one} {image.size} {image.getpixel((0, 0))}" for one, image in read) or "no image")


class Browser:
    """What the page's scripts do, over HTTP: upload, join the queue, read the events."""

    def __init__(self, url: str, **headers: str) -> None:
        self.http = httpx.Client(base_url=url, headers=headers, timeout=20, trust_env=False)
        self.hash = secrets.token_hex(6)

    def upload(self, data: bytes, name: str = "image.png", **headers: str) -> httpx.Response:
        return self.http.post("/upload", params={"name": name}, content=data, headers=headers)

    def join(self, function: int, *data: object, **more: object) -> httpx.Response:
        call = {"data": data, "fn_index": function, "session_hash": self.hash, **more}
        return self.http.post("/gradio_api/queue/join", json=call)

    def call(self, function: int, *data: object) -> tuple[object, ...]:
        """What a function of the page returns at last."""
        joined = self.join(function, *data)
        assert joined.status_code == 200, joined.text
        with self.http.stream("GET", "/gradio_api/queue/data", params={"session_hash": self.hash}) as events:
            for line in events.iter_lines():
                event = json.loads(line.removeprefix("data: ")) if line else {}
                if event.get("msg") == "process_completed":
                    assert event["success"], event
                    return tuple(event["output"]["data"])
        raise AssertionError("no answer")


class Page:
    """A page on a free port. functions: its numbers by name; speaker: what was asked."""

    def __init__(self) -> None:
        from dehvf_kit_chat.page import chat_page
        from dehvf_kit_chat.server import address, listen, serve

        self.speaker, self.uploads, bound = Pixels(), Uploads(LIMIT / 2**20), listen(0)
        blocks = chat_page([self.speaker], self.uploads)
        self.functions = {str(function.name): number for number, function in blocks.fns.items()}
        self.url, self.port = address(bound), bound.getsockname()[1]
        Thread(target=serve, args=(blocks, bound, self.uploads), daemon=True).start()

    def browser(self, **headers: str) -> Browser:
        return Browser(self.url, **headers)


def png(colour: str, side: int = 8) -> bytes:
    written = BytesIO()
    Image.new("RGB", (side, side), colour).save(written, "PNG")
    return written.getvalue()
