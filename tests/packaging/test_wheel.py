"""The wheel, made from the sdist, works from an empty folder: its own files are all it has."""

from __future__ import annotations

import json
import os
import site
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from data.small_sets import COLOURS, picture
from evaluation.benchmarks import recipe, towers

import dehvf_kit

pytestmark = pytest.mark.nightly

ROOT = Path(__file__).parents[2]


def run(*words: object, **settings: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *map(str, words)], capture_output=True, text=True, check=True, **settings)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an sdist, and the wheel that is made from it."""
    folder = tmp_path_factory.mktemp("dist")
    run("-m", "build", "--no-isolation", "--outdir", folder, ROOT)
    return folder


@pytest.fixture(scope="module")
def installed(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel unpacked where nothing else is."""
    folder = tmp_path_factory.mktemp("site")
    (wheel,) = built.glob("*.whl")
    run("-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", folder, wheel)
    return folder


def kit(wheel: Path, folder: Path, *words: str, others: Path | None = None) -> str:
    """What `python -m dehvf_kit ...` of the wheel prints in that folder; with `others` nothing else is installed beside it."""
    env = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    env["PYTHONPATH"] = str(wheel) if others is None else f"{wheel}{os.pathsep}{others}"
    return run(*([] if others is None else ["-S"]), "-m", "dehvf_kit", *words, cwd=folder, env=env).stdout


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything that is installed here but the kit and its plugins."""
    folder = tmp_path_factory.mktemp("others")
    for place in map(Path, site.getsitepackages()):
        for found in place.iterdir():
            if not found.name.lower().startswith(("dehvf", "__editable__")) and found.suffix != ".pth":
                (folder / found.name).symlink_to(found)
    return folder


def test_names_and_licence(built: Path) -> None:
    (wheel,), (sdist,) = built.glob("*.whl"), built.glob("*.tar.gz")
    assert wheel.name == f"dehvf_kit-{dehvf_kit.__version__}-py3-none-any.whl"
    names = zipfile.ZipFile(wheel).namelist()
    assert {
        "dehvf_kit/py.typed",
        "dehvf_kit/recipes/llama7b_clip.yaml",
        "dehvf_kit/launch/zero2.json",
        "dehvf_kit/docs/support.md",
    } <= set(names)
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert not [name for name in names if name.startswith(("tests/", "plugins/", "benchmarks/"))]
    with tarfile.open(sdist) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    assert {"CITATION.cff", "LICENSE", "README.md", "tests/packaging/test_wheel.py", "recipes/README.md"} <= inside


def test_every_recipe_is_in_the_wheel(installed: Path) -> None:
    recipes = {file.relative_to(ROOT) for file in (ROOT / "recipes").rglob("*") if file.is_file()}
    assert {file.relative_to(installed / "dehvf_kit") for file in (installed / "dehvf_kit/recipes").rglob("*.*")} == recipes


def test_it_runs_from_an_empty_folder(installed: Path, tmp_path: Path) -> None:
    assert "train" in kit(installed, tmp_path, "--help")
    (tmp_path / "mine.yaml").write_text("extends: recipes/llama7b_clip.yaml\nname: mine\n")
    where = "import dehvf_kit; print(dehvf_kit.__file__)"
    assert run("-c", where, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(installed)}).stdout.startswith(str(installed))
    listed = json.loads(kit(installed, tmp_path, "list", "--json"))
    assert {"cross_attention", "contiguous", "scienceqa"} <= {entry["type"] for entry in listed["components"]}
    assert "4,163,328 trained parameters" in kit(installed, tmp_path, "check", "recipes/llama7b_clip.yaml")
    assert "mine.yaml: ok" in kit(installed, tmp_path, "check", "mine.yaml")
    assert "184 of 184" in kit(installed, tmp_path, "support")


def test_alone_it_builds_and_trains_on_images_of_ones_own(installed: Path, others: Path, tmp_path: Path) -> None:
    for number, name in enumerate([*COLOURS] * 4):
        picture(tmp_path / f"images/{number}.png", name)
    rows = [{"image": f"images/{n}.png", "question": "What colour is it?", "answer": name} for n, name in enumerate([*COLOURS] * 4)]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe(towers(tmp_path), "{type: jsonl, train: mine.jsonl, validation: 0.25}")
    assert "recipe.yaml: ok" in kit(installed, tmp_path, "check", "recipe.yaml", others=others)
    assert "Adapter saved in runs/tiny" in kit(installed, tmp_path, "build", "recipe.yaml", others=others)
    said = kit(installed, tmp_path, "train", "recipe.yaml", "--output", "runs/mine", others=others)
    assert "adapter in runs/mine/adapter" in said
    assert (tmp_path / "runs/mine/adapter/adapter_model.safetensors").is_file()
