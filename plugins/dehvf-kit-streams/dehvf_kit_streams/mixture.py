"""Several data sets mixed by weights: `datasets.interleave_datasets` draws the order, of lists and of streams."""

from __future__ import annotations

import logging
import random
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from dehvf_kit.data.rows import TableColumns
from dehvf_kit.data.samples import LIKELIHOOD, PREPARE, DataConfig, Issue, Names, Reading, Sample, Split, refuse
from dehvf_kit.data.stream import SampleStream
from dehvf_kit.errors import DataError, RecipeError
from dehvf_kit_streams.hub_tables import library, undivided

log = logging.getLogger(__name__)


class MixtureDataConfig(DataConfig):
    """Several data sets of any type, trained on in a mixed order and scored one after the other, each as a kind of question.

    An id is `SOURCE/ID`; where a source is read again, `SOURCE/ID#2`. Prompt, metric and `on_bad_sample` are the mixture's own.
    """

    type: Literal["mixture"] = "mixture"
    rows_have_choices = True
    sources: dict[str, dict[str, Any]] = Field(description="data sections by name")
    weights: dict[str, float] | None = Field(None, description="shares of the sources; null: of each as much as it has")
    seed: int = Field(0, ge=0, lt=2**31, description="seed of the order")
    stop: Literal["first_exhausted", "all_exhausted"] = Field(
        "first_exhausted", description="a pass ends with the first source, or with the last one, others being read again"
    )
    size: int = Field(0, ge=0, description="training samples of a pass, where a source is a stream; epochs are counted by it")

    @field_validator("sources")
    @classmethod
    def _known(cls, value: dict[str, dict[str, Any]], info: ValidationInfo) -> dict[str, dict[str, Any]]:
        if len(value) < 2:
            raise ValueError("names fewer than two data sets; a single one needs no mixture")
        for name, raw in value.items():
            own = sorted({"prompt", "metric", "on_bad_sample"} & set(raw))
            if raw.get("type") == "mixture" or own:
                raise ValueError(f"{name}: {own[0] if own else 'type: mixture'} belongs to the mixture, not to a source")
            _parsed(name, {**raw, **_chosen(info.data.get("metric"))})
        return value

    @model_validator(mode="after")
    def _shares(self) -> MixtureDataConfig:
        if self.weights is not None and (
            set(self.weights) != set(self.sources) or min(self.weights.values()) <= 0 or sum(self.weights.values()) == float("inf")
        ):
            raise ValueError(f"weights: wants a number above 0 for each of {', '.join(self.sources)}")
        streams = [name for name, config in self.configs.items() if config.stream("train") is not None]
        if bool(streams) != bool(self.size):
            raise ValueError("size: wants the samples of a pass where a source is a stream, and 0 where none is")
        if streams and self.weights is None:
            raise ValueError(f"weights: wanted, since the stream {streams[0]} does not say how much it has")
        return self

    @cached_property
    def configs(self) -> dict[str, DataConfig]:
        """The sources' own configs."""
        own = {"on_bad_sample": self.on_bad_sample, **_chosen(self.metric)}
        return {name: _parsed(name, {**raw, **own}) for name, raw in self.sources.items()}

    @property
    def columns(self) -> TableColumns:
        """Not read: each source has its own."""
        return TableColumns()

    @property
    def shuffle(self) -> int:
        """Not read: each stream has its own."""
        return 1

    def parts(self) -> list[str]:
        having = [name for one in self.configs.values() for name in one.parts()]
        having += [self.validation_split] if self.validation_split else []
        return [part for part in ("train", "validation", "test") if part in having]

    @property
    def validation_split(self) -> Split | None:
        """The sources' own; called `test` where it is what each of them tests on, too."""
        own = {one.validation_split for one in self.configs.values()}
        tested = {one.validation_split for one in self.configs.values() if "test" in one.parts()}
        return None if own == {None} else "test" if tested == {"test"} and own <= {"test", None} else "validation"

    def prompt_facts(self) -> dict[str, Any]:
        own = super().prompt_facts()
        return own | {
            f"{name}.{fact}": value
            for name, config in self.configs.items()
            for fact, value in config.prompt_facts().items()
            if fact not in own
        }

    def check_training(self, training: Any) -> None:
        for config in self.configs.values():
            config.check_training(training)

    def stream(self, split: Split) -> Any:
        return MixedStream(self, split, lambda *_: iter(()), self.seed) if self.size and split == "train" else None

    def files(self) -> list[Path]:
        return [file for config in self.configs.values() for file in config.files()]

    def samples(self, split: Split) -> list[Sample]:
        reading = self.read(split)
        refuse(f"data.{split}", reading.issues, PREPARE)
        log.info("data.%s: %s", split, ", ".join(f"{name} {count:,}" for name, count in reading.facts.items()))
        return list(reading.samples)

    def read(self, part: str) -> Reading:
        splits = {name: _split(config, part) for name, config in self.configs.items()}
        readings = {name: self.configs[name].read(self.configs[name].part_of(own)) for name, own in splits.items() if own}
        if not readings:
            raise DataError(f"data.{part}: no source of the mixture has this split")
        held = {name: [_named(name, one) for one in reading.samples] for name, reading in readings.items()}
        issues = [replace(one, place=f"{name}/{one.place}") for name, reading in readings.items() for one in reading.issues]
        if part == "train" and not self.size and all(held.values()):
            found = self._mixed(held)
        else:
            found = [one for samples in held.values() for one in samples]
        return Reading(found, issues, facts=dict(Counter(one.id.partition("/")[0] for one in found)))

    def _mixed(self, held: Mapping[str, Sequence[Sample]]) -> list[Sample]:
        """One pass over lists."""
        datasets, shares = library(), self.weights or {name: len(samples) for name, samples in held.items()}
        tables = [
            datasets.Dataset.from_dict({"source": [name] * len(samples), "place": list(range(len(samples)))})
            for name, samples in held.items()
        ]
        stop = self.stop if self.weights is not None else "all_exhausted_without_replacement"
        order = datasets.interleave_datasets(tables, _fractions(shares, held), seed=self.seed, stopping_strategy=stop)
        names = Names()
        drawn = (held[source][place] for source, place in zip(order["source"], order["place"], strict=True))
        return [replace(sample, id=names.of(sample.id)) for sample in drawn]


