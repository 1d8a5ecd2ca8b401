"""A stream of samples as training reads it: endless, one pass after another, encoded a batch at a time."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

from torch.utils.data import IterableDataset, get_worker_info

from dehvf_kit.data.encoding import Collator, EncodedSamples
from dehvf_kit.data.processing import DehvfProcessor
from dehvf_kit.data.samples import PromptConfig, Sample
from dehvf_kit.data.stream import SampleStream
from dehvf_kit.errors import DataError
from dehvf_kit.recipe.sections import TrainingConfig


class StreamedSamples(IterableDataset):
    """Samples of a stream without end, each pass in an order of its own.

    Being endless, it is at the same place after as many samples, whatever came between: a run that is resumed skips those
    it has seen. Raises, when read: DataError for an empty stream.
    """

    def __init__(self, stream: SampleStream, seed: int, collator: StreamCollator) -> None:
        self.stream, self.seed, self.collator = stream, seed, collator

    def __iter__(self) -> Iterator[Sample]:
        worker = get_worker_info()
        first, step = (worker.id, worker.num_workers) if worker is not None else (0, 1)
        return itertools.islice(self._endless(), first, None, step)

    def _endless(self) -> Iterator[Sample]:
        for turn in itertools.count():
            sample = None
            for sample in self.stream.shuffled(self.seed, turn):  # noqa: B007
                yield sample
            if sample is None:
                raise DataError(f"data.{self.stream.split}: holds no samples")


class StreamCollator:
    """Samples -> a padded batch: what `EncodedSamples` and `Collator` make of them."""

    def __init__(self, processor: DehvfProcessor, prompt: PromptConfig, max_length: int, pictures: bool) -> None:
        self.processor, self.prompt, self.max_length, self.pictures = processor, prompt, max_length, pictures
        self.collate = Collator(processor.tokenizer.pad_token_id)

    def __call__(self, samples: Sequence[Sample]) -> dict[str, Any]:
        encoded = EncodedSamples(samples, self.processor, self.prompt, self.max_length, self.pictures)
        return self.collate([encoded[place] for place in range(len(encoded))])


def streamed(stream: SampleStream, processor: DehvfProcessor, prompt: PromptConfig, training: TrainingConfig,
             pictures: bool) -> StreamedSamples:  # fmt: skip
    """A stream made ready to train on under a recipe's `training` section."""
    collator = StreamCollator(processor, prompt, training.max_length, pictures)
    return StreamedSamples(stream, training.seed, collator)


def check_streamable(training: TrainingConfig) -> None:
    """Raises: DataError for settings that need to know all samples beforehand."""
    wrong = [name for name in ("cache_features", "group_by_length") if getattr(training, name)]
    if wrong:
        settings = " ".join(f"training.{name}=false" for name in wrong)
        raise DataError(f"a stream is not known beforehand, so features and lengths cannot be; set {settings}")
