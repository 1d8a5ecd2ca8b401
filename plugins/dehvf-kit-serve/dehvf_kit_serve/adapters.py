"""Adapters in memory, and what a request becomes: tokens, pixels, and how its answer is made."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from llguidance import LLMatcher
from llguidance.hf import from_tokenizer
from torch import nn

from dehvf_kit.adapter.checkpoint import adapter_recipe, load
from dehvf_kit.adapter.files import ADAPTER, adapter_folder, read_config
from dehvf_kit.data.conversations import messages_of
from dehvf_kit.data.images import read_any
from dehvf_kit.data.processing import image_places
from dehvf_kit.data.samples import HeldImage, is_data_uri, is_url, marked
from dehvf_kit.errors import DehvfError
from dehvf_kit.evaluation.answers import longest
from dehvf_kit.model.model import DehvfModel
from dehvf_kit.model.run import BEAMS, SAMPLING, by_encoder
from dehvf_kit.recipe.files import alone
from dehvf_kit.recipe.plugin_manager import plugins
from dehvf_kit_serve.chat_request import ChatRequest, Refused
from dehvf_kit_serve.generation import AllDone, Row, RowByRow, Settings
from dehvf_kit_serve.running import can_join

MAX_SCHEMA_CHARACTERS = 50_000
GREEDY = {"num_beams": 1, "do_sample": False, **dict.fromkeys((*BEAMS, *SAMPLING))}


@dataclass(frozen=True)
class Limits:
    """What one request may ask for. tokens: new ones, at most; ignore_tools: answer without the tools that a request offers."""

    images: int = 8
    tokens: int = 1024
    fetch: bool = False
    ignore_tools: bool = False


@dataclass(frozen=True, eq=False)
class Prompt:
    """A request ready for a batch once its `images` are read: one tensor of pixels per encoder and image."""

    adapter: Adapter
    ids: list[int]
    row: Row
    images: list[str]
    pixels: list[Any] = field(default_factory=list)


@contextmanager
def refusing() -> Iterator[None]:
    """Inside, what the kit cannot read becomes a refused request."""
    try:
        yield
    except DehvfError as error:
        raise Refused(400, str(error), "messages") from error


class Adapter:
    """One adapter in memory under the name that requests call it by."""

    def __init__(self, name: str, model: DehvfModel) -> None:
        self.name, self.model = name, model
        self._grammar: Any = None
        self._alone = Lock()  # tokenizers and image processors keep settings while they work
        self._longest_token = max(map(len, model.processor.tokenizer.get_vocab()))
        given = model.generation_config.eos_token_id
        self.ends = frozenset([given] if isinstance(given, int) else given or ())
        self.joins = can_join(model)

    def prompt(self, request: ChatRequest, limits: Limits, emit: Callable[[str], None]) -> Prompt:
        """A request as a row of a batch, its images counted and not yet read. Raises: Refused where it cannot be answered."""
        if request.tools and not limits.ignore_tools:
            raise Refused(400, "tools: adapters call none; switch them off in the client, or serve with --ignore-tools", "tools")
        settings = self._settings(request, limits)
        with refusing():
            messages, images = messages_of(_with_text([_checked(one, limits) for one in request.messages]))
            if messages[-1].role != "user":
                raise Refused(400, "messages: the last one must be the user's question", "messages")
            self._refuse_images(len(images), limits)
            room = longest(self.model, settings.max_tokens)
            self._refuse_length("characters", sum(len(one.content) for one in messages), room, self._longest_token)
            processor = self.model.processor
            text = processor.with_prompt(marked(messages, len(images)))
            with self._alone:
                ids = processor(text=text, apply_prompt=False, return_tensors=None)["input_ids"]
            ids = list(ids[0] if ids and isinstance(ids[0], list) else ids)
            self._refuse_length("tokens", len(ids), room)
        row = Row(processor.tokenizer, self.ends, settings, emit, self._matcher(request.schema_of_answer))
        return Prompt(self, ids, row, images)

    def pixels(self, image: str | HeldImage) -> Any:
        """One image as its encoders take it, [1, 3, height, width] each. Raises: Refused for one that cannot be read."""
        with refusing():
            read = read_any(image)
            with self._alone:
                return self.model.processor.image_processor([read], return_tensors="pt")["pixel_values"]

    def _refuse_images(self, count: int, limits: Limits) -> None:
        if count > limits.images:
            raise Refused(400, f"messages: {count} images; {limits.images} are read at most", "messages")
        if count and not self.model.reads_images:
            raise Refused(400, f"messages: '{self.name}' reads no images", "messages")
        if count > 1 and self.model.one_image_nodes:
            raise Refused(400, f"messages: {count} images; '{self.name}' reads one", "messages")

    def _refuse_length(self, what: str, count: int, room: int | None, each: int = 1) -> None:
        """each: how many of them a token holds at most; what cannot fit is refused before it is tokenised."""
        if not count:
            raise Refused(400, f"messages: the prompt has no {what}", "messages")
        if room is not None and count > room * each:
            raise Refused(
                400, f"messages: {count:,} {what} in the prompt; '{self.name}' takes {room:,} tokens beside the answer's",
                "messages", "context_length_exceeded",
            )  # fmt: skip

    def _settings(self, request: ChatRequest, limits: Limits) -> Settings:
        """What the request says, and where it is silent what the recipe and the decoder's own generation settings say."""
        config = self.model.generation_config
        if request.limit is not None and request.limit > limits.tokens:
            raise Refused(400, f"max_tokens: {request.limit:,}; {limits.tokens:,} are generated at most", "max_tokens")
        usual = float(config.temperature or 1.0) if config.do_sample else 0.0
        return Settings(
            max_tokens=request.limit or min(config.max_new_tokens or limits.tokens, limits.tokens),
            temperature=usual if request.temperature is None else request.temperature,
            top_k=config.top_k or 0,
            top_p=request.top_p or config.top_p or 1.0,
            min_p=config.min_p or 0.0,
            seed=request.seed,
            stops=tuple(request.stops),
        )

    def _matcher(self, schema: Mapping[str, Any] | None) -> Any:
        """A matcher of llguidance for a schema. Raises: Refused for a schema that it cannot follow."""
        if schema is None:
            return None
        text = json.dumps(schema)
        if len(text) > MAX_SCHEMA_CHARACTERS:
            raise Refused(
                400, f"response_format: {len(text):,} characters; {MAX_SCHEMA_CHARACTERS:,} are read at most", "response_format"
            )
        try:
            if self._grammar is None:
                self._grammar = from_tokenizer(self.model.processor.tokenizer, eos_token=sorted(self.ends) or None)
            found = LLMatcher(
                self._grammar, LLMatcher.grammar_from_json_schema(text, defaults={"whitespace_flexible": False}), log_level=0
            )
        except Exception as error:  # whatever the library raises for a schema or a tokenizer
            raise Refused(400, f"response_format: {error}", "response_format") from error
        if found.is_error():
            raise Refused(400, f"response_format: {found.get_error()}", "response_format")
        return found

    def generate(self, prompts: Sequence[Prompt]) -> None:
        """Answer some prompts in one batch; each row knows its own text and end."""
        rows = [prompt.row for prompt in prompts]
        tokenizer = self.model.processor.tokenizer
        ids = {"input_ids": [prompt.ids for prompt in prompts]}
        inputs = dict(tokenizer.pad(ids, padding=True, padding_side="left", return_tensors="pt"))
        inputs.pop("token_type_ids", None)
        pixels = [one for prompt in prompts for one in prompt.pixels]
        if pixels:
            names = by_encoder(pixels[0])
            inputs["pixel_values"] = alone({name: torch.cat([by_encoder(one)[name] for one in pixels]) for name in names})
            inputs |= image_places([[id(one) for one in prompt.pixels] for prompt in prompts])[1]
        device = next(self.model.decoder.parameters()).device
        inputs = {name: _move(value, device) for name, value in inputs.items()}
        pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else min(self.ends, default=0)
        self.model.generate(
            **inputs,
            **GREEDY,
            max_new_tokens=max(row.settings.max_tokens for row in rows),
            logits_processor=[RowByRow(rows, pad)],
            stopping_criteria=[AllDone(rows)],
        )


