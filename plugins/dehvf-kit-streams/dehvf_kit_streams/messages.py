"""Conversations as TRL and ms-swift write them: `{"messages": [{"role": "user", "content": ...}, ...], "images": [...]}`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from dehvf_kit.data.jsonl import holds_conversations
from dehvf_kit.data.samples import PromptConfig
from dehvf_kit.utils.atomic import is_file
from dehvf_kit_streams.table import TableDataConfig


class ChatPromptConfig(PromptConfig):
    """The prompt of conversations: messages as they are, in the decoder's chat template."""

    question: str = Field("{question}", description="a user's message")
    answer: str = Field("{answer}", description="an assistant's message")
    chat: bool = Field(True, description="put the messages into the decoder's chat template; false: a line of text for each")
    targets: Literal["last", "every"] = Field(
        "every", description="answers of a conversation that are learned: the last, or every one, which needs `chat`"
    )


class MessagesDataConfig(TableDataConfig):
    """A table with a column of `messages`, in the decoder's chat template; every answer is learned, the last one is asked for."""

    type: Literal["messages"] = "messages"  # type: ignore[assignment]
    prompt: ChatPromptConfig = Field(default_factory=lambda: ChatPromptConfig.model_validate({}))

    @classmethod
    def recognise(cls, place: Path) -> dict[str, Any] | None:
        known = place.suffix in (".json", ".jsonl") and is_file(place) and holds_conversations(place, b'"messages"')
        return {"train": str(place), "test": ""} if known else None
