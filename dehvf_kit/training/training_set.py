"""The samples of a run: read, filtered, their image features computed where they are kept, encoded; and its scored splits."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from torch.utils.data import Dataset, IterableDataset, get_worker_info

from dehvf_kit.data.encoding import IGNORED, Collator, EncodedSamples
from dehvf_kit.data.processing import DehvfProcessor
from dehvf_kit.data.sample_filter import SampleFilter, Skipped, image_issue, no_images
from dehvf_kit.data.samples import PREPARE, Issue, PromptConfig, Sample, Split, log_notes, refuse
from dehvf_kit.data.stream import LOOKED_AT, SampleStream
from dehvf_kit.data.tokens import embedded_tokens, longest_sample, require_tokenizer
from dehvf_kit.errors import DataError, DehvfError
from dehvf_kit.model.features import FeatureStore
from dehvf_kit.model.model import DehvfModel
from dehvf_kit.recipe.recipe import Recipe
from dehvf_kit.training.distributed import Processes

NAMED = 5
IDS = "sample_ids"
SKIPPED = "skipped_sample"
"""Key of a stream's skipped samples in a batch and in the log."""
NOTED = "noted_samples"
"""Key of what a stream's samples lose, or do not teach: in a batch the samples' ids by what it is, in the log their number."""
CUT = "prompts are longer than {longest} tokens with their answers and lose their beginning"
BLANK = "answers are empty, so the model learns to say nothing there"
Progress = Callable[[str, int, int, str], None]
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingSet:
    """What the Trainer reads: `count` samples; ids of those without an answer to learn, and those skipped as bad."""

    dataset: Dataset
    count: int
    left_out: Sequence[str] = ()
    skipped: Sequence[Skipped] = ()


def read_samples(recipe: Recipe, samples: Sequence[Sample] | None, reads_images: bool | None = None) -> SampleFilter | SampleStream:
    """The training split, or `samples` in place of it.

    Args:
        recipe: names the data set.
        samples: the samples, where they are given; they need no images.
        reads_images: whether the model reads images; None: whether the recipe's graph does.

    Raises:
        DataError: where it is empty, where not one sample has an image and nothing says so, or as the data set does.
    """
    reads_images = recipe.reads_images if reads_images is None else reads_images
    stream = recipe.data.stream("train") if samples is None else samples
    if isinstance(stream, SampleStream):
        head = stream.reading(LOOKED_AT)
        log_notes("data.train", head)
        _refuse_blind(recipe, head.samples, reads_images)
        if recipe.data.on_bad_sample == "error":
            refuse("data.train", head.issues, PREPARE)
        return stream
    sample_filter = SampleFilter(recipe.data, "train", samples)
    if not sample_filter.samples:
        raise DataError(f"{recipe.source}: its training set is empty")
    sample_filter.with_question()
    if samples is None:
        _refuse_blind(recipe, sample_filter.samples, reads_images)
    return sample_filter


def _refuse_blind(recipe: Recipe, samples: Sequence[Sample], reads_images: bool | None) -> None:
    """Raises: DataError for samples of which not one has an image."""
    blind = no_images(recipe.data, "train", samples, reads_images)
    refuse(recipe.source, [blind] if blind is not None else [], PREPARE)


