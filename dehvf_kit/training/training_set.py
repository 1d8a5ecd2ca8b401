"""The samples of a run: read, sifted, their features filled, and encoded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch.utils.data import Dataset

from dehvf_kit.data.encoding import EncodedSamples
from dehvf_kit.data.sample_filter import SampleFilter, Skipped
from dehvf_kit.data.samples import Sample
from dehvf_kit.data.stream import SampleStream
from dehvf_kit.errors import DataError, DehvfError
from dehvf_kit.model.feature_files import cached_features
from dehvf_kit.model.features import FeatureStore
from dehvf_kit.model.model import DehvfModel
from dehvf_kit.recipe.recipe import Recipe
from dehvf_kit.training.answers import leave_out_unanswered
from dehvf_kit.training.distributed import Processes
from dehvf_kit.training.stream_encoding import check_streamable, streamed

Progress = Callable[[str, int, int, str], None]


@dataclass(frozen=True)
class TrainingSet:
    """What the Trainer reads: `count` samples; ids of those left out for want of an answer, and those skipped as bad."""

    dataset: Dataset
    count: int
    left_out: Sequence[str] = ()
    skipped: Sequence[Skipped] = ()


def read_samples(recipe: Recipe, samples: Sequence[Sample] | None) -> SampleFilter | SampleStream:
    """The training split, or `samples` in place of it. Raises: DataError where there is nothing, or as the data set does."""
    stream = recipe.data.stream("train") if samples is None else samples
    if isinstance(stream, SampleStream):
        check_streamable(recipe.training)
        return stream
    sample_filter = SampleFilter(recipe.data, "train", samples)
    if not sample_filter.samples:
        raise DataError(f"{recipe.source}: its training set is empty")
    return sample_filter


def training_set(
    recipe: Recipe,
    model: DehvfModel,
    given: SampleFilter | SampleStream,
    features: FeatureStore | None,
    progress: Progress,
    here: Processes,
) -> TrainingSet:
    """Samples ready to batch. features: kept ones to use; with several processes each fills its share.

    Raises: DataError where no sample can be learned from, DehvfError for a model without a tokenizer.
    """
    if model.processor is None:
        raise DehvfError("training needs a tokenizer; hand one over to build(..., tokenizer=...)")
    config, prompt, reads = recipe.training, recipe.data.prompt, model.reads_images
    if isinstance(given, SampleStream):
        return TrainingSet(streamed(given, model.processor, prompt, config, reads), len(given))
    samples = given.samples
    if reads:
        samples = given.readable(lambda done, total: progress("opening pictures", done, total, ""))
    if reads and config.cache_features:
        features = cached_features(model, config) if features is None else features
        share = (here.rank, here.count)
        features.fill(samples, progress=lambda done, total: progress("reading pictures", done, total, ""), share=share)
        here.wait()
    encoded = EncodedSamples(
        samples,
        model.processor,
        prompt,
        config.max_length,
        reads,
        features if config.cache_features else None,
        given.skip if given.skips else None,
    )
    if not len(encoded):
        raise DataError(f"{recipe.source}: every training sample was skipped; the first: {given.skipped[0].reason}")
    left_out = leave_out_unanswered(encoded)
    return TrainingSet(encoded, len(encoded), left_out, tuple(given.skipped))
