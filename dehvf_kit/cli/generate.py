"""`dehvf-kit generate`: one question about one image."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from dehvf_kit.cli.arguments import Json, Overrides
from dehvf_kit.cli.console import print_json, quiet_transformers, waiting
from dehvf_kit.errors import DataError

DEMO_ADAPTER = Path("runs/demo/adapter")


def generate(
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="An image file.", show_default=False)],
    question: Annotated[str, typer.Argument(metavar="QUESTION", help="What to ask about it.", show_default=False)],
    adapter: Annotated[
        Path, typer.Option("--adapter", "-a", metavar="ADAPTER", help="A trained adapter's folder or hub id.")
    ] = DEMO_ADAPTER,
    max_new_tokens: Annotated[
        int | None, typer.Option("--max-new-tokens", min=1, help="Length of the answer.", show_default="the recipe's")
    ] = None,
    overrides: Overrides = None,
    as_json: Json = False,
) -> None:
    """Answer and print. Raises: AdapterError for what is not an adapter, DataError for what is not an image."""
    from dehvf_kit.data.samples import Sample

    if not os.path.isfile(image):
        raise DataError(f"there is no image '{image}'")
    if not question.strip():
        raise DataError("the question is empty")
    quiet_transformers()
    with waiting(f"Loading {adapter}", plain=True):
        from dehvf_kit.adapter.checkpoint import load
        from dehvf_kit.data.images import open_image
        from dehvf_kit.evaluation.answers import answer

        sample = Sample(id=str(image), question=question, answer="", image=image)
        open_image(sample)
        model = load(adapter, overrides=overrides or ())
        limits = {} if max_new_tokens is None else {"max_new_tokens": max_new_tokens}
        (found,) = answer(model, [sample], **limits)
    if found.cut:
        print(f"note: the prompt lost {found.cut:,} tokens at its beginning, being too long", file=sys.stderr)
    if as_json:
        print_json({"image": str(image), "question": question, "answer": found.prediction, "adapter": str(adapter)})
        return
    print(found.prediction)
