"""Scores of the validation split while a run trains, and of the test split at its end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from accelerate.utils import gather_object
from torch.utils.data import Dataset

from dehvf_kit.data.metrics.exact_match import Prediction
from dehvf_kit.data.sample_filter import SampleFilter, with_skipped
from dehvf_kit.data.samples import DataConfig, Sample, Split
from dehvf_kit.errors import DataError
from dehvf_kit.evaluation.answers import answer
from dehvf_kit.model.features import FeatureStore
from dehvf_kit.model.model import DehvfModel
from dehvf_kit.recipe.recipe import Recipe
from dehvf_kit.training.distributed import Processes
from dehvf_kit.training.training_set import Progress, StreamedSamples, TrainingSet, training_set


@dataclass(frozen=True)
class Questions:
    """A split that a run is scored on: its questions, and the same ones encoded, of which the loss is taken.

    asked: every question, with those that were skipped as bad, which count as wrong.
    """

    data: DataConfig
    split: Split
    asked: Sequence[Sample]
    given: SampleFilter
    encoded: Dataset[Any]
    features: FeatureStore | None
    processes: Processes
    progress: Progress

    def score(self, model: DehvfModel, share: bool = True) -> float:
        """The figure that stands for the data set's score, as `dehvf-kit eval` gives it. share: each process asks its part."""
        rank, count = (self.processes.rank, self.processes.count) if share else (0, 1)
        samples = self.given.samples
        mine = list(range(rank, len(samples), count))
        predictions = self.data.ask(
            answer,
            model,
            [samples[place] for place in mine],
            features=self.features,
            progress=lambda done, total: self.progress(f"scoring the {self.split} split", done, total, ""),
        )
        found: Mapping[int, Prediction] = dict(zip(mine, predictions, strict=True))
        if count > 1:
            found = dict(gather_object(list(found.items())))
        answers = with_skipped([found[place] for place in range(len(samples))], self.asked, self.given.skipped)
        return float(self.data.score(answers).headline.value)


def scored_split(
    recipe: Recipe,
    split: Split,
    model: DehvfModel,
    data: TrainingSet,
    features: FeatureStore | None,
    progress: Progress,
    processes: Processes,
) -> Questions:
    """A split made ready to be asked. Raises: DataError where it is empty, cannot be read, or holds a training sample."""
    config: Any = recipe.data
    given = SampleFilter(config, split)
    if not (asked := list(given.samples)):
        raise DataError(f"{recipe.source}: the {split} split of its data set is empty")
    config.check_scoring()
    given.with_question()
    if model.reads_images:
        given.samples = given.readable(lambda done, total: progress("opening images", done, total, ""))
    trained = set(getattr(data.dataset, "samples", ()))
    if both := [sample.id for sample in asked if sample in trained]:
        raise DataError(f"{recipe.source}: {len(both):,} samples of the {split} split are training samples too: {both[0]}")
    encoded: Any = training_set(recipe, model, SampleFilter(config, split, given.samples), features, progress, processes).dataset
    batched = encoded.samples if isinstance(data.dataset, StreamedSamples) else encoded  # as the run's collator wants them
    return Questions(config, split, asked, given, batched, encoded.features, processes, progress)
