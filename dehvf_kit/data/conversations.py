"""Conversations: messages as TRL, ms-swift and transformers write them, and what a decoder's chat template makes of them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from dehvf_kit.backbones.base import first_line
from dehvf_kit.data.samples import Message, PromptConfig, Sample
from dehvf_kit.errors import DataError, shown

PLACEHOLDER = "<image>"
ROLES = ("system", "user", "assistant")
IMAGE_KEYS = ("image", "url", "path", "base64", "image_url")
"""Keys of a part of the type `image` under which the image itself may be."""
GENERATION = re.compile(r"{%-?\s*generation\b")


def messages_of(given: Any) -> tuple[list[Message], list[Any]]:
    """Messages as a row or a caller writes them -> the messages as text, and the images that their parts hold.

    A part of the type `image` becomes `<image>`, on a line of its own. Raises: DataError naming the message and what it has that
    cannot be read.
    """
    if not isinstance(given, (list, tuple)) or not given:
        raise DataError(f"a conversation is a list of messages with `role` and `content`, given {shown(given)}")
    messages, images = [], []
    for number, one in enumerate(given):
        role = one.get("role") if isinstance(one, Mapping) else None
        if role not in ROLES:
            raise DataError(f"message {number}: its role must be {', '.join(ROLES)}, given {shown(role if role else one)}")
        others = [key for key, value in one.items() if key not in ("role", "content") and value is not None and value != []]
        if others:
            raise DataError(f"message {number} ({role}): has '{others[0]}', which is not read; remove it")
        lines, content = [], one.get("content")
        for part in content if isinstance(content, (list, tuple)) else [{"type": "text", "text": content}] if content else []:
            kind = part.get("type") if isinstance(part, Mapping) else None
            if kind == "text" and isinstance(part.get("text"), str):
                lines.append(part["text"])
            elif kind in ("image", "image_url") and role != "assistant":
                found = next((part[key] for key in IMAGE_KEYS if part.get(key) is not None), None)
                images += [found["url"] if isinstance(found, Mapping) and "url" in found else found] if found is not None else []
                lines.append(PLACEHOLDER)
            else:
                raise DataError(f"message {number} ({role}): its content is a text, or parts of the type text or image, given "
                                f"{shown(part)}")  # fmt: skip
        if not "".join(lines).strip():
            raise DataError(f"message {number} ({role}): is empty")
        messages.append(Message(role, "\n".join(lines)))
    return messages, images


def marked(messages: Sequence[Message], num_images: int) -> list[Message]:
    """Messages whose `<image>` places agree with their images: with one image the first place before or after a text is removed.

    With several they stay where they are, as text. Raises: DataError for places of another number than the images.
    """
    found, count = list(messages), 0
    for number, one in enumerate(messages):
        if one.role == "user":
            edges, text = without_placeholders(one.content)
            if num_images == 1 and count:  # the image has its place; what comes later is text
                continue
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


def plain_text(messages: Sequence[Message]) -> str:
    """A conversation for a prompt without a chat template: a line for each message."""
    return "\n".join(one.content for one in messages)


def conversation_sample(key: str, before: Sequence[Message], answer: str, images: Sequence[Any], kind: str = "") -> Sample:
    """The sample of an answer after the messages `before` it; a lone user message is a plain question."""
    alone = len(before) == 1 and before[0].role == "user"
    first, further = images[0] if images else None, tuple(images[1:])
    return Sample(key, plain_text(before), answer, first, kind, messages=() if alone else tuple(before), further_images=further)


def in_template(messages: Sequence[Message], prompt: PromptConfig, tokenizer: Any, ask: bool = True, **arguments: Any) -> Any:
    """Messages in the decoder's chat template, user and assistant texts inside the recipe's own templates.

    ask: whether the assistant's next answer follows. arguments: for the tokenizer's `apply_chat_template`. Raises: DataError for
    a chat template that is missing, raises, or drops a message.
    """
    if not tokenizer.chat_template:
        raise DataError(
            "data.prompt.chat: the tokenizer has no chat template; add one to its folder (chat_template.jinja), or set "
            "data.prompt.chat=false"
        )
    forms = {"user": prompt.question.replace("{question}", "{}"), "assistant": prompt.answer.replace("{answer}", "{}")}
    texts = [_filled(forms.get(one.role, "{}"), one.content) for one in messages]
    turns = [{"role": one.role, "content": text} for one, text in zip(messages, texts, strict=True)]
    try:
        found = tokenizer.apply_chat_template(turns, add_generation_prompt=ask, **{"tokenize": False, **arguments})
    except Exception as error:  # a template is a program: it raises whatever it likes
        raise DataError(
            f"data.prompt.chat: the tokenizer's chat template cannot be applied: {first_line(error)}; correct the template, "
            "or set data.prompt.chat=false"
        ) from error
    place = 0
    for number, (one, turn) in enumerate(zip(messages, turns, strict=True) if isinstance(found, str) else ()):
        text = turn["content"].strip()
        at = found.find(text, place)
        place = max(place, at + len(text))
        if at < 0:  # dropped, or written another way: then it changes with the message
            other = [*turns[:number], {**turn, "content": f"{text}."}, *turns[number + 1 :]]
            if tokenizer.apply_chat_template(other, add_generation_prompt=ask, tokenize=False) == found:
                what = "question" if len(messages) == 1 else f"{one.role}'s message"
                raise DataError(
                    f"data.prompt.chat: the tokenizer's chat template drops the {what} {shown(one.content)}; correct the template, "
                    "or set data.prompt.chat=false"
                )
    return found


def _filled(form: str, text: str) -> str:
    before, _, after = form.partition("{}")
    return text if before + after and text.startswith(before) and text.endswith(after) else before + text + after


def learned_parts(sample: Sample, prompt: PromptConfig, tokenizer: Any) -> list[str]:
    """The conversation before a sample's last answer in the chat template, cut where learned text begins and ends.

    Every second part is an earlier answer, with the template's own end where that is the tokenizer's end token. One part where
    only the last answer is learned. Raises: DataError for a template that writes earlier turns another way as more follow.
    """
    messages = sample.messages or (Message("user", sample.question),)
    whole = in_template(messages, prompt, tokenizer)
    cuts = [0]
    for number, one in enumerate(messages):
        if one.role != "assistant" or prompt.targets == "last":
            continue
        asked = in_template(messages[:number], prompt, tokenizer)
        said = in_template(messages[: number + 1], prompt, tokenizer, ask=False).rstrip()
        if not (whole.startswith(said) and said.startswith(asked)):
            raise DataError(
                f"sample '{sample.id}': the chat template writes the answer {shown(one.content)} another way when more follows, "
                "so it cannot be learned; set data.prompt.targets=last, or mark answers in the template by {% generation %}"
            )
        answer = whole.find(one.content.strip(), len(asked)) + len(one.content.strip())
        cuts += [len(asked), len(said) if tokenizer.eos_token and said.endswith(tokenizer.eos_token) else answer]
    return [whole[start:end] for start, end in zip(cuts, [*cuts[1:], None], strict=True)]


def generated_parts(sample: Sample, prompt: PromptConfig, tokenizer: Any) -> list[list[int]] | None:
    """Tokens of a whole conversation in parts, every second of which its template marks by `{% generation %}`.

    None where the template marks nothing, or the tokenizer cannot say where its tokens stand. Raises: DataError where no token of
    this conversation is marked, and as `in_template` does.
    """
    if not (prompt.chat and tokenizer.is_fast and GENERATION.search(str(tokenizer.chat_template))):
        return None
    messages = [*(sample.messages or (Message("user", sample.question),)), Message("assistant", sample.answer)]
    in_template(messages, prompt, tokenizer, ask=False)
    found = in_template(messages, prompt, tokenizer, False, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
    pairs = zip(found["input_ids"], found["assistant_masks"], strict=True)
    runs = [(bool(mask), [token for token, _ in run]) for mask, run in groupby(pairs, lambda pair: pair[1])]
    if not any(mask for mask, _ in runs):
        raise DataError(f"sample '{sample.id}': the chat template marks no token of it by {{% generation %}}; correct it")
    parts = [[]] * runs[0][0] + [run for _, run in (runs if runs[-1][0] else runs[:-1])]
    return parts if prompt.targets == "every" else [[token for part in parts[:-1] for token in part], parts[-1]]
