"""What a data set yields, and the contract of its config."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field, ValidationInfo, field_validator

from dehvf_kit.config import Settings
from dehvf_kit.errors import shown

Split = Literal["train", "test"]


@dataclass(frozen=True)
class Sample:
    """One question about one picture (`image` is None without one); `kind` groups the scores (a question type)."""

    id: str
    question: str
    answer: str
    image: Path | None = None
    kind: str = ""


class PromptConfig(Settings):
    """How a sample becomes text. `{question}` stands for the question, `{answer}` for the answer."""

    question: str = Field("Question: {question}\nAnswer:", description="the prompt, without loss")
    answer: str = Field(" {answer}", description="what the model learns to say, followed by the end token")
    chat: bool = Field(False, description="put the prompt into the decoder's chat template")

    @field_validator("question", "answer")
    @classmethod
    def _has_its_place(cls, value: str, info: ValidationInfo) -> str:
        place = f"{{{info.field_name}}}"
        if value.count(place) != 1:
            raise ValueError(f"given {shown(value)}; wants `{place}` in it once, where the {info.field_name} goes")
        return value


class DataConfig(Settings):
    """Parent of the data configs (role `data`): a class that yields samples of a split, in a fixed order."""

    role: ClassVar[str] = "data"
    prompt: PromptConfig = Field(default_factory=PromptConfig)

    def samples(self, split: Split) -> Sequence[Sample]:
        """The samples of a split. Raises: DataError naming the file and place of what cannot be read."""
        raise NotImplementedError(f"{type(self).__name__}.samples")
