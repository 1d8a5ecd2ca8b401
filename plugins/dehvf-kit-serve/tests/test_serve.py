"""The server as OpenAI's own client and curl use it."""

from __future__ import annotations

import base64
import contextlib
import json
import logging
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread
from typing import Any

import openai
import pytest

import dehvf_kit
from dehvf_kit.data import images
from dehvf_kit.data.images import read_any
from dehvf_kit.data.processing import DehvfProcessor
from dehvf_kit.data.samples import Sample
from dehvf_kit.errors import DehvfError
from dehvf_kit.evaluation.answers import answer


@pytest.fixture(scope="session")
def client(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=url, api_key="secret", max_retries=0)


@pytest.fixture
def logged() -> Iterator[list[str]]:
    """What the server writes into its log as errors."""
    lines, handler, log = [], logging.Handler(logging.ERROR), logging.getLogger("uvicorn.error")
    handler.emit = lambda record: lines.append(handler.format(record))  # type: ignore[method-assign]
    log.addHandler(handler)
    yield lines
    log.removeHandler(handler)


def data_uri(file: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(file.read_bytes()).decode()}"


def messages(question: str, *images: Path | str) -> list[dict[str, Any]]:
    urls = [data_uri(image) if isinstance(image, Path) else image for image in images]
    parts = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": question}]}]


def say(client: openai.OpenAI, question: str, *images: Path | str, model: str = "one", **settings: Any) -> Any:
    return client.chat.completions.create(model=model, messages=messages(question, *images), **{"max_tokens": 8, **settings})


def text(given: Any) -> str:
    return given.choices[0].message.content


def wanted(folder: Path, *asked: tuple[str, Path | None]) -> list[str]:
    model = dehvf_kit.load(folder)
    try:
        samples = [Sample(str(n), question, "", image) for n, (question, image) in enumerate(asked)]
        return [answer(model, [sample], max_new_tokens=8)[0].prediction for sample in samples]
    finally:
        model.detach()


def test_answers_are_those_of_generate_also_in_batches(client: openai.OpenAI, service: Any, world: Path) -> None:
    asked = [("What colour is it ?", world / "red.png"), ("Why ?", None), ("red", world / "blue.png"), ("Is it so ? or", None)]
    expected = {name: wanted(world / name / "adapter", *asked) for name in ("one", "two")}
    assert len({*expected["one"], *expected["two"]}) > 4
    names = {"one": "one", "two": "second"}
    with ThreadPoolExecutor(16) as pool:
        found = {
            name: [pool.submit(say, client, question, *([image] if image else []), model=served) for question, image in asked]
            for name, served in names.items()
        }
        assert {name: [text(one.result()) for one in some] for name, some in found.items()} == expected
    assert max(service.batches.sizes) > 1


def test_adapters_share_the_decoders_weights(service: Any) -> None:
    one, two = (adapter.model.decoder for adapter in service.adapters.values())
    assert one is not two
    shared = {parameter.data_ptr() for parameter in one.parameters()}
    assert {parameter.data_ptr() for parameter in two.parameters()} == shared


def test_an_adapter_without_tokenizer_files_shares_a_decoder_too(world: Path, tmp_path: Path, command: Any) -> None:
    from dehvf_kit_serve.adapters import Limits, load_adapters
    from dehvf_kit_serve.chat_request import ChatRequest

    assert command("build", world / "recipe.yaml", "--output", tmp_path / "built").code == 0
    assert not list((tmp_path / "built").glob("tokenizer*"))
    served = load_adapters([str(tmp_path / "built"), str(world / "one/adapter")])
    request = ChatRequest(model="built", messages=messages("Why ?"))
    one, two = [adapter.prompt(request, Limits(), lambda _: None) for adapter in served.values()]
    assert one.ids == two.ids and one.row.tokenizer is not two.row.tokenizer


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["one", "second"]
    assert client.models.retrieve("second").owned_by == "dehvf-kit"
    with pytest.raises(openai.NotFoundError, match="there is no 'none'; served: one, second"):
        client.models.retrieve("none")


