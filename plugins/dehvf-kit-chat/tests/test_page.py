"""What the page calls, and where it listens; no browser."""

from __future__ import annotations

import socket
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

pytest.importorskip("gradio", reason="needs the extra `chat`")
# ruff: noqa: E402

import gradio as gr
from chat_helpers import Speaker
from cli.commands import Command
from dehvf_kit_chat.guard import COOKIE
from dehvf_kit_chat.page import chat_page, looks, replies
from dehvf_kit_chat.server import HOST, address, listen
from dehvf_kit_chat.uploads import Upload, Uploads

from dehvf_kit.errors import DataError, DehvfError

HERE = gr.Request(cookies={COOKIE: "mine"})


class Held(Uploads):
    """Holds one image from the start, under the id `a`."""

    def __init__(self, data: bytes = b"", name: str = "a.png") -> None:
        super().__init__(1)
        self._kept["a"] = "mine", Upload(name, data)


def test_a_reply_grows_and_keeps_its_panel() -> None:
    speaker = Speaker()
    shown = list(replies(speaker, Held())("what?", "a", 0.5, [], HERE))
    assert [said for said, *_ in shown] == ["", "a", "a b", "a b"]
    assert all("nothing was weighed" in panel and fault == "" for _, panel, fault, *_ in shown)
    assert speaker.asked == [("what?", [Upload("a.png", b"")], 0.5)]
    list(replies(speaker, Held())("what?", None, 0, [], HERE))
    assert speaker.asked[-1] == ("what?", [], 0)
    *_, (_, _, fault, *_) = replies(speaker, Held())("what?", "b", 0, [], HERE)
    assert "does not hold that image" in fault and len(speaker.asked) == 2


def test_a_conversation_goes_on_about_the_same_images_and_begins_anew_about_others() -> None:
    speaker, held = Speaker(), Held()
    held._kept["b"] = held._kept["a"]
    reply, turns = replies(speaker, held), []
    for question, ids, kept in (("one", "a", []), ("two", "a b", ["one"]), ("three", "a b", ["one", "two"]), ("four", "b", [])):
        *_, (_, _, fault, turns, earlier) = reply(question, ids, 0, turns, HERE)
        assert [asked for asked, _ in speaker.earlier[-1]] == kept and all(one in earlier for one in kept)
        assert turns[-1] == (question, "a b", ids) and ("new conversation began" in fault) == (question == "four")
    speaker.converses = False
    *_, (_, _, _, turns, earlier) = reply("five", "b", 0, turns, HERE)
    assert speaker.earlier[-1] == [] and earlier == ""


def test_a_mistake_is_its_message_and_a_bug_leaves_the_page_up(caplog: pytest.LogCaptureFixture) -> None:
    *_, (said, panel, fault, *_) = replies(Speaker(DataError("<b> is empty")), Held())("", None, 0, [], HERE)
    assert (said, fault) == ("a", "<p role='alert'>&lt;b&gt; is empty</p>") and "nothing was weighed" in panel
    assert not caplog.records
    *_, (_, _, fault, *_) = replies(Speaker(ZeroDivisionError("by zero")), Held())("", None, 0, [], HERE)
    assert fault == "<p role='alert'>speaker &lt;1&gt; could not answer: by zero</p>"
    assert "ZeroDivisionError" in caplog.text


def test_a_look_at_the_image() -> None:
    red = BytesIO()
    Image.new("RGB", (20, 10), "red").save(red, "PNG")
    assert looks(Held())(None, HERE) == ""
    assert looks(Held(red.getvalue()))("a", HERE).startswith("<img alt='a.png' src='data:image/png;base64,")
    said = looks(Held(b"no image", "b.png"))("a", HERE)
    assert said.startswith("<p role='alert'>") and "&#x27;b.png&#x27; cannot be read: it is empty or no" in said


def test_the_page_has_a_column_and_a_queue_of_its_own_for_each_adapter() -> None:
    config = chat_page([Speaker(), Speaker()], Held()).get_config_file()
    assert config["analytics_enabled"] is False
    columns = [part for part in config["components"] if str(part["props"].get("elem_id", "")).startswith("adapter")]
    assert len(columns) == 2
    names = [part["props"]["value"] for part in config["components"] if part["props"].get("elem_classes") == ["name"]]
    assert len(names) == 2 and all("About this adapter" in one and "<p>Trained on: &lt;b&gt;</p>" in one for one in names)
    page = chat_page([Speaker(), Speaker()], Held())
    asking = [call for call in page.fns.values() if call.concurrency_limit == 1 and call.name == "reply"]
    assert len(asking) == 2 and len({call.concurrency_id for call in asking}) == 2


def test_it_listens_on_this_machine_alone() -> None:
    bound = listen(0)
    host, port = bound.getsockname()
    assert host == HOST == "127.0.0.1" and address(bound) == f"http://127.0.0.1:{port}"
    with pytest.raises(DehvfError, match=f"port {port} is in use; name another with --port, or let --port 0 find one"):
        listen(port)
    bound.close()
    listen(port).close()


def test_a_taken_port_is_told_before_anything_is_loaded(command: Command, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind((HOST, 0))
        taken.listen()
        port = taken.getsockname()[1]
        ended = command("chat", tmp_path, "--port", port)
    assert (ended.code, ended.out) == (1, "")
    assert ended.err == f"port {port} is in use; name another with --port, or let --port 0 find one\n"


def test_a_path_with_an_equals_sign_is_an_adapter(command: Command, tmp_path: Path) -> None:
    folder = tmp_path / "lr=0.1"
    folder.mkdir()
    ended = command("chat", folder, "--port", 0)
    assert ended.code == 1 and f"{folder}: not an adapter of dehvf-kit" in ended.err


def test_without_gradio_it_says_what_to_install(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dehvf_kit_chat.command.find_spec", lambda _: None)
    assert command("chat", "runs/a") == (1, "", "the chat page needs gradio; pip install 'dehvf-kit[chat]'\n")


@pytest.mark.parametrize("words", [["x=1"], ["a", "b", "c"]])
def test_one_adapter_or_two(command: Command, words: list[str]) -> None:
    ended = command("chat", *words)
    assert ended.code == 1 and "were named; the page shows one, or two side by side" in ended.err


def test_what_is_no_adapter_ends_it(command: Command, tmp_path: Path) -> None:
    ended = command("chat", tmp_path, "--port", 0)
    assert ended.code == 1 and "Traceback" not in ended.err and str(tmp_path) in ended.err
