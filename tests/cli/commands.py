"""Fixtures to run commands, for the tests of the kit and of its plugins."""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import pytest

from dehvf_kit.cli.main import app
from dehvf_kit.recipe import plugin_manager
from dehvf_kit.recipe.plugin_manager import plugins


class Ended(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str


Command = Callable[..., Ended]


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables fold at the width somebody's terminal happens to have; without COLUMNS at the kit's own."""
    monkeypatch.delenv("COLUMNS", raising=False)


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Command:
    """`command("check", path)`: run it; a traceback would be the test's own."""

    def run(*arguments: object) -> Ended:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            app([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        return Ended(int(ended.value.code or 0), printed.out, printed.err)

    return run


@pytest.fixture
def own_plugins() -> Iterator[None]:
    """Plugins loaded inside the test are forgotten after it."""
    plugins.cache_clear()
    yield
    plugins.cache_clear()


@pytest.fixture(scope="module")
def builtins_alone() -> Iterator[None]:
    """The built-ins alone, whatever plugins are installed: for messages that list what there is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plugin_manager, "entry_points", lambda group: [])
        plugins.cache_clear()
        yield
    plugins.cache_clear()


@contextmanager
def at_most(size: int) -> Iterator[None]:
    """No file may grow beyond `size` bytes: what the system, torch and safetensors say is then their own, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