def _split(config: DataConfig, part: str) -> Any:
    """The split of a source that is a part of the mixture; None where it has none."""
    return config.validation_split if part == "validation" else part if part in config.parts() else None


def _chosen(metric: Any) -> dict[str, str]:
    """What the sources must know of the mixture's metric: that their rows have choices."""
    return {"metric": metric} if metric in LIKELIHOOD else {}


def _parsed(name: str, raw: Mapping[str, Any]) -> DataConfig:
    from dehvf_kit.recipe.parser import parse_data
    from dehvf_kit.recipe.plugin_manager import plugins

    try:
        return parse_data(dict(raw), f"data.sources.{name}", plugins().registry)
    except RecipeError as error:
        raise ValueError(f"{name}: {error.faults[0].message}") from error


def _named(source: str, sample: Sample) -> Sample:
    return replace(sample, id=f"{source}/{sample.id}", kind=sample.kind or source)


def _fractions(shares: Mapping[str, float], names: Mapping[str, Any]) -> list[float]:
    whole = sum(shares[name] for name in names)
    return [shares[name] / whole for name in names]


@dataclass(frozen=True)
class MixedStream(SampleStream):
    """Passes over streams, and over lists in an order of their own, mixed."""

    seed: int = field(default=0)

    def read(self, issues: list[Issue] | None = None) -> Iterator[Sample]:
        return self.shuffled(0, 0, issues)

    def reading(self, rows: int | None = None) -> Reading:
        """The first rows of each source."""
        found = {}
        for name, config in self.config.configs.items():
            stream = config.stream(self.split)
            found[name] = stream.reading(rows) if stream is not None else config.read(config.part_of(self.split))
        samples = [_named(name, one) for name, reading in found.items() for one in reading.samples]
        issues = [replace(one, place=f"{name}/{one.place}") for name, reading in found.items() for one in reading.issues]
        return Reading(samples, issues, facts={name: len(reading.samples) for name, reading in found.items()})

    def shuffled(self, seed: int, turn: int, issues: list[Issue] | None = None) -> Iterator[Sample]:
        datasets, configs, drawn = library(), self.config.configs, f"{self.seed}:{seed}:{turn}"

        read: dict[str, deque[Sample]] = {name: deque() for name in configs}  # `datasets` mixes names; samples are no rows of Arrow

        def rows(name: str) -> Iterator[dict[str, str]]:
            stream = configs[name].stream(self.split)
            if stream is not None:
                given = stream.shuffled(seed, turn, issues)
            else:
                reading = configs[name].usable(self.split)
                if issues is not None:
                    issues.extend(replace(one, place=f"{name}/{one.place}") for one in reading.issues)
                given = list(reading.samples)
                random.Random(drawn).shuffle(given)
            for one in given:
                read[name].append(_named(name, one))
                yield {"source": name}

        features = datasets.Features({"source": datasets.Value("string")})
        tables = [datasets.IterableDataset.from_generator(rows, features, {"name": name}) for name in configs]
        number = random.Random(drawn).randrange(2**31)
        mixed = datasets.interleave_datasets(
            tables, _fractions(self.config.weights, configs), seed=number, stopping_strategy=self.config.stop
        )
        return (read[row["source"]].popleft() for row in undivided(mixed))
