"""`dehvf-kit eval`: a trained adapter scored on the test split of its data set."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dehvf_kit.cli.console import grid, print_json, quiet_transformers, stdout
from dehvf_kit.cli.progress import reporting
from dehvf_kit.errors import DataError


def run(adapter: Path, overrides: Sequence[str], limit: int | None, output: Path | None, as_json: bool) -> None:
    """Ask, compare, print; with `output` every answer is kept, one JSON object a line.

    Raises: AdapterError for what is no adapter, DataError where it has no data set or a sample cannot be read.
    """
    from dehvf_kit.checkpoint import load
    from dehvf_kit.data.features import FeatureStore
    from dehvf_kit.scoring.answers import accuracy, answer

    if output is not None and output.exists():
        raise DataError(f"{output}: exists already; name another --output")
    quiet_transformers()
    model = load(adapter, overrides=overrides)
    recipe = model.recipe
    if recipe.data is None:
        raise DataError(
            f"{adapter}: its recipe has no `data` section; name one, for example data.type=jsonl data.test=FILE"
        )
    samples = list(recipe.data.samples("test"))[:limit]
    if not samples:
        raise DataError(f"{adapter}: the test split of its data set is empty")
    with reporting() as report:
        features = None
        if model.reads_pictures and not model.image_is_trained:
            features = FeatureStore(model)
            features.fill(samples, progress=lambda done, total: report("reading pictures", done, total))
        predictions = answer(
            model, samples, features=features, progress=lambda done, total: report("asking", done, total)
        )
    if output is not None:
        rows = [json.dumps(one.row(), ensure_ascii=False) + "\n" for one in predictions]
        try:
            output.write_text("".join(rows), encoding="utf-8")
        except OSError as error:
            raise DataError(f"{output}: cannot be written: {error.strerror or error}") from error
    scores = accuracy(predictions)
    if as_json:
        print_json({"adapter": str(adapter), **scores, "predictions": str(output) if output else None})
        return
    show(scores)
    if output is not None:
        print(f"every answer: {output}")


def show(scores: dict[str, Any]) -> None:
    """The scores as a table."""
    table = grid("left", "right", "left", "right")
    table.add_row("", "[bold]questions[/]", "[bold]accuracy[/]", "[bold]95% interval[/]", "[bold]count[/]")
    for name, row in [("all", scores["all"]), *scores["by_kind"].items()]:
        interval = f"{row['low']:.1%} to {row['high']:.1%}"
        table.add_row("", name, f"{row['accuracy']:.1%}", interval, f"{row['questions']:,}")
    stdout().print(table)