def test_a_stream_says_the_same_and_counts(client: openai.OpenAI, world: Path) -> None:
    whole = say(client, "What ?", world / "red.png")
    chunks = list(say(client, "What ?", world / "red.png", stream=True, stream_options={"include_usage": True}))
    said = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(said) == text(whole) and len([piece for piece in said if piece]) > 1
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == whole.choices[0].finish_reason
    assert chunks[-1].usage == whole.usage and whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens


def test_what_chat_pages_send_beside_it_is_taken(client: openai.OpenAI, world: Path) -> None:
    """The neutral fields that Open WebUI and `llm` send with each question, and their system and earlier messages."""
    neutral: dict[str, Any] = {
        **{"stream": True, "stream_options": {"include_usage": True}, "max_completion_tokens": 6, "max_tokens": None},
        **{"tools": [], "tool_choice": "none", "parallel_tool_calls": False, "logit_bias": {}, "logprobs": False, "n": 1},
        **{
            "presence_penalty": 0,
            "frequency_penalty": 0.0,
            "user": "somebody",
            "metadata": {"chat": "1"},
            "store": False,
            "stop": [],
        },
    }
    earlier = [
        {"role": "system", "content": "Be brief."},
        *messages("What ?", world / "red.png"),
        {"role": "assistant", "content": "red"},
    ]
    chunks = list(client.chat.completions.create(model="one", messages=[*earlier, *messages("Why ?")], **neutral))
    said = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert said and 0 < chunks[-1].usage.completion_tokens <= 6
    plain = client.chat.completions.create(model="one", messages=[*earlier, *messages("Why ?")], max_tokens=6)
    assert text(plain) == said


def test_lengths_and_stops(client: openai.OpenAI, world: Path) -> None:
    whole = say(client, "Why ?", max_tokens=12)
    short = say(client, "Why ?", max_completion_tokens=3, max_tokens=None)
    assert short.usage.completion_tokens == 3 and short.choices[0].finish_reason == "length"
    stop = text(whole)[2:4]
    cut = say(client, "Why ?", max_tokens=12, stop=["never there", stop])
    assert text(cut) == text(whole)[: text(whole).index(stop)].rstrip() and cut.choices[0].finish_reason == "stop"
    streamed = say(client, "Why ?", max_tokens=12, stop=stop, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in streamed) == text(cut)


def test_seeds_and_temperatures(client: openai.OpenAI) -> None:
    def drawn(**settings: Any) -> str:
        return text(say(client, "Why ?", temperature=1.5, **settings))

    assert drawn(seed=3) == drawn(seed=3)
    assert len({drawn(seed=seed) for seed in range(4)}) > 1
    assert drawn(top_p=1e-9) == text(say(client, "Why ?", temperature=0)) == text(say(client, "Why ?", temperature=1e-300))
    with ThreadPoolExecutor(4) as pool:  # beside others in a batch, too
        assert len(set(pool.map(lambda _: drawn(seed=3), range(4)))) == 1


SCHEMA = {
    "type": "object",
    "properties": {"colour": {"enum": ["red", "green"]}, "count": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["colour", "count"],
    "additionalProperties": False,
}


def test_answers_by_a_schema(client: openai.OpenAI, world: Path) -> None:
    import jsonschema

    wish = {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA, "strict": True}}
    with ThreadPoolExecutor(3) as pool:
        free = pool.submit(say, client, "What ?", world / "red.png")
        some = [
            pool.submit(say, client, "What ?", world / "red.png", response_format=wish, max_tokens=60, temperature=temperature)
            for temperature in (0, 1)
        ]
        for one in some:
            jsonschema.validate(json.loads(text(one.result())), SCHEMA)
            assert one.result().choices[0].finish_reason == "stop"
        assert text(free.result()) == text(say(client, "What ?", world / "red.png"))
    broken = {"type": "json_schema", "json_schema": {"name": "answer", "schema": {"type": "nothing"}}}
    with pytest.raises(openai.BadRequestError, match="response_format"):
        say(client, "What ?", response_format=broken)


