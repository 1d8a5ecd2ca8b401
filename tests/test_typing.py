"""What mypy checks, and that citation and package agree on the version."""

from __future__ import annotations

import importlib.util
import re
import tomllib
from pathlib import Path

import yaml

import dehvf_kit

ROOT = Path(__file__).parents[1]
PROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def test_mypy_checks_the_whole_package_strictly() -> None:
    settings = tomllib.loads(PROJECT)["tool"]["mypy"]
    assert settings["strict"] and set(settings["files"]) == {"dehvf_kit", "tests/public_api.py"}
    exceptions, libraries = settings["overrides"]
    assert set(exceptions) == {"module", "disable_error_code"}
    assert set(libraries) == {"module", "ignore_missing_imports"}
    assert not [module for module in exceptions["module"] if importlib.util.find_spec(module) is None]


def test_type_checkers_see_every_public_name() -> None:
    text = (ROOT / "dehvf_kit/__init__.py").read_text(encoding="utf-8")
    seen = text.partition("if TYPE_CHECKING:")[2]
    assert all(f" import {name} as {name}\n" in seen for name in dehvf_kit._HOME)
    assert (ROOT / "dehvf_kit/py.typed").is_file()


def test_one_version() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert cited["version"] == dehvf_kit.__version__
    assert re.fullmatch(r"\d+\.\d+\.\d+", dehvf_kit.__version__)
    assert cited["license"] == "Apache-2.0" and (ROOT / "LICENSE").is_file()


def test_every_extra_is_explained() -> None:
    (section,) = re.findall(r"^\[project\.optional-dependencies\]\n(.*?)^\[", PROJECT, re.MULTILINE | re.DOTALL)
    extras = set(re.findall(r"^(\w+) = ", section, re.MULTILINE))
    page = (ROOT / "docs/environment.md").read_text(encoding="utf-8")
    assert {"demo", "eval", "cuda", "timm", "chat", "docs", "dev"} <= extras
    first_cells = "".join(re.findall(r"^\| (`[^|]*) \|", page.partition("## Docker")[0], re.MULTILINE))
    assert set(re.findall(r"`(\w+)`", first_cells)) == extras
