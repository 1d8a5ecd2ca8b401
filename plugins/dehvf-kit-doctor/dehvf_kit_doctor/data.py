"""`dehvf-kit data`: training samples as the model will see them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.text import Text

from dehvf_kit.cli.arguments import Json, Overrides, RecipeFile
from dehvf_kit.cli.console import print_json, section, stdout
from dehvf_kit.errors import DataError


def data(
    recipe: RecipeFile,
    overrides: Overrides = None,
    peek: Annotated[int, typer.Option("--peek", min=1, help="Training samples to show.")] = 3,
    as_json: Json = False,
) -> None:
    """Print the first samples; needs the decoder's tokenizer, not its weights. Raises: RecipeError, DataError."""
    from dehvf_kit.adapter.identity import fingerprint
    from dehvf_kit.data.sample_filter import SampleFilter
    from dehvf_kit.recipe.recipe import load_recipe
    from dehvf_kit_doctor.peek import peek_samples

    loaded = load_recipe(recipe, overrides or ())
    if loaded.data is None:
        raise DataError(f"{recipe}: has no `data` section")
    samples = SampleFilter(loaded.data, "train").samples
    if not samples:
        raise DataError(f"{recipe}: its training set is empty")
    shown = peek_samples(loaded, samples[:peek])
    prompt = fingerprint(loaded)
    if as_json:
        print_json({"samples": len(samples), "peek": shown, "fingerprint": prompt})
        return
    _show(shown)
    print(f"\n{len(samples):,} training samples; prompt fingerprint {prompt['hash']}")


def _show(samples: Sequence[dict[str, Any]]) -> None:
    """Each sample: its source, its image and its tokens; tokens with loss are in brackets (bold on a terminal)."""
    console = stdout()
    for sample in samples:
        section(console, escape(sample["id"]), escape(sample["kind"]))
        image = sample["image"]
        console.print(f"  image    {escape(_image(image))}")
        loss = sum(token["loss"] for token in sample["tokens"])
        cut = f", {sample['cut']} cut from the beginning" if sample["cut"] else ""
        console.print(f"  tokens   {len(sample['tokens'])}, {loss} with loss{cut}")
        line = Text("  ")
        for token in sample["tokens"]:
            text = token["text"].replace("\n", "\\n")
            line.append(f"[{text}]" if token["loss"] else text, style="bold green" if token["loss"] else "")
            line.append("·", style="dim")
        console.print(line, soft_wrap=True)


def _image(image: dict[str, Any] | None) -> str:
    if image is None:
        return "none"
    width, height = image["size"]
    sees = ", ".join(f"{name} sees {'x'.join(map(str, shape[-2:]))}" for name, shape in image["pixel_values"].items())
    return f"{image['path']}, {width}x{height}; {sees}"
