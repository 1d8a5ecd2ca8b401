"""The generated pages are fresh, and the troubleshooting pages hold every message of the code and no other."""

from __future__ import annotations

from pathlib import Path

import pytest
from dehvf_kit_scaffold import schema

from tools.reference import __main__ as reference
from tools.reference.messages import messages, normal
from tools.reference.troubleshooting import missing, stale, told

PAGES = reference.DOCS / "troubleshooting"


@pytest.mark.nightly
def test_generated_pages_are_fresh() -> None:
    assert reference.main(["--check"]) == 0


@pytest.mark.nightly
def test_a_stale_page_is_told_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("reproduction.md", "baselines.md"):
        (tmp_path / name).write_text((reference.DOCS / name).read_text())
    assert reference.main(["--check", "--docs", str(tmp_path)]) == 1
    assert "run python -m tools.reference" in capsys.readouterr().err
    assert reference.main(["--docs", str(tmp_path)]) == 0
    assert reference.main(["--check", "--docs", str(tmp_path)]) == 0
    (tmp_path / "recipe_reference.md").write_text("old")
    assert reference.main(["--check", "--docs", str(tmp_path)]) == 1


@pytest.mark.nightly
def test_every_type_and_field_is_on_a_page() -> None:
    pages = reference.pages()
    for (role, kind), config in schema.builtin_registry().configs.items():
        page = pages["recipe_reference.md" if role in ("vision", "decoder", "data") else "component_reference.md"]
        assert f"`{kind}`" in page or f"`type: {kind}`" in page
        nested = {name for name, info in config.model_fields.items() if f"`{name}" not in page} - {"type"}
        assert nested == set(), f"{role} {kind}"


def test_every_message_has_a_cure() -> None:
    without = [f"- ``{message.text}``   ({message.place})" for message in missing(PAGES)]
    assert not without, "put these with their cure on a page of docs/troubleshooting:\n" + "\n".join(without)


def test_no_page_lists_what_nobody_says() -> None:
    assert stale(PAGES) == []


def test_every_list_of_messages_is_followed_by_a_cure() -> None:
    for page in sorted(PAGES.glob("*.md")):
        parts = page.read_text(encoding="utf-8").split("\n\n")
        for part, below in zip(parts, [*parts[1:], ""], strict=True):
            if part.startswith("- ``"):
                assert all(line.startswith("- ``") for line in part.splitlines()), f"{page}: {part}"
                assert below and not below.startswith(("#", "- ``")), f"{page}: no cure below\n{part}"


def test_messages_are_found_however_they_are_made(tmp_path: Path) -> None:
    (tmp_path / "made.py").write_text("""
class DehvfError(Exception): pass
class OwnError(DehvfError): pass
def plain(x): raise OwnError(f"{x}: is {x} here")
def joined(faults):
    faults = [f"missing: {name}" for name in faults]
    faults.append("one " + "more")
    raise DehvfError("\\\\n".join(faults))
def either(x): raise DehvfError("this one" if x else "or that")
def other(): raise ValueError("not ours")
async def fetched(): raise OwnError("from a coroutine")
WHOLE = "a constant"
def said(x): return f"made for {x}"
def constant(): raise DehvfError(WHOLE)
def returned(): raise DehvfError(said(1))
""")
    assert [message.text for message in messages(tmp_path)] == [
        "…: is … here",
        "missing: …",
        "one more",
        "this one",
        "or that",
        "from a coroutine",
        "a constant",
        "made for …",
    ]
    (tmp_path / "hidden.py").write_text("def far(text): raise DehvfError(text)\n")
    with pytest.raises(LookupError, match=r"hidden.py:1: .* add hidden.py:far to RELAYS"):
        messages(tmp_path)


@pytest.mark.nightly
def test_what_is_missing_or_left_over_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "troubleshooting"
    folder.mkdir()
    (folder / "page.md").write_text("- ``a message that nobody says``\n\nCure.\n")
    assert told(folder) == {"a message that nobody says": "a message that nobody says"}
    assert reference.main(["--messages", "--docs", str(tmp_path)]) == 1
    printed = capsys.readouterr().out
    assert "no longer in the code: a message that nobody says" in printed
    assert "- ``the question is empty``\n  (dehvf_kit/cli/generate.py:generate)" in printed


@pytest.mark.parametrize(
    ("text", "key"),
    [("…: is a file; name a folder", "is a file; name a folder"), ("…:…: not JSON: …", "not JSON:"), ("……  a\n b", "… a b")],
)
def test_normal_form(text: str, key: str) -> None:
    assert normal(text) == key
