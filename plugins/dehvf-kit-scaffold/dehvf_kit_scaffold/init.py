"""`dehvf-kit init`: a first recipe from three questions."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Annotated

import typer

from dehvf_kit.cli.arguments import Json, Overrides
from dehvf_kit.cli.console import print_json, waiting
from dehvf_kit.errors import DehvfError
from dehvf_kit.utils.atomic import check_new_files, exists


def init(
    overrides: Overrides = None,
    decoder: Annotated[
        str | None, typer.Option("--decoder", help="A name from dehvf-kit list, a folder or a hub id.", show_default="asks")
    ] = None,
    vision: Annotated[
        str | None, typer.Option("--vision", help="A vision encoder, named likewise, or TYPE:MODEL.", show_default="asks")
    ] = None,
    data: Annotated[
        str | None, typer.Option("--data", help="A file, a folder, a data set's type, or none.", show_default="asks")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="The recipe.", show_default="DECODER_VISION.yaml")
    ] = None,
    as_json: Json = False,
) -> None:
    """Ask for what no option gives, check, write. Raises: DehvfError where an answer is missing or cannot be used."""
    with waiting("Loading plugins"):
        from dehvf_kit.recipe.plugin_manager import plugins
        from dehvf_kit.recipe.recipe import image_statements, parse_recipe
        from dehvf_kit_scaffold.starter import NO_DATA, starter_recipe, write_starter

        registry = plugins().registry
    if output is not None and exists(output):
        raise DehvfError(f"{output}: exists already; name another with --output")
    if output is not None:
        check_new_files({"--output": output})
    known = ", ".join(registry.sources)
    like = f"{known}, a folder or a hub id" if known else "a folder or a hub id"
    decoder = decoder or _ask("decoder", "Which decoder?", like)
    vision = vision or _ask("vision", "Which vision encoder?", like)
    types = ", ".join(registry.types("data"))
    data = data or _ask("data", "Which training data?", f"a file, a folder, {types}, or {NO_DATA}")
    name = output.stem if output is not None else _name(decoder, vision)
    file = output or Path(f"{name}.yaml")
    with waiting(f"Checking {file}"):
        raw = starter_recipe(name, decoder, vision, data, tuple(overrides or ()))
        images = image_statements(parse_recipe(raw, name))
    write_starter(file, raw)
    held_out = raw.get("data", {}).get("validation")
    if held_out:
        print(f"note: data.validation={held_out} holds that share of the images out as the test split", file=sys.stderr)
    for one in images.values():
        note = one.note or ("" if one.own is not None else f"{one.line}; set vision.image to what the encoder was trained with")
        if note:
            print(f"note: {note}", file=sys.stderr)
    if as_json:
        print_json({"file": str(file), "recipe": raw})
        return
    print(f"{file}: written and checked")
    print(f"next: dehvf-kit build {file}" + ("" if "data" not in raw else f"; dehvf-kit train {file}"))


def _ask(option: str, question: str, hint: str) -> str:
    """One answer from the terminal. Raises: DehvfError where standard input is not a terminal."""
    if sys.stdin is None or not sys.stdin.isatty():  # None where it was closed: <&-
        raise DehvfError(f"init: nobody to ask here; say --{option} ({hint})")
    return str(typer.prompt(f"{question}\n  {hint}\n ", prompt_suffix="> ", err=True)).strip()


def _name(decoder: str, vision: str) -> str:
    words = [part.rstrip("/").rpartition("/")[2].rpartition(":")[2] for part in (decoder, vision)]
    return re.sub(r"[^\w.]+", "_", "_".join(words)).strip("_").lower() or "recipe"
