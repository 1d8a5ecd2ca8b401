"""`dehvf-kit eval`: a trained adapter scored on the test split of its data set."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dehvf_kit._version import __version__
from dehvf_kit.cli.arguments import Adapter, Json, Overrides
from dehvf_kit.cli.console import print_json, quiet_transformers, reporting
from dehvf_kit.cli.scores import show_scores
from dehvf_kit.errors import DataError
from dehvf_kit.utils import atomic
from dehvf_kit.utils.atomic import check_new_files

if TYPE_CHECKING:
    from dehvf_kit.data.metrics.exact_match import Prediction
    from dehvf_kit.data.metrics.scores import Scores
    from dehvf_kit.data.samples import Sample
    from dehvf_kit.evaluation.kept_answers import KeptAnswers
    from dehvf_kit.model.model import DehvfModel

MEASURED = "measured.json"
NAMED = 5


def evaluate(
    adapter: Adapter,
    overrides: Overrides = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Most questions to ask.", show_default=False)] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write every answer, as JSON lines.", show_default=False)
    ] = None,
    results: Annotated[
        Path | None, typer.Option("--results", metavar="FILE", help="Write the predictions in the benchmark's own format.")
    ] = None,
    allow_prompt_mismatch: Annotated[
        bool, typer.Option("--allow-prompt-mismatch", help="Continue where prompt or images differ from those trained on.")
    ] = False,
    store: Annotated[bool, typer.Option("--store", help="Store the scores in the adapter's measured.json and card.")] = False,
    as_json: Json = False,
) -> None:
    """Ask, score as the data set defines it, print.

    Raises: AdapterError for what is not an adapter or was trained on other prompts, DataError where it has no data set or a
    sample cannot be read.
    """
    from dehvf_kit.adapter.checkpoint import load
    from dehvf_kit.adapter.files import adapter_folder
    from dehvf_kit.data.sample_filter import SKIPPED, SampleFilter, note_skipped, summary, with_skipped, write_skipped
    from dehvf_kit.evaluation.answers import answer
    from dehvf_kit.model.feature_files import cached_features

    given, adapter = adapter, adapter_folder(adapter)
    if store and adapter != given:
        raise DataError(f"--store: {given} is on the hub; `hf download {given} --local-dir DIR`, and score that folder")
    replaced = {"--store (measured.json)": adapter / MEASURED, "--store (README.md)": adapter / "README.md"}
    check_new_files({"--output": output, "--results": results}, replaced if store else {})
    quiet_transformers()
    _mismatch(adapter, overrides or (), allow_prompt_mismatch)
    model = load(adapter, overrides=overrides or ())
    mismatch = _mismatch(adapter, overrides or (), allow_prompt_mismatch, model.processor.tokenizer)
    recipe = model.recipe
    if recipe.data is None:
        raise DataError(f"{adapter}: its recipe has no `data` section; name one, for example data.type=jsonl data.test=FILE")
    sample_filter = SampleFilter(recipe.data, "test")
    sample_filter.samples = asked = sample_filter.samples[:limit]
    if not asked:
        raise DataError(f"{adapter}: the test split of its data set is empty")
    recipe.data.check_scoring()
    with reporting() as report:
        samples = sample_filter.with_question()
        if model.reads_images:
            samples = sample_filter.readable(lambda done, total: report("opening images", done, total))
        features = None
        if model.reads_images and not model.image_is_trained:
            features = cached_features(model, recipe.training)
            features.fill(samples, progress=lambda done, total: report("reading images", done, total))
        with _kept(adapter, model, samples, output) as kept:
            predictions = answer(
                model, samples, features=features, progress=lambda done, total: report("answering", done, total), kept=kept
            )
    predictions = with_skipped(predictions, asked, sample_filter.skipped)
    if output is not None:
        atomic.write_output(output, "".join(json.dumps(one.row(), ensure_ascii=False) + "\n" for one in predictions))
    listed = write_skipped(output.with_suffix(f".{SKIPPED}"), sample_filter.skipped) if output is not None else None
    scores = _noted(note_skipped(recipe.data.score(predictions), sample_filter.skipped), predictions)
    if results is not None:
        atomic.write_output(results, json.dumps(scores.results, indent=1, ensure_ascii=False) + "\n")
    if store:
        from dehvf_kit.adapter.card import keep

        rows = {one.name: one.row() for one in scores.scores}
        keep(adapter, "scores", {"data": _asked(recipe.data, len(samples), limit), "scores": rows})
    if kept is not None:
        kept.remove()
    if as_json:
        files = {"predictions": str(output) if output else None, "results": str(results) if results else None}
        print_json({"adapter": str(given), **scores.facts, **files, "prompt_mismatch": mismatch})
        return
    show_scores(scores)
    if sample_filter.skipped:
        print(summary(sample_filter.skipped, listed))
    for label, file in (("every answer", output), ("results", results)):
        if file is not None:
            print(f"{label}: {file}")


def _asked(data: Any, count: int, limit: int | None) -> str:
    """What was asked, in the words of a card."""
    return f"{'the first ' if limit else ''}{count:,} questions of the test split of its `{data.type}` data"


def _mismatch(adapter: Path, overrides: Sequence[str], allowed: bool, tokenizer: Any = None) -> list[dict[str, Any]]:
    """How the prompt differs from the one trained on; refused where it does, unless allowed. tokenizer: None before it is known."""
    from dehvf_kit.adapter.checkpoint import adapter_recipe
    from dehvf_kit.adapter.files import read_config
    from dehvf_kit.adapter.fingerprint import check_fingerprint, differences, fingerprint, saved_fingerprint

    config = read_config(adapter)
    trained = saved_fingerprint(config, adapter_recipe(config, adapter), str(adapter))
    asked = fingerprint(adapter_recipe(config, adapter, overrides), tokenizer)
    if not allowed:
        check_fingerprint(trained, asked, str(adapter))
    return [{"field": name, "trained": before, "now": now} for name, before, now in differences(trained, asked)]


@contextmanager
def _kept(adapter: Path, model: DehvfModel, samples: Sequence[Sample], output: Path | None) -> Iterator[KeptAnswers | None]:
    """The file of answers so far: beside `--output`, else in the cache folder; None where neither can be written.

    Says where an earlier evaluation left off, and, where this one ends early, how to go on.
    """
    import torch
    import transformers

    from dehvf_kit.adapter.files import WEIGHTS, read_config
    from dehvf_kit.evaluation.kept_answers import SUFFIX, KeptAnswers, digest
    from dehvf_kit.model.feature_files import default_folder

    facts = {
        "adapter": read_config(adapter),
        "weights": atomic.sha256(adapter / WEIGHTS),
        "recipe": model.recipe.resolved(),
        "device": next(model.decoder.parameters()).device.type,
        "versions": [__version__, torch.__version__, transformers.__version__],
    }
    key = digest(facts, samples)
    if output is not None:
        file = output.with_name(f"{output.name}.{key}{SUFFIX}")
    else:
        file = default_folder().parent / "answers" / f"{key}{SUFFIX}"
    try:
        if output is None:
            file.parent.mkdir(parents=True, exist_ok=True)
        file.open("ab").close()
    except OSError as error:
        print(f"warning: answers are not kept as they come: {file}: {error.strerror or error}", file=sys.stderr)
        yield None
        return
    kept = KeptAnswers(file)
    before = len(kept.known)
    if before:
        print(f"going on with {before:,} of {len(samples):,} answers from {file}", file=sys.stderr)
    try:
        yield kept
    except BaseException:
        if kept.known:
            print(
                f"{len(kept.known):,} of {len(samples):,} answers are kept in {file}; the same command goes on from there",
                file=sys.stderr,
            )
        else:
            kept.remove()
        raise


def _noted(scores: Scores, predictions: Sequence[Prediction]) -> Scores:
    """Scores that say how many prompts lost their beginning, and how many references are empty."""
    found = {
        "cut": ("prompts that were too long and lost their beginning", [one.id for one in predictions if one.cut]),
        "empty_answers": ("empty reference answers", [one.id for one in predictions if not one.answer.strip()]),
    }
    notes, facts = list(scores.notes), dict(scores.facts)
    for name, (what, ids) in found.items():
        if ids:
            more = f" and {len(ids) - NAMED:,} more" if len(ids) > NAMED else ""
            notes.append(f"{what}: {len(ids):,} ({', '.join(ids[:NAMED])}{more})")
            facts[name] = ids
    return replace(scores, facts=facts, notes=notes)
