"""Multiple choice by likelihood: every choice is scored as the answer, and the likeliest is what the model says.

A choice's log-likelihood is the sum over its tokens, the end token not among them; `acc` takes the highest sum, `acc_norm` the
highest sum per character of the choice. Source: lm-evaluation-harness, task type `multiple_choice`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

import torch
from torch import Tensor

from dehvf_kit.data.encoding import IGNORED, Collator, EncodedSamples
from dehvf_kit.data.metrics.exact_match import Prediction, accuracy
from dehvf_kit.data.metrics.intervals import share
from dehvf_kit.data.metrics.scores import Score, Scores
from dehvf_kit.data.samples import PromptConfig, Sample
from dehvf_kit.data.tokens import longest_sample
from dehvf_kit.errors import DataError
from dehvf_kit.evaluation.kept_answers import KeptAnswers, Said
from dehvf_kit.model.loss import following_labels
from dehvf_kit.model.run import to_device

Metric = Literal["likelihood", "likelihood_norm"]
NAMES: dict[Metric, str] = {"likelihood": "acc", "likelihood_norm": "acc_norm"}


@dataclass(frozen=True)
class ChoiceSample(Sample):
    """A question with its choices, all different; `answer` is one of them."""

    choices: tuple[str, ...] = ()


def with_choices(sample: Sample, choices: tuple[str, ...]) -> ChoiceSample:
    """A sample and what it may be answered with."""
    return ChoiceSample(**{one.name: getattr(sample, one.name) for one in fields(Sample)}, choices=choices)


@dataclass(frozen=True)
class Choice(Prediction):
    """A question and the choice that was likeliest. likelihoods: each choice's log-likelihood."""

    likelihoods: Mapping[str, float] = field(default_factory=dict)

    @property
    def right(self) -> bool:
        return not self.skipped and self.prediction == self.answer

    def likeliest(self, metric: Metric) -> str:
        """The first of the likeliest choices, by the sum or by the sum per character."""
        return max(self.likelihoods, key=lambda one: self.likelihoods[one] / (len(one) if metric == "likelihood_norm" else 1))


def choose(
    model: Any,
    samples: Sequence[ChoiceSample],
    metric: Metric,
    batch_size: int = 32,
    features: Any = None,
    progress: Callable[[int, int], None] | None = None,
    kept: KeptAnswers | None = None,
) -> list[Prediction]:
    """The likeliest choice of every question, in the order of the samples; as `evaluation.answers.answer`, without generating.

    Args:
        model: the model.
        samples: the questions; those of like length share a batch.
        metric: what the likeliest is.
        batch_size: choices scored together.
        features, progress, kept: as for `answer`.

    Raises:
        DataError: for a log-likelihood that is not finite, or a choice longer than the decoder has positions for.
    """
    order = sorted(range(len(samples)), key=lambda place: len(samples[place].question))
    found: dict[int, Choice] = {}
    for places in _batches(order, samples, batch_size):
        known = {place: _kept(kept, place, samples[place]) for place in places}
        if not all(known.values()):
            scored = _scored(model, [samples[place] for place in places], features)
            known = dict(zip(places, scored, strict=True))
            if kept is not None:
                kept.add({place: Said(json.dumps(one.likelihoods), one.cut) for place, one in known.items() if one})
        found |= {place: one for place, one in known.items() if one}
        if progress is not None:
            progress(len(found), len(samples))
    return [replace(found[place], prediction=found[place].likeliest(metric)) for place in range(len(samples))]


def _batches(order: Sequence[int], samples: Sequence[ChoiceSample], batch_size: int) -> Iterator[list[int]]:
    """Places of questions whose choices make a batch; a question is never divided."""
    batch: list[int] = []
    for place in order:
        if batch and sum(len(samples[one].choices) for one in (*batch, place)) > batch_size:
            yield batch
            batch = []
        batch.append(place)
    if batch:
        yield batch


def _kept(kept: KeptAnswers | None, place: int, sample: ChoiceSample) -> Choice | None:
    """What an earlier evaluation of the same choices found."""
    said = None if kept is None else kept.known.get(place)
    if said is None:
        return None
    try:
        found = json.loads(said.text)
    except ValueError:
        return None
    return _choice(sample, found, said.cut) if isinstance(found, dict) and tuple(found) == sample.choices else None


def _choice(sample: ChoiceSample, likelihoods: Mapping[str, float], cut: int) -> Choice:
    image = ", ".join(map(str, sample.images))
    return Choice(sample.id, sample.kind, sample.question, image, sample.answer, "", cut=cut, likelihoods=likelihoods)


def _scored(model: Any, samples: Sequence[ChoiceSample], features: Any) -> list[Choice]:
    """One batch."""
    processor = model.processor
    given = processor.prompt or {"question": "{question}", "answer": "{answer}"}
    prompt = PromptConfig(**{**given, "targets": "last"})  # earlier answers of a conversation are the same for every choice
    longest = longest_sample(model.recipe.training.max_length, model.graph)
    answers = [replace(sample, answer=choice) for sample in samples for choice in sample.choices]
    rows = EncodedSamples(answers, processor, prompt, longest, model.reads_images, features)
    batch = Collator(processor.tokenizer.pad_token_id or 0)([rows[place] for place in range(len(rows))])
    sums = iter(log_likelihoods(model, batch))
    cut = set(rows.cut)
    found = [_choice(one, dict(zip(one.choices, sums, strict=False)), int(one.id in cut)) for one in samples]
    for one in found:
        if not all(map(math.isfinite, one.likelihoods.values())):
            raise DataError(
                f"sample '{one.id}': the log-likelihood of a choice is not finite; if the decoder is loaded in float16, set "
                "decoder.dtype=bfloat16 or float32; else the adapter's weights are too large"
            )
    return found


@torch.no_grad()
def log_likelihoods(model: Any, batch: Mapping[str, Any]) -> list[float]:
    """The sum over each row's labels before its end token, of a batch as `Collator` makes it."""
    given = to_device(batch, next(model.decoder.parameters()).device)
    logits = model(**given).logits.float()  # [row, kept position, vocabulary]
    wanted = following_labels(given["labels"], given["logits_to_keep"]).to(logits.device)
    counts = (wanted != IGNORED) & ~_ended(model, wanted)
    each = logits.log_softmax(-1).gather(-1, wanted.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    return [float(row[used].double().sum()) for row, used in zip(each, counts, strict=True)]


def _ended(model: Any, labels: Tensor) -> Tensor:
    """Where in labels [row, position] a row has reached an end token, that one included."""
    given = model.generation_config.eos_token_id
    ends = torch.tensor([given] if isinstance(given, int) else list(given or ()), device=labels.device)
    return torch.isin(labels, ends).cumsum(-1) > 0


def score(metric: Metric, predictions: Sequence[Prediction]) -> Scores:
    """Shares of right choices: in all and by kind as `metric` says, and in all by both rules, `acc` and `acc_norm`."""
    facts = accuracy(predictions)
    both = {
        name: share([isinstance(one, Choice) and one.likeliest(rule) == one.answer for one in predictions])
        for rule, name in NAMES.items()
    }
    rows = {"all": facts["all"], **facts["by_kind"], **both}
    scores = [Score(name, row["accuracy"], row["low"], row["high"], row["questions"]) for name, row in rows.items()]
    return Scores(scores, "all", {"metric": metric, **facts, **both}, {one.id: one.prediction for one in predictions})
