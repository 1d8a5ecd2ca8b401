"""`evaluate`: a trained adapter scored on the test split of its data set, or on other data."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import transformers

from dehvf_kit._version import __version__
from dehvf_kit.adapter.card import keep
from dehvf_kit.adapter.checkpoint import adapter_recipe, load
from dehvf_kit.adapter.files import DIGEST, EVALUATIONS, LOG, MEASURED, WEIGHTS, adapter_folder, read_config
from dehvf_kit.adapter.identity import check_fingerprint, differences, fingerprint, saved_fingerprint
from dehvf_kit.data.metrics.exact_match import Prediction
from dehvf_kit.data.metrics.scores import Scores
from dehvf_kit.data.sample_filter import SKIPPED, SampleFilter, Skipped, note_skipped, with_skipped, write_skipped
from dehvf_kit.data.samples import Sample
from dehvf_kit.errors import AdapterError, DataError, DehvfError
from dehvf_kit.evaluation.answers import answer
from dehvf_kit.evaluation.kept_answers import SUFFIX, KeptAnswers, digest
from dehvf_kit.model.feature_files import cached_features
from dehvf_kit.model.model import DehvfModel
from dehvf_kit.recipe.files import merge
from dehvf_kit.recipe.recipe import Recipe, parse_recipe
from dehvf_kit.utils import atomic
from dehvf_kit.utils.atomic import cache_folder, check_new_files
from dehvf_kit.utils.frames import frame

NAMED = 5


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found.

    scores: every figure of the data set's benchmark, `scores.headline` the main one; predictions: an answer for each question;
    skipped: samples that could not be asked, which count as wrong, and `skipped_list` the file that names them;
    prompt_mismatch: fields of the prompt that differ from training.
    """

    scores: Scores
    predictions: Sequence[Prediction]
    skipped: Sequence[Skipped] = ()
    skipped_list: Path | None = None
    prompt_mismatch: Sequence[Mapping[str, Any]] = ()

    def to_pandas(self) -> Any:
        """The answers as a pandas DataFrame, a row for each question. Raises: DehvfError without pandas."""
        return frame([one.row() for one in self.predictions])


def evaluate(
    adapter: DehvfModel | str | Path,
    data: Mapping[str, Any] | str | Path | None = None,
    *,
    overrides: Sequence[str] = (),
    limit: int | None = None,
    output: str | Path | None = None,
    results: str | Path | None = None,
    allow_prompt_mismatch: bool = False,
    store: bool = False,
    progress: Callable[[str, int, int], None] = lambda *_: None,
) -> Evaluation:
    """Ask an adapter the test split of its data set and score the answers, as `dehvf-kit eval` does.

    Args:
        adapter: an adapter's folder or its run's, or a model in memory.
        data: other data: fields over those of the recipe's `data`, or the file or folder of another test split.
        overrides: `key=value` changes to the recipe of an adapter's folder.
        limit: the most questions to ask.
        output: a new file for every answer, as JSON lines. An evaluation of a folder that was ended goes on from there.
        results: a new file for the predictions in the benchmark's own format.
        allow_prompt_mismatch: whether to go on where prompt or images differ from those trained on.
        store: whether to store the scores in the adapter's measured.json and card.
        progress: called with a stage, what is done of it, and how much there is.

    Returns:
        Scores and answers.

    Raises:
        AdapterError: for what is not an adapter, or was trained on other prompts.
        DataError: where there is no data set or no question, or a sample cannot be read.
    """
    output, results = Path(output) if output else None, Path(results) if results else None
    place = None if isinstance(adapter, DehvfModel) else adapter_folder(adapter)
    where = str(place or "the model")
    if store and not isinstance(adapter, DehvfModel) and not atomic.exists(Path(adapter)):
        raise DataError(f"--store: {adapter} is on the hub; `hf download {adapter} --local-dir DIR`, and score that folder")
    replaced = {f"--store ({name})": place / name for name in (MEASURED, "README.md")} if place and store else {}
    if output is not None and output.name:
        replaced[f"--output ({SKIPPED})"] = output.with_suffix(f".{SKIPPED}")
    check_new_files({"--output": output, "--results": results}, replaced)
    trained: Mapping[str, Any]
    if isinstance(adapter, DehvfModel):
        if store or overrides or adapter.recipe is None:
            raise AdapterError("evaluate: `store` and `overrides` are for an adapter's folder; save the model and name its folder")
        model, recipe = adapter, _with_data(adapter.recipe, data)
        trained = fingerprint(adapter.recipe, model.processor.tokenizer)
        mismatch = _compared(trained, fingerprint(recipe, model.processor.tokenizer), where, allow_prompt_mismatch)
    else:
        assert place is not None
        config = read_config(place)
        trained = saved_fingerprint(config, adapter_recipe(config, place), where)
        recipe = _with_data(adapter_recipe(config, place, overrides), data)
        _compared(trained, fingerprint(recipe), where, allow_prompt_mismatch)
        model = load(place, overrides=overrides)
        mismatch = _compared(trained, fingerprint(recipe, model.processor.tokenizer), where, allow_prompt_mismatch)
    if recipe.data is None:
        raise DataError(f"{where}: its recipe has no `data` section; name one, for example data.type=jsonl data.test=FILE")
    prompt, training = model.processor.prompt, model.training
    model.processor.prompt = recipe.data.prompt.model_dump()
    model.train(False)
    try:
        found = _asked(model, recipe, place, limit, output, results, store, progress)
    finally:
        model.processor.prompt = prompt
        model.train(training)
    return replace(found, prompt_mismatch=mismatch)


