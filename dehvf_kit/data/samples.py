"""What a data set yields, what is wrong with it (all of it at once, grouped by kind), and the contract of its config."""

from __future__ import annotations

import io
import logging
from collections import Counter
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from pydantic import Field, PrivateAttr, ValidationInfo, field_validator, model_validator

from dehvf_kit.api.config import Settings
from dehvf_kit.api.registry import plugin_code
from dehvf_kit.errors import DataError, shown
from dehvf_kit.utils.atomic import is_file

if TYPE_CHECKING:
    from dehvf_kit.data.metrics.scores import Scores

log = logging.getLogger(__name__)
PLACEHOLDER = "<image>"
SHOWN = 3
PREPARE = "dehvf-kit prepare lists all of it"
Split = Literal["train", "validation", "test"]
LIKELIHOOD = ("likelihood", "likelihood_norm")
"""Metrics that choose among a row's `choices`."""


class ImageFile(Hashable, Protocol):
    """Where an image's bytes are: a `Path`, or a cell of a table that answers to the same two names. `str` names it."""

    def open(self, mode: str = "rb") -> IO[bytes]: ...

    def read_bytes(self) -> bytes: ...


@dataclass(frozen=True)
class HeldImage:
    """An image whose bytes were read already; equal to those of the same bytes, whatever they are called."""

    name: str = field(compare=False)
    data: bytes = field(repr=False)

    def read_bytes(self) -> bytes:
        return self.data

    def open(self, mode: str = "rb") -> IO[bytes]:
        return io.BytesIO(self.data)

    def __str__(self) -> str:
        return self.name


def is_url(text: str) -> bool:
    """Whether a text is an address that can be fetched."""
    return text[:8].lower().startswith(("http://", "https://"))


def is_data_uri(text: str, kind: str = "") -> bool:
    """Whether a text is a data URI, of that kind: `image/`."""
    return text[: 5 + len(kind)].lower() == f"data:{kind}"


@dataclass(frozen=True)
class Message:
    """One message of a conversation; its role is `system`, `user` or `assistant`."""

    role: str
    content: str


@dataclass(frozen=True)
class Sample:
    """One question about one image (`image` is None without one), or about `further_images` too; `kind` groups the scores.

    answer_start: the beginning of the answer that a model is given when it is asked, such as `The answer is`. messages: the
    conversation up to the answer, of which `question` is then the text, a line for each; empty where it is the question alone.
    references: every answer that was given, where there are several; `answer` is the first.
    """

    id: str
    question: str
    answer: str
    image: Path | ImageFile | None = None
    kind: str = ""
    answer_start: str = ""
    messages: tuple[Message, ...] = ()
    further_images: tuple[Path | ImageFile, ...] = ()
    references: tuple[str, ...] = ()

    @property
    def images(self) -> tuple[Path | ImageFile, ...]:
        """All of its images in their order."""
        return () if self.image is None else (self.image, *self.further_images)

    def apart(self) -> list[Sample]:
        """Itself once for each of its images, with that one alone; itself where it has none."""
        return [replace(self, image=one, further_images=()) for one in self.images] if self.further_images else [self]

    @property
    def asked(self) -> str | Sequence[Message]:
        """What the model is asked: the conversation, or the question where that is all of it."""
        return self.messages or self.question

    def __post_init__(self) -> None:
        """A text is taken for a path. Raises: DataError for an image that is neither a path nor answers to its names."""
        if isinstance(self.image, str):
            object.__setattr__(self, "image", Path(self.image))
        elif self.image is not None and not hasattr(self.image, "read_bytes"):
            raise DataError(f"{self.id}: its image is of the type {type(self.image).__name__}; wants the path of a file")


@dataclass(frozen=True)
class Published:
    """How large a split is by those who published it: `count` of what `unit` names, as `source` says."""

    count: int
    unit: str
    source: str


