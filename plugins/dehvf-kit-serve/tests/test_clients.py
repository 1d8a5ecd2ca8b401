"""The clients that docs/serve.md names, used as it says: gradio's `load_chat`, the command `llm`; Open WebUI by what it sends."""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

ROOT = Path(__file__).parents[3]
QUESTION = "What colour is it ?"


@pytest.fixture(scope="module")
def alone(url: str, world: Path) -> str:
    """What OpenAI's client is told."""
    client = openai.OpenAI(base_url=url, api_key="secret", max_retries=0)
    content = [{"type": "image_url", "image_url": {"url": uri(world)}}, {"type": "text", "text": QUESTION}]
    said = client.chat.completions.create(model="one", messages=[{"role": "user", "content": content}])
    return said.choices[0].message.content


def uri(world: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode((world / 'red.png').read_bytes()).decode()}"


def block(language: str, word: str) -> str:
    """The code block of docs/serve.md that has a word."""
    blocks = re.findall(rf"```{language}\n(.*?)```", (ROOT / "docs/serve.md").read_text(encoding="utf-8"), re.DOTALL)
    (found,) = [one for one in blocks if word in one]
    return found


@pytest.mark.nightly
def test_gradio(url: str, world: Path, alone: str, monkeypatch: pytest.MonkeyPatch) -> None:
    gradio = pytest.importorskip("gradio", reason="gradio is not installed")
    pages: list[Any] = []
    monkeypatch.setattr(gradio.ChatInterface, "launch", lambda page: pages.append(page))
    given = {"http://127.0.0.1:8000/v1": url, '"none"': '"secret"', '"demo"': '"one"'}
    code = block("python", "load_chat")
    for written, used in given.items():
        assert written in code
        code = code.replace(written, used)
    exec(code, {})
    message = {"text": QUESTION, "files": [str(world / "red.png")]}
    assert list(pages[0].fn(message, []))[-1] == alone


@pytest.mark.nightly
def test_llm(url: str, world: Path, alone: str, tmp_path: Path) -> None:
    pytest.importorskip("llm", reason="llm is not installed; pip install llm")
    given = block("yaml", "api_base").replace("http://127.0.0.1:8000/v1", url).replace("demo", "one")
    (tmp_path / "extra-openai-models.yaml").write_text(given.replace("true}", "true, api_key_name: served}"))
    (tmp_path / "keys.json").write_text('{"served": "secret"}')
    settings = {"LLM_USER_PATH": str(tmp_path), "LLM_LOAD_PLUGINS": ""}
    command = [sys.executable, "-m", "llm", "-m", "one", "-a", str(world / "red.png"), QUESTION]
    for more in ([], ["--no-stream"]):
        said = subprocess.run([*command, *more], capture_output=True, text=True, env={**os.environ, **settings}, timeout=60)
        assert said.stdout.strip() == alone, said.stderr


def test_what_open_webui_sends(url: str, world: Path, alone: str, service: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """It lists the models with its key, and streams a chat whose image is a part after the text, its usage and its own tools."""
    monkeypatch.setattr(service, "limits", replace(service.limits, ignore_tools=True))
    with httpx.Client(base_url=url, headers={"Authorization": "Bearer secret", "Content-Type": "application/json"}) as web:
        assert "one" in [one["id"] for one in web.get("/models").json()["data"]]
        content = [{"type": "text", "text": QUESTION}, {"type": "image_url", "image_url": {"url": uri(world)}}]
        body = {"stream": True, "model": "one", "messages": [{"role": "user", "content": content}]}
        body |= {"stream_options": {"include_usage": True}, "tools": [{"type": "function", "function": {"name": "ask_user"}}]}
        with web.stream("POST", "/chat/completions", json=body, headers={"Accept": "text/event-stream"}) as answer:
            assert answer.headers["content-type"].startswith("text/event-stream")
            lines = [line.removeprefix("data: ") for line in answer.iter_lines() if line]
    assert lines.pop() == "[DONE]"
    chunks = [json.loads(line) for line in lines]
    assert chunks[-1]["usage"]["completion_tokens"] > 0
    said = "".join(one["choices"][0]["delta"].get("content") or "" for one in chunks if one["choices"])
    assert said == alone


def test_an_image_in_a_message_of_its_own_belongs_to_the_question(url: str, world: Path, alone: str) -> None:
    client = openai.OpenAI(base_url=url, api_key="secret", max_retries=0)
    image = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": uri(world)}}]}
    said = client.chat.completions.create(model="one", messages=[image, {"role": "user", "content": QUESTION}])
    assert said.choices[0].message.content == alone
    with pytest.raises(openai.BadRequestError, match="no text"):
        client.chat.completions.create(model="one", messages=[image])