def _move(value: Any, device: torch.device) -> Any:
    return {name: one.to(device) for name, one in value.items()} if isinstance(value, Mapping) else value.to(device)


def _checked(message: Mapping[str, Any], limits: Limits) -> dict[str, Any]:
    """A message whose images are data URIs, or addresses where those are fetched: none names a file of this machine."""
    found = {key: value for key, value in message.items() if key not in ("name", "refusal", "annotations") or value}
    if found.get("role") == "developer":  # the newer name
        found["role"] = "system"
    content = found.get("content")
    if not isinstance(content, list):
        return found
    parts = []
    for part in content:
        if not isinstance(part, Mapping) or part.get("type") not in ("text", "image_url"):
            kind = part.get("type") if isinstance(part, Mapping) else part
            raise Refused(400, f"messages: a part of the type {kind!r}; text and image_url are read", "messages")
        if part["type"] == "image_url":
            given = part.get("image_url")
            url = given.get("url") if isinstance(given, Mapping) else given
            remote = isinstance(url, str) and is_url(url)
            if not isinstance(url, str) or not (remote or is_data_uri(url, "image/")):
                raise Refused(400, "messages: image_url.url must be a data URI, data:image/...;base64,...", "messages")
            if remote and not limits.fetch:
                raise Refused(400, "messages: no address is fetched; send a data URI, or serve with --fetch-images", "messages")
            parts.append({"type": "image", "image": url})
        else:
            parts.append({"type": "text", "text": part.get("text")})
    return {**found, "content": parts}


def _with_text(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Messages in which images that a client sent as a message of their own, as gradio does, are part of the user's next one."""
    found: list[dict[str, Any]] = []
    for message in messages:
        content = message.get("content")
        before = found[-1]["content"] if found and found[-1].get("role") == message.get("role") == "user" else None
        if isinstance(before, list) and before and all(part["type"] == "image" for part in before):
            given = content if isinstance(content, list) else [{"type": "text", "text": content}]
            found[-1] = {**message, "content": [*before, *given]}
        else:
            found.append(message)
    return found


def load_adapters(given: Sequence[str], overrides: Sequence[str] = ()) -> dict[str, Adapter]:
    """Adapters by name; those with the same decoder share its weights.

    Raises: AdapterError for what is no adapter, DehvfError for two of the same name.
    """
    named: dict[str, Path] = {}
    for text in given:
        name, place = _name(text)
        if name in named:
            raise DehvfError(f"two adapters are called '{name}'; name one, NAME={place}")
        named[name] = adapter_folder(place)
    recipes = {name: adapter_recipe(read_config(folder), folder, overrides) for name, folder in named.items()}
    decoders = {name: recipe.decoder.model_dump_json() for name, recipe in recipes.items()}
    shared: dict[str, nn.Module] = {}
    found, sources = {}, plugins().registry.sources
    for name, folder in named.items():
        given: dict[str, Any] = {}
        if list(decoders.values()).count(decoders[name]) > 1:
            config = recipes[name].decoder
            if decoders[name] not in shared:
                shared[decoders[name]] = config.load(sources)
            given = {"decoder": with_same_weights(shared[decoders[name]]), "tokenizer": config.tokenizer(sources)}
        found[name] = Adapter(name, load(folder, overrides=overrides, **given).eval())
    return found


def _name(text: str) -> tuple[str, str]:
    """Name and place of `NAME=ADAPTER`, or of an adapter called as its run's folder or hub id; a path that is there is one."""
    name, equals, place = text.partition("=")
    if not equals or os.path.exists(text):
        name, place = "", text
    folder = Path(os.path.abspath(place))
    return name or (folder.parent.name if folder.name == ADAPTER else folder.name), place


def with_same_weights(model: nn.Module) -> nn.Module:
    """A copy of a model's modules that holds the same tensors, so that hooks on one do not reach the other."""
    tensors = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})