@dataclass(frozen=True)
class Reading:
    """The content of a split: its samples, everything wrong with it, and its size in the unit of its published figure.

    numbered: ids that are row numbers, because the row had none.
    """

    samples: Sequence[Sample]
    issues: Sequence[Issue] = ()
    count: int | None = None
    facts: Mapping[str, int] = field(default_factory=dict)
    numbered: Collection[str] = ()


class PromptConfig(Settings):
    """How a sample becomes text. `{question}` stands for the question, `{answer}` for the answer."""

    question: str = Field("Question: {question}\nAnswer:", description="the prompt, without loss")
    answer: str = Field(" {answer}", description="what the model learns to say, followed by the end token")
    chat: bool = Field(False, description="put the prompt into the decoder's chat template")
    targets: Literal["last", "every"] = Field(
        "last", description="answers of a conversation that are learned: the last, or every one, which needs `chat`"
    )

    @field_validator("question", "answer")
    @classmethod
    def _has_its_place(cls, value: str, info: ValidationInfo) -> str:
        place = f"{{{info.field_name}}}"
        if value.count(place) != 1:
            raise ValueError(f"given {shown(value)}; wants `{place}` in it once, where the {info.field_name} goes")
        return value

    @model_validator(mode="after")
    def _learns_within_a_template(self) -> PromptConfig:
        if self.targets == "every" and not self.chat:
            raise ValueError("targets=every needs the chat template, which shows where answers end; set chat=true, or targets=last")
        return self


