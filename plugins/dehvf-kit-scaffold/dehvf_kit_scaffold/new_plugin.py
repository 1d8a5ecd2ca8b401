"""`dehvf-kit new-plugin`: an installable plugin package from the kit's templates, whose contract test passes unchanged."""

from __future__ import annotations

import keyword
import re
import shutil
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from dehvf_kit._version import __version__
from dehvf_kit.cli.arguments import Json
from dehvf_kit.cli.console import print_json
from dehvf_kit.errors import DehvfError, did_you_mean
from dehvf_kit.utils.atomic import exists, writing

TEMPLATES = Path(__file__).parent / "plugin_templates"
NAME = re.compile(r"[a-z][a-z0-9]*([-_][a-z0-9]+)*")
PREFIX = "dehvf-kit-"
# What each kind is, the role that `dehvf-kit list` shows it under, and how a recipe names it.
KINDS = {
    "vision": (
        "A vision encoder for dehvf-kit.",
        "vision",
        "In a recipe: `vision: {type: TYPE, checkpoint: weights.safetensors}`.",
    ),
    "decoder": (
        "A decoder for dehvf-kit.",
        "decoder",
        'In a recipe: `decoder: {model: folder}`, where the folder\'s config.json says `"model_type": "TYPE"`.',
    ),
    "component": ("A fuser for dehvf-kit.", "fuser", "In a recipe: `graph: {fuser: {type: TYPE}}`."),
    "injector": (
        "An injector for dehvf-kit: a component attached to the decoder.",
        "injector",
        "In a recipe: `graph: {injector: {type: TYPE}, position: null}`.",
    ),
    "data": ("A data set for dehvf-kit.", "data", "In a recipe: `data: {type: TYPE, path: folder}`."),
}


def new_plugin(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Lower-case words: my-fuser.", show_default=False)],
    kind: Annotated[
        str,
        typer.Option(
            "--kind", help="vision, decoder, component, injector, data.", show_default=False, autocompletion=lambda: list(KINDS)
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Parent of the package's folder.")] = Path("."),
    as_json: Json = False,
) -> None:
    """Write the package. Raises: DehvfError for an invalid name or kind, or a folder that exists."""
    files = write_plugin(name, kind, output)
    folder = files[0].parent
    if as_json:
        print_json({"folder": str(folder), "kind": kind, "files": [str(file) for file in files]})
        return
    for file in files:
        print(file)
    print(f"next: pip install --editable {folder}; python -m pytest {folder}")


def write_plugin(name: str, kind: str, parent: Path) -> list[Path]:
    """Write the package `dehvf-kit-NAME` into a folder of that name below `parent`, and return its files.

    Raises: DehvfError for a name or kind that will not do, or where the folder is there already; nothing is written then.
    """
    short = name.removeprefix(PREFIX)
    if kind not in KINDS:
        raise DehvfError(f"--kind {kind}: one of {', '.join(KINDS)}{did_you_mean(kind, KINDS)}")
    if not NAME.fullmatch(short) or keyword.iskeyword(short):
        raise DehvfError(f"'{name}' cannot name a plugin; wants lower-case words such as my-fuser")
    folder = parent / f"{PREFIX}{short}"
    if exists(folder):
        raise DehvfError(f"{folder}: is there already; name another plugin, or another folder with --output")
    values = _values(short, kind)
    texts = {
        "pyproject.toml": TEMPLATES / "pyproject.toml.txt",
        "README.md": TEMPLATES / "README.md.txt",
        ".gitignore": TEMPLATES / "gitignore.txt",
        f"{values['module']}.py": TEMPLATES / kind / "plugin.py.txt",
        f"tests/test_{values['type']}.py": TEMPLATES / kind / "test_plugin.py.txt",
    }
    with writing(folder):
        parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=parent, prefix=f".{folder.name}.") as place:
            made = Path(place) / folder.name
            for file, template in texts.items():
                (made / file).parent.mkdir(parents=True, exist_ok=True)
                (made / file).write_text(_filled(template.read_text(encoding="utf-8"), values), encoding="utf-8")
            shutil.move(made, folder)
    return [folder / file for file in texts]


def _values(short: str, kind: str) -> dict[str, str]:
    words = re.split("[-_]", short)
    summary, role, use = KINDS[kind]
    kind_name = "_".join(words)
    return {
        "package": f"{PREFIX}{short}",
        "module": f"dehvf_kit_{kind_name}",
        "type": kind_name,
        "class": "".join(word.capitalize() for word in words),
        "summary": summary,
        "role": role,
        "use": use.replace("TYPE", kind_name),
        "needs": ", which the tests need too" if kind == "data" else "",
        "kit": __version__,
    }


def _filled(template: str, values: dict[str, str]) -> str:
    return re.sub(r"\{\{(\w+)\}\}", lambda found: values[found[1]], template)