def training_set(
    recipe: Recipe,
    model: DehvfModel,
    given: SampleFilter | SampleStream,
    features: FeatureStore | None,
    progress: Progress,
    processes: Processes,
) -> TrainingSet:
    """Samples ready to batch.

    Args:
        recipe: what to train, and on what.
        model: the model that will read the samples.
        given: as `read_samples` gives them.
        features: a store of image features to use in place of the recipe's.
        progress: called with stage, done, total and a note.
        processes: those that train together; each computes its share of the features.

    Raises:
        DataError: where no sample can be learned from.
        DehvfError: for a model without a tokenizer.
    """
    if model.processor is None:
        raise DehvfError("training needs a tokenizer; hand one over to build(..., tokenizer=...)")
    config, prompt, reads = recipe.training, recipe.data.prompt, model.reads_images
    require_tokenizer(model.processor.tokenizer, prompt, embedded_tokens(model))
    longest = longest_sample(config.max_length, model.graph)
    if isinstance(given, SampleStream):
        collator = StreamCollator(model.processor, prompt, longest, reads, config.compile)
        return TrainingSet(StreamedSamples(given, config.seed, collator), len(given))
    samples = given.readable(lambda done, total: progress("opening images", done, total, "")) if reads else given.samples
    several = next((sample for sample in samples if sample.further_images), None) if reads else None
    if several is not None and model.one_image_nodes:
        raise DataError(
            f"sample '{several.id}' has {len(several.images)} images, of which {', '.join(model.one_image_nodes)} can read one"
        )
    kept = None
    if reads and config.cache_features:
        from dehvf_kit.model.feature_files import cached_features

        kept, share = cached_features(model, config) if features is None else features, (processes.rank, processes.count)
        kept.fill(samples, progress=lambda done, total: progress("reading images", done, total, ""), share=share)
        processes.wait()
    skip = given.skip if given.skips else None
    encoded = EncodedSamples(samples, model.processor, prompt, longest, images=reads, features=kept, skip=skip)
    if not len(encoded):
        raise DataError(f"{recipe.source}: every training sample was skipped; the first: {given.skipped[0].reason}")
    _warn(encoded.cut, CUT.format(longest=longest), encoded)
    _warn(encoded.blank, BLANK, encoded)
    left_out = exclude_unanswered(encoded)
    return TrainingSet(encoded, len(encoded), left_out, tuple(given.skipped))


def _warn(ids: Sequence[str], what: str, encoded: EncodedSamples) -> None:
    """Say of how many samples something holds, and name the first."""
    if ids:
        more = f" and {len(ids) - NAMED} more" if len(ids) > NAMED else ""
        log.warning("%d of %d %s: %s%s", len(ids), len(encoded), what, ", ".join(ids[:NAMED]), more)


def exclude_unanswered(encoded: EncodedSamples) -> list[str]:
    """Remove samples without a token to learn from `encoded`, in place; their ids.

    The first token of a text is never learned, since nothing precedes it. Raises: DataError with the first sample's text
    where no sample has a token to learn, as when prompt and answer do not fit the template.
    """
    kept, excluded = [], []
    for place, (_, labels) in enumerate(encoded.tokens):
        (kept if has_answer(labels) else excluded).append(place)
    if not excluded:
        return []
    ids = [encoded.samples[place].id for place in excluded]
    if not kept:
        raise DataError(no_answer(ids[0], encoded.tokens[excluded[0]][0], encoded.processor.tokenizer))
    _warn(ids, "samples have no token to learn and are excluded", encoded)
    encoded.samples = [encoded.samples[place] for place in kept]
    encoded.tokens = [encoded.tokens[place] for place in kept]
    return ids


def has_answer(labels: Sequence[int]) -> bool:
    """Whether any label but the first is one to learn."""
    return any(label != IGNORED for label in labels[1:])


def no_answer(sample: str, input_ids: Sequence[int], tokenizer: Any) -> str:
    """The message for a sample without a token to learn, with its text as the model reads it."""
    text = tokenizer.decode(list(input_ids))
    shown = text if len(text) <= 400 else f"{text[:200]} ... {text[-200:]}"
    return (
        f"sample '{sample}': no token of it is learned, its labels are all masked, and so it is with every other looked at. "
        f"Its prompt and answer become:\n  {shown!r}\ncheck data.prompt, the answers, and training.max_length"
    )


class StreamedSamples(IterableDataset):
    """Samples of a stream without end, each pass in an order of its own.

    As it is endless, it is at the same place after the same number of samples: a resumed run skips those it has seen. With
    `data.on_bad_sample: skip` bad samples are passed over before batches are made, and named in `collator.skipped`; each
    worker checks its own share, and where nothing of that can be used takes from all of them.

    Raises, when read: DataError for a stream without a usable sample.
    """

    def __init__(self, stream: SampleStream, seed: int, collator: StreamCollator) -> None:
        self.stream, self.seed, self.collator = stream, seed, collator
        self.skips = stream.config.on_bad_sample == "skip"

    def __iter__(self) -> Iterator[Sample]:
        worker = get_worker_info()
        first, step = (worker.id, worker.num_workers) if worker is not None else (0, 1)
        count, bad_in_a_row = 0, 0
        issues: list[Issue] | None = [] if self.skips else None
        for turn in itertools.count():
            before = count
            for count, sample in enumerate(self.stream.shuffled(self.seed, turn, issues), start=before + 1):
                self._note(issues)
                if (count - 1) % step != first:
                    continue
                if reason := self.collator.fault(sample) if self.skips else "":
                    self.collator.skipped.append(Skipped(self.stream.split, sample.id, reason, sample))
                    bad_in_a_row += 1
                    continue
                bad_in_a_row = 0
                yield sample
            self._note(issues)
            if bad_in_a_row >= count - before:  # a pass that is empty, or of whose share nothing can be used
                if step == 1 or count == before:
                    raise self._nothing_usable()
                first, step, bad_in_a_row = 0, 1, 0

    def _note(self, issues: list[Issue] | None) -> None:
        """Move faulty rows from `issues` to the collator's list."""
        if issues:
            self.collator.skipped += [Skipped.of(self.stream.split, issue) for issue in issues if issue.fatal]
            issues.clear()

    def _nothing_usable(self) -> DataError:
        skipped = self.collator.skipped
        if skipped:
            return DataError(f"data.{self.stream.split}: every training sample was skipped; the first: {skipped[0].reason}")
        return DataError(f"data.{self.stream.split}: holds no samples")