class DataConfig(Settings):
    """Parent of the data configs (role `data`): a class that yields samples of a split, in a fixed order.

    `samples` is all that a data set must have. The others say more of it: what it is made of and what is wrong with it
    (`recognise`, `parts`, `read`, `published`), what its text looks like (`prompt_facts`), how its answers are scored (`score`).
    """

    role: ClassVar[str] = "data"
    prompt: PromptConfig = Field(default_factory=PromptConfig)
    on_bad_sample: Literal["error", "skip"] = Field(
        "error", description="a sample that cannot be used: end the run, or skip, count and list it"
    )
    metric: Literal["exact_match", "vqa", "anls", "relaxed", "likelihood", "likelihood_norm"] = Field(
        "exact_match",
        description="how `eval` scores answers: the same words; VQA accuracy of ten answers; ANLS; numbers within 5%; the "
        "likeliest of a row's choices, by the sum over its tokens or by that sum per character",
    )
    answer_is: Literal["text", "index", "letter"] = Field(
        "text", description="what the answer of a row with choices holds: a choice's text, its number from 0, or its letter"
    )
    text_only: bool = Field(False, description="true: no sample has an image, and none is meant to have one")

    rows_have_choices: ClassVar[bool] = False
    _chooser: Any = PrivateAttr(None)

    @model_validator(mode="after")
    def _has_choices(self) -> DataConfig:
        if self.metric in LIKELIHOOD and not self.rows_have_choices:
            raise ValueError(f"metric={self.metric} chooses among the `choices` of rows, which this data set does not have")
        if self.answer_is != "text" and self.metric not in LIKELIHOOD:
            raise ValueError(f"answer_is={self.answer_is} is for rows with `choices`; set metric=likelihood, or leave it out")
        return self

    @property
    def chooser(self) -> Any:
        """What reads the choices of rows and takes the likeliest, where `metric` says so: of a plugin. None elsewhere."""
        if self.metric in LIKELIHOOD and self._chooser is None:
            raise DataError(f"data.metric={self.metric} needs a plugin, which recipes load; use dehvf_kit.load_recipe")
        return self._chooser

    @property
    def means_text_only(self) -> bool:
        """Whether the settings say that no sample has an image."""
        return self.text_only

    def samples(self, split: Split) -> Sequence[Sample]:
        """The samples of a split. Raises: DataError naming the file and place of what cannot be read."""
        raise NotImplementedError(f"{type(self).__name__}.samples")

    def stream(self, split: Split) -> Any:
        """A split to be read as a stream (`data.stream.SampleStream`) in training; None where `samples` lists it."""
        return None

    def check_training(self, training: Any) -> None:
        """Raises: DataError for settings of the recipe's `training` section that this data set cannot honour."""

    def part_of(self, split: Split) -> str:
        """Which of `parts` a split is."""
        return split

    @property
    def validation_split(self) -> Split | None:
        """The split that training may be scored on while it runs; None where there is none."""
        return "validation" if {"val", "validation"} & set(self.parts()) else None

    def usable(self, split: Split) -> Reading:
        """`samples(split)`; where bad samples are skipped, those that can be used, and what is wrong with the others."""
        if self.on_bad_sample == "error":
            return Reading(samples_of(self, split))
        with plugin_code(self, "data"):
            return self.read(self.part_of(split))

    @classmethod
    def recognise(cls, place: Path) -> dict[str, Any] | None:
        """The settings under which a file or folder is this data set; None where it is not."""
        return None

    def parts(self) -> Sequence[str]:
        """Names of the splits that `dehvf-kit prepare` reads."""
        return ("train", "test")

    def read(self, part: str) -> Reading:
        """One of `parts`, with everything wrong with it. Raises: DataError where nothing of it can be read."""
        return Reading(samples_of(self, part))

    def files(self) -> Sequence[Path]:
        """Files of the training and validation samples that a list, a `*` or a folder stands for: `--resume` compares them."""
        return ()

    def published(self, part: str) -> Published | None:
        """The published size of one of `parts`; None where there is none."""
        return None

    def prompt_facts(self) -> dict[str, Any]:
        """What decides the text a model sees, short and readable: see `adapter/identity.py`."""
        return {"question": self.prompt.question, "answer": self.prompt.answer, "chat": self.prompt.chat}

    def ask(self, answer: Callable[..., Sequence[Any]], model: Any, samples: Sequence[Any], **settings: Any) -> Sequence[Any]:
        """Answers to samples, as `answer` (`evaluation.answers.answer`) generates them; a data set may find them otherwise."""
        return (self.chooser.choose if self.chooser else answer)(model, samples, **settings)

    def check_scoring(self) -> None:
        """Raises: DataError where `score` needs something that is missing; `eval` asks before the first question."""
        if self.metric == "vqa":
            from dehvf_kit.data.metrics.open_answers import require_answers

            require_answers(self.usable("test").samples)

    def score(self, predictions: Sequence[Any]) -> Scores:
        """How good the answers to `samples("test")` are, or to some of them.

        predictions: `dehvf_kit.data.metrics.exact_match.Prediction`s. By default scored as `metric` says.
        """
        from dehvf_kit.data.metrics import exact_match as words
        from dehvf_kit.data.metrics import open_answers

        if self.chooser:
            return self.chooser.score(predictions)
        return words.exact_match(predictions) if self.metric == "exact_match" else open_answers.score(self.metric, predictions)


def each_image(samples: Iterable[Sample]) -> list[Sample]:
    """A sample for each distinct image of some samples, with that image alone."""
    return list({one.image: one for sample in samples for one in sample.apart() if one.image is not None}.values())


def samples_of(data: DataConfig, split: Split) -> Sequence[Sample]:
    """`data.samples(split)`. Raises: DataError as the data set does, PluginError for what else a plugin's data set raises."""
    with plugin_code(data, "data"):
        return data.samples(split)


@dataclass(frozen=True)
class Issue:
    """One thing worth knowing of a data set: its `kind` (`missing image`), its place (a sample's id, a line), details.

    fatal: False for what is handled, as the documentation of the reader says.
    """

    kind: str
    place: str
    detail: str = ""
    fatal: bool = True

    def __str__(self) -> str:
        return f"{self.place} ({self.detail})" if self.detail else self.place


class Names:
    """Gives each key in turn a name of its own: itself, or with the first `#2`, `#3` at its end that nothing has."""

    def __init__(self) -> None:
        self._times: Counter[str] = Counter()
        self._taken: set[str] = set()

    def of(self, key: str) -> str:
        while True:
            self._times[key] += 1
            name = key if self._times[key] == 1 else f"{key}#{self._times[key]}"
            if name not in self._taken:
                self._taken.add(name)
                return name


