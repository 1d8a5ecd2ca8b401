"""One thread (two make these tiny models slower), no network, and a registry that a test's plugins do not outlive."""

from __future__ import annotations

import os
from collections.abc import Iterator

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
from cli.commands import builtins_alone, command, own_plugins, wide  # noqa: F401 - fixtures


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Features that tests keep stand in a folder of their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DEHVF_KIT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield
