"""A request for `/v1/chat/completions`, and why one is refused. Source: OpenAI's API reference, "Create chat completion"."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from dehvf_kit.recipe.wording import faults
from dehvf_kit.utils.plain_data import NotJson, parse_json

MAX_STOPS, MAX_STOP_CHARACTERS = 4, 200
MAX_DEPTH = 100
"""Objects and lists of a body in one another."""


class Refused(Exception):
    """A request that is answered with an error in OpenAI's form."""

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.param, self.code = status, param, code

    def body(self) -> dict[str, Any]:
        kind = "server_error" if self.status >= 500 else "rate_limit_error" if self.status == 429 else "invalid_request_error"
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Schema(_Strict):
    """A JSON Schema; `strict` is always honoured."""

    name: str = ""
    description: str | None = None
    definition: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None


class ResponseFormat(_Strict):
    """`text`, `json_object` or `json_schema`."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: Schema | None = None


class StreamOptions(_Strict):
    include_usage: bool = False
    include_obfuscation: bool = False


class ChatRequest(_Strict):
    """What is read of a request. Fields that would change the answer in unsupported ways are taken at their neutral value only."""

    model: str
    messages: list[dict[str, Any]] = Field(min_length=1)
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: str | list[str] | None = None
    response_format: ResponseFormat | None = None

    n: Literal[1] | None = None
    presence_penalty: float | None = Field(None, ge=0, le=0)
    frequency_penalty: float | None = Field(None, ge=0, le=0)
    logprobs: Literal[False] | None = None
    logit_bias: dict[str, float] | None = Field(None, max_length=0)
    tools: list[Any] | None = None  # refused or ignored as Limits says
    tool_choice: Literal["none", "auto"] | None = None
    parallel_tool_calls: bool | None = None
    user: str | None = None
    metadata: dict[str, Any] | None = None
    store: Literal[False] | None = None

    @field_validator("stop")
    @classmethod
    def _few_and_short(cls, value: str | list[str] | None) -> list[str]:
        stops = [value] if isinstance(value, str) else list(value or ())
        if len(stops) > MAX_STOPS or not all(0 < len(stop) <= MAX_STOP_CHARACTERS for stop in stops):
            raise ValueError(f"wants {MAX_STOPS} texts or fewer, of 1 to {MAX_STOP_CHARACTERS} characters each")
        return stops

    @property
    def limit(self) -> int | None:
        """Most new tokens, under its present or its older name."""
        return self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens

    @property
    def stops(self) -> list[str]:
        return list(self.stop or ())

    @property
    def schema_of_answer(self) -> dict[str, Any] | None:
        """The JSON Schema that the answer must have; None for free text."""
        wanted = self.response_format
        if wanted is None or wanted.type == "text":
            return None
        if wanted.type == "json_object":
            return {"type": "object"}
        if wanted.json_schema is None or wanted.json_schema.definition is None:
            raise Refused(400, "response_format.json_schema.schema: is missing", "response_format")
        return wanted.json_schema.definition


def read_request(body: bytes) -> ChatRequest:
    """A request from its bytes. Raises: Refused naming the first field that cannot be honoured."""
    try:
        given = parse_json(body, max_depth=MAX_DEPTH)
    except NotJson as error:
        raise Refused(400, f"the body, line {error.line}: {error}" if error.line else f"the body: {error}") from error
    try:
        return ChatRequest.model_validate(given)
    except ValidationError as error:
        details = error.errors(include_url=False)
        if details[0]["type"] in ("extra_forbidden", "literal_error", "too_long"):
            where, what = ".".join(map(str, details[0]["loc"])), "is not supported here"
        else:
            place, what = next(iter(faults(details, given, ChatRequest).items()))
            where = ".".join(place)
        raise Refused(400, f"{where or 'the body'}: {what}", where or None) from error