def grouped(issues: Iterable[Issue]) -> dict[str, list[Issue]]:
    """Issues by kind, in the order in which the kinds first appear."""
    found: dict[str, list[Issue]] = {}
    for issue in issues:
        found.setdefault(issue.kind, []).append(issue)
    return found


def refuse(source: str, issues: Sequence[Issue], advice: str = "") -> None:
    """Raises: DataError with a line for each kind of fatal issue, how many there are and the first few, and the advice."""
    lines = []
    for kind, group in grouped(issue for issue in issues if issue.fatal).items():
        places = ", ".join(str(issue) for issue in group[:SHOWN])
        more = f" and {len(group) - SHOWN} more" if len(group) > SHOWN else ""
        lines.append(f"{source}: {kind}: {places}{more}")
    if lines:
        raise DataError("\n".join([*lines, f"{source}: {advice}"] if advice else lines))


def require_file(file: str | Path, field: str, advice: str = "") -> None:
    """Raises: DataError where a file that the recipe's `field` names is not there, with the places where it was looked for."""
    if not is_file(Path(file)):
        raise DataError(f"{field}: there is no file '{file}'{looked_in(file)}{advice}")


def looked_in(path: str | Path) -> str:
    """Where a relative path was looked for, as the end of a message."""
    return "" if Path(path).is_absolute() else f"; looked beside the recipe and in '{Path.cwd()}'"


def note(issues: list[Issue] | None, issue: Issue, error: DataError) -> None:
    """Add an issue to `issues`, the error's message as its detail. Raises: the error, where there is no such list."""
    if issues is None:
        raise error
    issues.append(replace(issue, detail=str(error).removeprefix(f"{issue.place}: ")))


def log_notes(where: str, reading: Reading) -> None:
    """Log what was read in another form than it was given, counted by kind."""
    for kind, group in grouped(issue for issue in reading.issues if not issue.fatal).items():
        log.warning("%s: %d x %s, the first: %s", where, len(group), kind, group[0])


def marked(messages: Sequence[Message], num_images: int) -> list[Message]:
    """Messages whose `<image>` places agree with their images: with one image the first place before or after a text is removed.

    With several they stay where they are, as text. Raises: DataError for places of another number than the images.
    """
    found, count = list(messages), 0
    for number, one in enumerate(messages):
        if one.role == "user" and not (num_images == 1 and count):  # a lone image has its place: what comes later is text
            edges, text = without_placeholders(one.content)
            count += edges if num_images < 2 else one.content.count(PLACEHOLDER)
            found[number] = Message(one.role, text) if num_images < 2 else one
            if not text.strip():
                raise DataError(f"there is no text beside {PLACEHOLDER}")
    if count and not num_images:
        raise DataError(f"the text has {PLACEHOLDER}, and there is no image")
    if count > num_images or (num_images > 1 and count not in (0, num_images)):
        raise DataError(f"{count} x {PLACEHOLDER} in the text, {num_images} beside it as an image; write one for each, or none")
    return found


def without_placeholders(text: str) -> tuple[int, str]:
    """How many `<image>` stand before and after a text, and the text without them; those inside it are text."""
    count = 0
    while True:
        bare = text.strip().removeprefix(PLACEHOLDER).removesuffix(PLACEHOLDER)
        if len(bare) == len(text.strip()):
            return count, text.strip() if count else text
        count += (len(text.strip()) - len(bare)) // len(PLACEHOLDER)
        text = bare


def filled(prompt: PromptConfig, role: str, text: str) -> str:
    """A message in the recipe's own template of its role; one that is in it already is left alone."""
    form, place = (prompt.answer, "{answer}") if role == "assistant" else (prompt.question, "{question}")
    before, _, after = ("", "", "") if role == "system" else form.partition(place)
    return text if before + after and text.startswith(before) and text.endswith(after) else before + text + after