class StreamCollator:
    """Samples -> a padded batch: what `EncodedSamples` and `Collator` make of them.

    A batch names its samples under the key `IDS`, those whose prompt is cut or whose answer is empty under `NOTED`.
    skipped: samples skipped since the last batch; they go into the next one under the key `SKIPPED`, as plain data.
    """

    def __init__(
        self, processor: DehvfProcessor, prompt: PromptConfig, max_length: int, images: bool, few_lengths: bool = False
    ) -> None:
        self.processor, self.prompt, self.max_length, self.images = processor, prompt, max_length, images
        self.collate = Collator(processor.tokenizer.pad_token_id, max_length if few_lengths else 0)
        self.skipped: list[Skipped] = []

    def __call__(self, samples: Sequence[Sample]) -> dict[str, Any]:
        encoded = EncodedSamples(samples, self.processor, self.prompt, self.max_length, images=self.images)
        batch = self.collate(encoded.__getitems__(range(len(encoded))))
        batch[IDS] = [sample.id for sample in samples]
        if encoded.cut or encoded.blank:
            noted = {CUT.format(longest=self.max_length): encoded.cut, BLANK: encoded.blank}
            batch[NOTED] = {what: ids for what, ids in noted.items() if ids}
        if self.skipped:
            batch[SKIPPED] = [one.row() for one in self.skipped]
            self.skipped.clear()
        return batch

    def fault(self, sample: Sample) -> str:
        """Why a sample cannot be trained on; an empty text where it can."""
        faults = map(image_issue, sample.apart()) if self.images and sample.image is not None else ()
        if issue := next(filter(None, faults), None):
            return Skipped.of("", issue).reason
        try:
            EncodedSamples([sample], self.processor, self.prompt, self.max_length, images=False)
        except DataError as error:
            return str(error)
        return ""


def log_noted(rows: Sequence[Mapping[str, Any]]) -> None:
    """Say of how many samples of a stream's passes something holds, by a run's log."""
    for what, (count, first) in next((row[NOTED] for row in rows if NOTED in row), {}).items():
        log.warning("%d times in this run's passes: %s: the first: %s", count, what, first)


def skipped_samples(rows: Sequence[Mapping[str, Any]]) -> list[Skipped]:
    """The samples of a stream that a run's log says were skipped, each once."""
    return [Skipped.from_row(row[SKIPPED]) for row in rows if SKIPPED in row]


def scored_splits(recipe: Recipe) -> dict[str, Split]:
    """The splits that a run is scored on, by the prefix of their figures in the log.

    Raises: DataError where the recipe asks for a split that its data set does not have.
    """
    config, data = recipe.training, cast(Any, recipe.data)
    validation: Any = data.validation_split
    if config.eval_steps is not None and validation is None:
        raise DataError(
            f"{recipe.source}: training.eval_steps: the data set '{data.type}' has no validation split; hold out a share of the "
            "training images by data.validation=0.1 (name files of a stream; in a mixture, of a source), or set "
            "training.eval_steps=null"
        )
    found: dict[str, Split] = {} if config.eval_steps is None else {"eval": validation}
    if config.test_at_end:
        if "test" not in data.parts() or (validation == "test" and found):
            raise DataError(
                f"{recipe.source}: training.test_at_end: the data set '{data.type}' has no test split beside the validation "
                "split; set data.test, or training.test_at_end=false"
            )
        found["test"] = "test"
    return found
