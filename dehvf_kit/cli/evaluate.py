"""`dehvf-kit eval`: a trained adapter scored on the test split of its data set."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dehvf_kit.cli.console import print_json, quiet_transformers
from dehvf_kit.cli.progress import reporting
from dehvf_kit.cli.scores import as_text, refuse_existing, show, write_new
from dehvf_kit.errors import DataError


def run(
    adapter: Path,
    overrides: Sequence[str],
    limit: int | None,
    output: Path | None,
    as_json: bool,
    results: Path | None = None,
    allow_prompt_mismatch: bool = False,
    store: bool = False,
) -> None:
    """Ask, score as the data set says, print.

    output: every answer, one JSON object a line; results: the predictions in the benchmark's own layout; store: keep the
    scores in the adapter's card.
    Raises: AdapterError for what is no adapter or was trained on other prompts, DataError where it has no data set or a
    sample cannot be read.
    """
    from dehvf_kit.adapter.checkpoint import load
    from dehvf_kit.data.sample_filter import SKIPPED, SampleFilter, note_skipped, summary, with_skipped, write_skipped
    from dehvf_kit.evaluation.answers import answer
    from dehvf_kit.model.feature_files import cached_features

    refuse_existing(output, results)
    quiet_transformers()
    mismatch = _mismatch(adapter, overrides, allow_prompt_mismatch)
    model = load(adapter, overrides=overrides)
    recipe = model.recipe
    if recipe.data is None:
        raise DataError(
            f"{adapter}: its recipe has no `data` section; name one, for example data.type=jsonl data.test=FILE"
        )
    sample_filter = SampleFilter(recipe.data, "test")
    sample_filter.samples = asked = sample_filter.samples[:limit]
    if not asked:
        raise DataError(f"{adapter}: the test split of its data set is empty")
    with reporting() as report:
        samples = asked
        if model.reads_images:
            samples = sample_filter.readable(lambda done, total: report("opening pictures", done, total))
        features = None
        if model.reads_images and not model.image_is_trained:
            features = cached_features(model, recipe.training)
            features.fill(samples, progress=lambda done, total: report("reading pictures", done, total))
        predictions = answer(
            model, samples, features=features, progress=lambda done, total: report("asking", done, total)
        )
    predictions = with_skipped(predictions, asked, sample_filter.skipped)
    if output is not None:
        write_new(output, "".join(json.dumps(one.row(), ensure_ascii=False) + "\n" for one in predictions))
    listed = write_skipped(output.with_suffix(f".{SKIPPED}"), sample_filter.skipped) if output is not None else None
    scores = note_skipped(recipe.data.score(predictions), sample_filter.skipped)
    if results is not None:
        write_new(results, as_text(scores.results))
    if store:
        from dehvf_kit.adapter.measured import keep

        rows = {one.name: one.row() for one in scores.scores}
        keep(adapter, "scores", {"data": _asked(recipe.data, len(samples), limit), "scores": rows})
    if as_json:
        files = {"predictions": str(output) if output else None, "results": str(results) if results else None}
        print_json({"adapter": str(adapter), **scores.facts, **files, "prompt_mismatch": mismatch})
        return
    show(scores)
    if sample_filter.skipped:
        print(summary(sample_filter.skipped, listed))
    for label, file in (("every answer", output), ("results", results)):
        if file is not None:
            print(f"{label}: {file}")


def _asked(data: Any, count: int, limit: int | None) -> str:
    """What was asked, in the words of a card."""
    return f"{'the first ' if limit else ''}{count:,} questions of the test split of its `{data.type}` data"


def _mismatch(adapter: Path, overrides: Sequence[str], allowed: bool) -> list[dict[str, Any]]:
    """How the prompt differs from the one trained on; refused where it does, unless allowed."""
    from dehvf_kit.adapter.checkpoint import adapter_recipe
    from dehvf_kit.adapter.files import read_config
    from dehvf_kit.adapter.fingerprint import check_fingerprint, differences, fingerprint, saved_fingerprint

    config = read_config(adapter)
    trained = saved_fingerprint(config, adapter_recipe(config, adapter), str(adapter))
    asked = fingerprint(adapter_recipe(config, adapter, overrides))
    if not allowed:
        check_fingerprint(trained, asked, str(adapter))
    return [{"field": name, "trained": before, "now": now} for name, before, now in differences(trained, asked)]