def compare(
    recipes: Sequence[Recipe | Mapping[str, Any] | str | Path], output: str | Path = "runs/compare", **settings: Any
) -> Any:
    """Train and score several recipes with identical data and budget, as `dehvf-kit compare` does.

    Args:
        recipes: each as `Recipe`, plain data or file; at least two.
        output: folder of the runs, the tables and the state from which the comparison is resumed.
        settings: of `dehvf_kit_compare.comparison.compare`, whose result this is.

    Raises: DehvfError where the plugin is not installed, or for recipes that cannot be compared.
    """
    try:
        module = import_module("dehvf_kit_compare.comparison")
    except ModuleNotFoundError as error:
        if str(error.name).partition(".")[0] != "dehvf_kit_compare":
            raise
        raise DehvfError("dehvf_kit.compare comes with the plugin dehvf-kit-compare; pip install 'dehvf-kit[compare]'") from error
    return module.compare(recipes, output, **settings)


def _with_data(recipe: Recipe, data: Mapping[str, Any] | str | Path | None) -> Recipe:
    """The recipe with other data. Raises: RecipeError for fields that do not fit."""
    if data is None:
        return recipe
    given = {"test": str(data)} if isinstance(data, str | Path) else dict(data)
    raw = {name: section for name, section in recipe.resolved().items() if section is not None}
    return parse_recipe(merge(raw, {"data": given}), recipe.source)


def _compared(trained: Mapping[str, Any], asked: Mapping[str, Any], where: str, allowed: bool) -> list[dict[str, Any]]:
    """How the prompt differs from the one trained on. Raises: AdapterError where it does, unless allowed."""
    if not allowed:
        check_fingerprint(trained, asked, where)
    return [{"field": name, "trained": before, "now": now} for name, before, now in differences(trained, asked)]


def _asked(
    model: DehvfModel,
    recipe: Recipe,
    place: Path | None,
    limit: int | None,
    output: Path | None,
    results: Path | None,
    store: bool,
    progress: Callable[..., None],
) -> Evaluation:
    """The answers, written and scored. place: of the adapter; None for a model in memory, whose answers are kept nowhere else."""
    data = recipe.data
    assert data is not None
    sample_filter = SampleFilter(data, "test")
    sample_filter.samples = asked = sample_filter.samples[:limit]
    if not asked:
        raise DataError(f"{place or 'the model'}: the test split of its data set is empty")
    if results is not None and (twice := [name for name, count in Counter(one.id for one in asked).items() if count > 1]):
        raise DataError(
            f"--results: {len(twice):,} ids are those of several questions, such as '{twice[0]}', and results are kept by id; name "
            "a column of unique ids by data.columns.id, or write --output in its place, which has every answer"
        )
    data.check_scoring()
    samples = sample_filter.with_question()
    features = None
    if model.reads_images:
        samples = sample_filter.readable(lambda done, total: progress("opening images", done, total))
        if not model.image_is_trained:
            features = cached_features(model, recipe.training)
            features.fill(samples, progress=lambda done, total: progress("reading images", done, total))
    with _kept(place, model, recipe, samples, output) as kept:
        predictions = data.ask(answer, model, samples, features=features, progress=partial(progress, "answering"), kept=kept)
    predictions = with_skipped(predictions, asked, sample_filter.skipped)
    listed = None
    if output is not None:
        atomic.write_output(output, "".join(json.dumps(one.row(), ensure_ascii=False) + "\n" for one in predictions))
        listed = write_skipped(output.with_suffix(f".{SKIPPED}"), sample_filter.skipped)
        if place is not None and atomic.is_file(place.parent / LOG):  # a run, whose report looks for its answers
            with suppress(OSError), (place.parent / EVALUATIONS).open("a", encoding="utf-8") as noted:
                noted.write(json.dumps({"predictions": str(output.absolute()), "weights": read_config(place).get(DIGEST)}) + "\n")
    scores = _noted(note_skipped(data.score(predictions), sample_filter.skipped), predictions)
    if results is not None:
        atomic.write_output(results, json.dumps(scores.results, indent=1, ensure_ascii=False) + "\n")
    if store and place is not None:
        first, kind = "the first " if limit else "", getattr(data, "type", "")
        what = f"{first}{len(samples):,} questions of the test split of its `{kind}` data"
        keep(place, "scores", {"data": what, "scores": {one.name: one.row() for one in scores.scores}})
    if kept is not None:
        kept.remove()
    return Evaluation(scores, predictions, tuple(sample_filter.skipped), listed)


@contextmanager
def _kept(
    adapter: Path | None, model: DehvfModel, recipe: Recipe, samples: Sequence[Sample], output: Path | None
) -> Iterator[KeptAnswers | None]:
    """The file of answers so far: beside `--output`, else in the cache folder; None where neither can be
    written, and for a model in memory.

    Says where an earlier evaluation left off, and, where this one ends early, how to go on.
    """
    if adapter is None:
        yield None
        return
    facts = {
        "adapter": read_config(adapter),
        "weights": atomic.sha256(adapter / WEIGHTS),
        "recipe": recipe.resolved(),
        "device": next(model.decoder.parameters()).device.type,
        "versions": [__version__, torch.__version__, transformers.__version__],
    }
    key = digest(facts, samples)
    file = Path(f"{output}.{key}{SUFFIX}") if output is not None else cache_folder() / "answers" / f"{key}{SUFFIX}"
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
