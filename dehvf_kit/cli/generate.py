"""`dehvf-kit generate`: one question about one picture."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from dehvf_kit.cli.console import print_json, quiet_transformers, waiting
from dehvf_kit.errors import DataError


def run(
    adapter: Path,
    image: Path,
    question: str,
    max_new_tokens: int | None,
    as_json: bool,
    overrides: Sequence[str] = (),
) -> None:
    """Answer and print. Raises: AdapterError for what is no adapter, DataError for what is no picture."""
    from dehvf_kit.data.samples import Sample

    if not os.path.isfile(image):
        raise DataError(f"there is no picture '{image}'")
    if not question.strip():
        raise DataError("the question is empty")
    quiet_transformers()
    with waiting(f"Loading {adapter}", plain=True):
        from dehvf_kit.adapter.checkpoint import load
        from dehvf_kit.data.images import open_image
        from dehvf_kit.evaluation.answers import answer

        sample = Sample(id=str(image), question=question, answer="", image=image)
        open_image(sample)
        model = load(adapter, overrides=overrides)
        limits = {} if max_new_tokens is None else {"max_new_tokens": max_new_tokens}
        (found,) = answer(model, [sample], **limits)
    if as_json:
        print_json({"image": str(image), "question": question, "answer": found.prediction, "adapter": str(adapter)})
        return
    print(found.prediction)