REFUSED: dict[str, tuple[dict[str, Any], int, str]] = {
    "unknown field": ({"extra_body": {"top_k": 3}}, 400, "top_k: is not supported"),
    "two answers": ({"n": 2}, 400, "n: is not supported"),
    "tools": ({"tools": [{"type": "function", "function": {"name": "a"}}]}, 400, "--ignore-tools"),
    "a tool that must be called": ({"tools": [], "tool_choice": "required"}, 400, "tool_choice: is not supported"),
    "unknown model": ({"model": "gpt"}, 404, "there is no 'gpt'"),
    "long answer": ({"max_tokens": 65}, 400, "64 are generated at most"),
    "temperature": ({"temperature": 3}, 400, "temperature: "),
    "long prompt": ({"messages": [{"role": "user", "content": "why " * 300}]}, 400, "tokens in the prompt"),
    "not the user": ({"messages": [{"role": "assistant", "content": "yes"}]}, 400, "the last one must be the user's"),
    "audio": ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, 400, "text and image_url are read"),
    "a file": ({"messages": messages("What ?", "/etc/hostname")}, 400, "must be a data URI"),
    "a file's address": ({"messages": messages("What ?", "file:///etc/hostname")}, 400, "must be a data URI"),
    "a web address": ({"messages": messages("What ?", "http://127.0.0.1:9/a.png")}, 400, "no address is fetched"),
    "no image": ({"messages": messages("What ?", "data:image/png;base64,AAAA")}, 400, "cannot be read"),
    "too large": ({"messages": [{"role": "user", "content": "a" * 300_000}]}, 413, "200,000 bytes"),
    "a stop that is no text": ({"extra_body": {"stop": 5}}, 400, "stop: "),
    "stops": ({"stop": ["a", "b", "c", "d", "e"]}, 400, "stop: wants 4 texts or fewer"),
    "no message": ({"messages": []}, 400, "messages: given []; wants 1 or more of them"),
    "an image of the assistant's": (
        {"messages": [{**messages("What ?", "data:image/png;base64,AAAA")[0], "role": "assistant"}, *messages("What ?")]},
        400,
        "message 0 (assistant): holds an image; give it in a message of the user",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(client: openai.OpenAI, name: str) -> None:
    given, status, phrase = REFUSED[name]
    with pytest.raises(openai.APIStatusError, match=re.escape(phrase)) as refused:
        client.chat.completions.create(**{"model": "one", "messages": messages("What ?"), **given})
    assert refused.value.status_code == status and refused.value.body["type"] == "invalid_request_error"


def test_images_are_counted(client: openai.OpenAI, world: Path) -> None:
    assert say(client, "Which ?", world / "red.png", world / "blue.png").usage.completion_tokens > 0
    with pytest.raises(openai.BadRequestError, match="3 images; 2 are read at most"):
        say(client, "What ?", *[world / "red.png"] * 3)


def test_images_are_decoded_one_at_a_time_and_none_that_is_refused(
    client: openai.OpenAI, world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dehvf_kit_serve import adapters

    decoded: list[weakref.ref[Any]] = []

    def read(image: Any) -> Any:
        assert not [one for one in decoded if one() is not None], "an earlier image is still held"
        found = read_any(image)
        decoded.append(weakref.ref(found))
        return found

    monkeypatch.setattr(adapters, "read_any", read)
    for given, asked in ((3, {}), (2, {"extra_body": {"stop": [""]}}), (2, {"max_tokens": 65}), (2, {"messages_": "long"})):
        question = "why " * 300 if asked.pop("messages_", "") else "What ?"
        with pytest.raises(openai.BadRequestError):
            say(client, question, *[world / "red.png"] * given, **asked)
    assert decoded == []
    assert text(say(client, "Which ?", world / "red.png", world / "blue.png")) and len(decoded) == 2


class Dripping(BaseHTTPRequestHandler):
    """A picture that never ends: it sends bytes more often than a reader's timeout for each of them."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        with contextlib.suppress(OSError):
            for _ in range(600):
                self.wfile.write(b".")
                time.sleep(0.05)

    def log_message(self, *_: Any) -> None:
        pass


def test_slow_addresses_have_a_deadline_and_hold_nobody_up(
    client: openai.OpenAI, service: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "limits", replace(service.limits, fetch=True))
    monkeypatch.setattr(images, "TIMEOUT_S", 3.0)
    with ThreadingHTTPServer(("127.0.0.1", 0), Dripping) as server, ThreadPoolExecutor(4) as pool:
        Thread(target=server.serve_forever, daemon=True).start()
        address = f"HTTP://127.0.0.1:{server.server_port}/a.png"
        slow = [pool.submit(say, client, "What ?", address) for _ in range(4)]
        time.sleep(0.5)
        assert text(say(client, "Why ?")) and not any(one.done() for one in slow)
        for one in slow:
            with pytest.raises(openai.BadRequestError, match="cannot be fetched: it takes more than 3 s"):
                one.result()
        server.shutdown()


def test_a_text_that_cannot_fit_is_refused_before_it_is_tokenised(client: openai.OpenAI, monkeypatch: pytest.MonkeyPatch) -> None:
    def tokenised(*_: Any, **__: Any) -> Any:
        raise AssertionError("was tokenised")

    monkeypatch.setattr(DehvfProcessor, "__call__", tokenised)
    with pytest.raises(openai.BadRequestError, match="100,000 characters in the prompt; 'one' takes .* tokens") as refused:
        say(client, "w" * 100_000)
    assert refused.value.code == "context_length_exceeded"


def test_the_key_the_host_and_the_type_are_asked_for(url: str) -> None:
    import httpx

    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=url, api_key="wrong", max_retries=0).models.list()
    assert httpx.get(f"{url}/models").status_code == 401
    key = {"authorization": "Bearer secret"}
    foreign = httpx.get(f"{url}/models", headers={**key, "host": "evil.example:8000"})
    assert foreign.status_code == 400 and "there is no 'evil.example' here" in foreign.json()["error"]["message"]
    assert httpx.get(f"{url}/models", headers={**key, "host": "LOCALHOST:8000"}).status_code == 200
    json_body = {**key, "content-type": "application/json"}
    twice = httpx.post(f"{url}/chat/completions", content=b'{"model": "one", "model": "second"}', headers=json_body)
    assert twice.status_code == 400 and "key 'model' stands twice" in twice.json()["error"]["message"]
    assert httpx.post(f"{url}/chat/completions", content="{}", headers=key).status_code == 415
    assert httpx.get(f"{url}/nothing", headers=key).json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(("named", "header"), [("::1", "[::1]:8000"), ("127.0.0.1", "127.0.0.1:8000"), ("*", "any.example")])
def test_host_names(service: Any, named: str, header: str) -> None:
    """An IPv6 address stands in brackets in a header."""
    from starlette.testclient import TestClient

    client = TestClient(replace(service, hosts=(named,)).app(), base_url="http://x")
    assert client.get("/health", headers={"host": header}).status_code == 200
    assert client.get("/health", headers={"host": "evil.example"}).status_code == (200 if named == "*" else 400)


def test_a_data_uri_in_capitals_is_read(client: openai.OpenAI, world: Path) -> None:
    small = say(client, "What ?", world / "red.png")
    assert text(say(client, "What ?", data_uri(world / "red.png").replace("data:image", "DATA:IMAGE"))) == text(small)


def test_requests_that_wait_are_bounded_from_their_first_byte(client: openai.OpenAI, service: Any, url: str) -> None:
    host, port = url.removeprefix("http://").removesuffix("/v1").split(":")
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer secret\r\n"
        "Content-Type: application/json\r\nContent-Length: 1000\r\n\r\n{"
    )
    with contextlib.ExitStack() as open_ones:
        slow = [open_ones.enter_context(socket.create_connection((host, int(port)))) for _ in range(8)]
        for one in slow:
            one.sendall(head.encode())
        until = time.monotonic() + 20
        while service.batches._coming < 8 and time.monotonic() < until:
            time.sleep(0.01)
        with pytest.raises(openai.RateLimitError, match="8 requests are waiting; try again later") as refused:
            say(client, "Why ?")
        assert refused.value.type == "rate_limit_error" and refused.value.code == "queue_full"
    while service.batches._coming and time.monotonic() < until:
        time.sleep(0.01)
    assert text(say(client, "Why ?"))


def test_a_full_queue_refuses() -> None:
    from dehvf_kit_serve.batching import Batches
    from dehvf_kit_serve.chat_request import Refused

    batches = Batches(max_waiting=1)
    with batches.place(), pytest.raises(Refused) as refused, batches.place():
        pass
    assert refused.value.status == 429
    with batches.place():  # the first one's place is free again
        pass
    batches.close()
    with pytest.raises(Refused) as refused, batches.place():
        pass
    assert refused.value.status == 503


@pytest.mark.parametrize("joins", [True, False], ids=["running batch", "generate"])
def test_one_bad_row_fails_alone(client: openai.OpenAI, service: Any, monkeypatch: pytest.MonkeyPatch, joins: bool) -> None:
    from dehvf_kit_serve.adapters import Adapter
    from dehvf_kit_serve.running import RunningBatch

    kind, name = (RunningBatch, "join") if joins else (Adapter, "generate")
    known = getattr(kind, name)

    def reading(self: Any, prompts: Any) -> None:
        if any(len(prompt.ids) > 40 for prompt in prompts):
            raise RuntimeError("out of memory")
        known(self, prompts)

    monkeypatch.setattr(kind, name, reading)
    monkeypatch.setattr(service.adapters["one"], "joins", joins)
    with ThreadPoolExecutor(2) as pool:
        good, bad = pool.submit(say, client, "Why ?"), pool.submit(say, client, "x" * 60)
        assert text(good.result())
        with pytest.raises(openai.InternalServerError, match="could not be generated"):
            bad.result()


def test_rows_join_and_leave_and_say_what_they_say_alone(service: Any, world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dehvf_kit_serve.adapters import Limits
    from dehvf_kit_serve.chat_request import ChatRequest
    from dehvf_kit_serve.running import RunningBatch

    adapter = service.adapters["one"]
    images = [world / "red.png", None, world / "blue.png", world / "green.png", None]
    asked = [(f"What is it {'so ' * (3 * n % 5)}?", image, 2 + 5 * n % 9) for n, image in enumerate(images)]

    def prompts() -> list[Any]:
        given = [
            ChatRequest(model="one", messages=messages(question, *([image] if image else [])), max_tokens=tokens)
            for question, image, tokens in asked
        ]
        found = [adapter.prompt(request, Limits(), lambda _: None) for request in given]
        for prompt in found:
            prompt.pixels.extend(map(adapter.pixels, prompt.images))
        return found

    alone = prompts()
    for prompt in alone:
        adapter.generate([prompt])
    running, together = RunningBatch(adapter.model), prompts()
    waiting, sizes = list(together), []
    read, known = [], adapter.model.vision_features
    monkeypatch.setattr(adapter.model, "vision_features", lambda pixels: read.append(len(pixels)) or known(pixels))
    while waiting or running.rows:
        if waiting:
            running.join([waiting.pop(0) for _ in waiting[:3]])
        sizes.append(len(running.rows))
        if running.rows:
            running.step()
    assert [prompt.row.tokens for prompt in together] == [prompt.row.tokens for prompt in alone]
    assert max(sizes) > 3 and adapter.joins and read == [2, 1], "the images of prompts that join together are read together"
    assert len({tuple(prompt.row.tokens) for prompt in alone}) == len(alone)


def test_requests_join_at_once_where_they_are_many() -> None:
    from dehvf_kit_serve.batching import many_wait

    assert many_wait(1, 1, 16) and many_wait(4, 10, 16) and many_wait(30, 12, 16)
    assert not many_wait(0, 1, 16) and not many_wait(3, 10, 16) and not many_wait(30, 13, 16) and not many_wait(9, 16, 16)
    assert many_wait(1, 1, 2) and not many_wait(1, 1, 1)


def test_whoever_hangs_up_is_not_answered_further(client: openai.OpenAI, service: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from dehvf_kit_serve.generation import Row

    rows, known = [], Row.take

    def take(row: Row, token: int) -> None:
        rows.append(row)
        known(row, token)

    monkeypatch.setattr(Row, "take", take)
    monkeypatch.setattr(service.adapters["one"], "ends", frozenset())
    stream = say(client, "Why ?", max_tokens=64, stream=True)
    pieces = iter(stream)
    assert [next(pieces).choices[0].delta.content for _ in range(2)][0] == ""  # the second one is of the first token
    stream.close()
    until = time.monotonic() + 20
    while not rows[0].cancelled and time.monotonic() < until:
        text(say(client, "Why ?", max_tokens=1))
    assert rows[0].cancelled and len(rows[0].tokens) < 64


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl(url: str, world: Path) -> None:
    body = {"model": "one", "messages": messages("What ?", world / "red.png"), "max_tokens": 4, "stream": True}
    said = subprocess.run(
        ["curl", "-sN", f"{url}/chat/completions", "-H", "authorization: Bearer secret", "--json", json.dumps(body)],
        capture_output=True, text=True, timeout=60, check=True,
    ).stdout  # fmt: skip
    lines = [line for line in said.splitlines() if line]
    assert all(line.startswith("data: ") for line in lines) and lines[-1] == "data: [DONE]"


def test_two_adapters_of_one_name_are_refused(world: Path) -> None:
    from dehvf_kit_serve.adapters import load_adapters

    with pytest.raises(DehvfError, match="two adapters are called 'a'; name one"):
        load_adapters([f"a={world / 'one/adapter'}", f"a={world / 'two/adapter'}"])


def test_what_a_request_leaves_out_is_as_docs_say(world: Path) -> None:
    from dehvf_kit_serve.adapters import Limits, load_adapters
    from dehvf_kit_serve.chat_request import ChatRequest
    from dehvf_kit_serve.running import can_join

    request = ChatRequest(model="one", messages=messages("Why ?"))
    for fields, temperature in (((), 0.0), (("temperature=0.7",), 0.0), (("do_sample=true", "temperature=0.7"), 0.7)):
        overrides = [f"generation.{field}" for field in (*fields, "num_beams=3")]
        adapter = load_adapters([str(world / "one/adapter")], overrides)["one"]
        found = adapter.prompt(request, Limits(), lambda _: None).row.settings
        assert (found.temperature, found.max_tokens, found.top_k, found.min_p) == (temperature, 3, 0, 0.0) and adapter.joins
        adapter.model.generation_config.top_k, adapter.model.generation_config.min_p = 7, 0.2
        found = adapter.prompt(request, Limits(), lambda _: None).row.settings
        assert (found.top_k, found.min_p) == (7, 0.2) and can_join(adapter.model)
        adapter.model.generation_config.repetition_penalty = 1.2  # as a decoder's generation_config.json says
        assert not can_join(adapter.model)
        adapter.model.detach()


def test_names_of_adapters(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dehvf_kit_serve.adapters import _name

    run = tmp_path / "lr=0.1"
    shutil.copytree(world / "one/adapter", run / "adapter")
    for given, name in (
        (f"{run}/adapter", "lr=0.1"),
        (f"{run}", "lr=0.1"),
        (f"small={run}/adapter", "small"),
        ("small=a=b/adapter", "small"),
        ("runs/demo/adapter/", "demo"),
        ("owner/name", "name"),
    ):
        assert _name(given) == (name, given.removeprefix(f"{name}=") if given.startswith("small=") else given)
    monkeypatch.chdir(run / "adapter")
    assert _name(".") == ("lr=0.1", ".")
    monkeypatch.chdir(run)
    assert _name(".") == ("lr=0.1", ".")


@pytest.mark.parametrize("key", ["\u017eivjo", "", " kk", "a\tb"])
def test_a_key_that_no_client_can_send_is_refused(command: Any, key: str) -> None:
    ended = command("serve", "runs/none", "--api-key", key)
    assert ended.code == 1 and "--api-key: no client can send this key" in ended.err


@pytest.mark.nightly
def test_the_command_serves_and_ends_gracefully(world: Path) -> None:
    code = "import sys; from dehvf_kit.cli.main import main; sys.argv[0] = 'dehvf-kit'; main()"
    environment = {**os.environ, "DEHVF_KIT_API_KEY": "k"}
    command = [sys.executable, "-c", code, "serve", str(world / "one/adapter"), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment) as server:
        address = server.stdout.readline().split()[0]
        client = openai.OpenAI(base_url=address, api_key="k", max_retries=0)
        stream = say(client, "Why ?", max_tokens=200, stream=True)
        next(iter(stream))
        server.send_signal(signal.SIGTERM)
        assert [chunk.choices[0].finish_reason for chunk in stream][-1] in ("stop", "length")
        assert server.wait(60) == 0, server.stderr.read()


@pytest.mark.parametrize("joins", [True, False], ids=["running batch", "generate"])
def test_what_is_open_at_the_end_is_told_so(world: Path, monkeypatch: pytest.MonkeyPatch, logged: list[str], joins: bool) -> None:
    from dehvf_kit_serve.adapters import load_adapters
    from dehvf_kit_serve.app import Service
    from dehvf_kit_serve.batching import Batches
    from dehvf_kit_serve.command import listen
    from dehvf_kit_serve.generation import Row
    from dehvf_kit_serve.server import Server

    go_on, known = Event(), Row.take

    def take(row: Row, token: int) -> None:
        known(row, token)
        go_on.wait(60)  # a step that takes longer than the server has patience

    monkeypatch.setattr(Row, "take", take)
    service = Service(load_adapters([str(world / "one/adapter")]), Batches(max_batch=2))
    service.adapters["one"].joins = joins
    bound = listen("127.0.0.1", 0)
    server = Server(service, 0.5)
    thread = Thread(target=server.run, kwargs={"sockets": [bound]}, daemon=True)
    thread.start()
    address = bound.getsockname()
    client = openai.OpenAI(base_url=f"http://127.0.0.1:{address[1]}/v1", api_key="none", max_retries=0)
    with ThreadPoolExecutor(4) as pool, socket.create_connection(address) as arriving:
        stream = say(client, "Why ?", max_tokens=40, stream=True)
        pieces = iter(stream)
        assert next(pieces).choices[0].delta.role == "assistant"
        open_ones = [pool.submit(say, client, "Why ?", max_tokens=40) for _ in range(3)]  # one of the batch, two that wait
        arriving.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{"
        )
        until = time.monotonic() + 20
        while (len(service.batches._jobs) < 2 or not service.batches._coming) and time.monotonic() < until:
            time.sleep(0.01)
        server.should_exit = True
        with pytest.raises(openai.APIError) as ended:
            list(pieces)
        assert ended.value.code == "server_ending"
        for one in open_ones:
            with pytest.raises(openai.InternalServerError) as ended:
                one.result()
            assert ended.value.status_code == 503 and ended.value.code == "server_ending" and ended.value.type == "server_error"
        assert b"503" in arriving.recv(100)
        go_on.set()
    thread.join(20)
    assert not thread.is_alive() and logged == []


def test_an_unexpected_error_has_openais_form(
    client: openai.OpenAI, service: Any, monkeypatch: pytest.MonkeyPatch, logged: list[str]
) -> None:
    def prompt(*_: Any) -> Any:
        raise ZeroDivisionError("nobody foresaw this")

    monkeypatch.setattr(service.adapters["one"], "prompt", prompt)
    with pytest.raises(openai.InternalServerError, match="the server failed; its log says why") as failed:
        say(client, "Why ?")
    assert failed.value.status_code == 500 and failed.value.type == "server_error"
    until = time.monotonic() + 20
    while not logged and time.monotonic() < until:  # the answer is sent first
        time.sleep(0.01)
    assert "nobody foresaw this" in "".join(logged)
