"""The Dockerfile, as far as it can be checked without Docker."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
LINES = (ROOT / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ").splitlines()
ARGUMENTS = dict(re.match(r"ARG (\w+)=\"?([^\"]*)\"?$", line).groups() for line in LINES if line.startswith("ARG "))  # type: ignore[union-attr]


def test_the_base_image_is_pinned_to_a_supported_python() -> None:
    images = [line.split()[1] for line in LINES if line.startswith("FROM ")]
    assert set(images) == {"python:${PYTHON}-slim-bookworm"} and re.fullmatch(r"3\.1[1-3]\.\d+", ARGUMENTS["PYTHON"])


def test_it_ends_without_root_and_with_the_command() -> None:
    last = "\n".join(LINES[max(place for place, line in enumerate(LINES) if line.startswith("FROM ")) :])
    assert re.search(r"^USER kit$", last, re.M) and last.index("useradd") < last.index("USER kit")
    assert 'ENTRYPOINT ["dehvf-kit"]' in last


def test_what_it_installs_is_there() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert set(ARGUMENTS["EXTRAS"].split(",")) <= project["project"]["optional-dependencies"].keys()
    assert all((ROOT / "plugins" / name / "pyproject.toml").is_file() for name in ARGUMENTS["PLUGINS"].split())
    assert re.search(r"^torch==", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.M)
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    needed = {*wheel["packages"], *wheel["force-include"], project["project"]["readme"], "LICENSE", "pyproject.toml"}
    allowed = {line[1:].removesuffix("/**") for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert needed | {"plugins", "constraints.txt"} == allowed, "what .dockerignore lets through is what the wheels are made of"
    assert all((ROOT / name).exists() for name in allowed)
