"""`dehvf-kit generate`: one question about an image, or about several."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Annotated

import typer

from dehvf_kit.cli.arguments import Json
from dehvf_kit.cli.console import print_json, waiting
from dehvf_kit.errors import DataError

FIELD = re.compile(r"[a-z_]+(\.\w+)+=")
DEMO_ADAPTER = Path("runs/demo/adapter")


def generate(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGE... QUESTION [KEY=VALUE]...",
            help="One image file or several, what to ask about them, and fields to change.",
            show_default=False,
        ),
    ],
    adapter: Annotated[
        Path, typer.Option("--adapter", "-a", metavar="ADAPTER", help="A trained adapter's folder, its run's, or its hub id.")
    ] = DEMO_ADAPTER,
    max_new_tokens: Annotated[
        int | None, typer.Option("--max-new-tokens", min=1, help="Length of the answer.", show_default="the recipe's")
    ] = None,
    as_json: Json = False,
) -> None:
    """Answer and print.

    Raises: AdapterError for what is not an adapter, DataError for what is not an image."""
    from dehvf_kit.data.samples import Sample

    *images, question = [word for number, word in enumerate(words) if number < 2 or not FIELD.match(word)]
    overrides = [word for word in words[2:] if FIELD.match(word)]
    for image in images:
        if not os.path.isfile(image):
            raise DataError(f"there is no image '{image}'")
    if not images:
        raise typer.BadParameter("a question follows the image: dehvf-kit generate IMAGE... QUESTION")
    if not question.strip():
        raise DataError("the question is empty")
    with waiting(f"Loading {adapter}", plain=True):
        from dehvf_kit.adapter.checkpoint import load
        from dehvf_kit.data.images import open_image
        from dehvf_kit.evaluation.answers import answer

        first, *others = map(Path, images)
        sample = Sample(id=images[0], question=question, answer="", image=first, further_images=tuple(others))
        for one in sample.apart():
            open_image(one)
        model = load(adapter, overrides=overrides)
        limits = {} if max_new_tokens is None else {"max_new_tokens": max_new_tokens}
        (found,) = answer(model, [sample], **limits)
    if found.cut:
        print(f"note: the prompt lost {found.cut:,} tokens at its beginning, being too long", file=sys.stderr)
    if as_json:
        facts = {"image": images[0], "images": images, "question": question, "answer": found.prediction}
        print_json({**facts, "adapter": str(adapter)})
        return
    print(found.prediction)
