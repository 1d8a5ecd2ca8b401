"""`dehvf-kit data`: training samples as the model will see them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.text import Text

from dehvf_kit.cli.console import print_json, quiet_transformers, section, stdout
from dehvf_kit.errors import DataError


def run(path: Path, overrides: Sequence[str], peek: int, as_json: bool) -> None:
    """Print the first samples. Raises: RecipeError, DataError; needs the decoder's tokenizer, not its weights."""
    from dehvf_kit.adapter.fingerprint import fingerprint
    from dehvf_kit.data.sample_filter import SampleFilter
    from dehvf_kit.recipe.recipe import load_recipe
    from dehvf_kit.training.peek import peek_samples

    quiet_transformers()
    recipe = load_recipe(path, overrides)
    if recipe.data is None:
        raise DataError(f"{path}: has no `data` section")
    samples = SampleFilter(recipe.data, "train").samples
    if not samples:
        raise DataError(f"{path}: its training set is empty")
    shown = peek_samples(recipe, samples[:peek])
    prompt = fingerprint(recipe)
    if as_json:
        print_json({"samples": len(samples), "peek": shown, "fingerprint": prompt})
        return
    show(shown)
    print(f"\n{len(samples):,} training samples; prompt fingerprint {prompt['hash']}")


def show(samples: Sequence[dict[str, Any]]) -> None:
    """Each sample: where it is from, its picture, and its tokens; those with loss stand in brackets (bold on a terminal)."""
    console = stdout()
    for sample in samples:
        section(console, escape(sample["id"]), escape(sample["kind"]))
        picture = sample["picture"]
        console.print(f"  picture  {escape(_picture(picture))}")
        loss = sum(token["loss"] for token in sample["tokens"])
        cut = f", {sample['cut']} cut from the beginning" if sample["cut"] else ""
        console.print(f"  tokens   {len(sample['tokens'])}, {loss} with loss{cut}")
        line = Text("  ")
        for token in sample["tokens"]:
            text = token["text"].replace("\n", "\\n")
            line.append(f"[{text}]" if token["loss"] else text, style="bold green" if token["loss"] else "")
            line.append("·", style="dim")
        console.print(line, soft_wrap=True)


def _picture(picture: dict[str, Any] | None) -> str:
    if picture is None:
        return "none"
    width, height = picture["size"]
    sees = ", ".join(f"{name} sees {'x'.join(map(str, shape[-2:]))}" for name, shape in picture["pixel_values"].items())
    return f"{picture['path']}, {width}x{height}; {sees}"
