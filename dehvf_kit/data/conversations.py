"""Conversations: messages as TRL, ms-swift and transformers write them, and what a decoder's chat template makes of them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from dehvf_kit.backbones.base import first_line
from dehvf_kit.data.samples import PLACEHOLDER, Message, PromptConfig, Sample, filled
from dehvf_kit.errors import DataError, shown

ROLES = ("system", "user", "assistant")
IMAGE_KEYS = ("image", "url", "path", "base64", "image_url")  # of a part of the type `image`: where the image itself may be
NEXT = {"role": "assistant", "content": "\1"}  # stands for the answer that follows
DATED = "{%- macro strftime_now(form) -%}26 Jul 2024{%- endmacro -%}"  # a prompt must not change with the day of its rendering


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
            elif kind in ("image", "image_url"):
                if role == "assistant":
                    raise DataError(f"message {number} (assistant): holds an image; give it in a message of the user")
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


def plain_text(messages: Sequence[Message]) -> str:
    """A conversation for a prompt without a chat template: a line for each message."""
    return "\n".join(one.content for one in messages)


def conversation_sample(key: str, before: Sequence[Message], answer: str, images: Sequence[Any], kind: str = "") -> Sample:
    """The sample of an answer after the messages `before` it; a lone user message is a plain question."""
    alone = len(before) == 1 and before[0].role == "user"
    first, further = images[0] if images else None, tuple(images[1:])
    return Sample(key, plain_text(before), answer, first, kind, messages=() if alone else tuple(before), further_images=further)


def marks_answers(tokenizer: Any) -> bool:
    """Whether a chat template marks by `{% generation %}` what an assistant writes."""
    return re.search(r"{%-?\s*generation\b", str(tokenizer.chat_template)) is not None


def in_template(messages: Sequence[Message], prompt: PromptConfig, tokenizer: Any, ask: bool = True) -> str:
    """Messages in the decoder's chat template, user and assistant texts inside the recipe's own templates.

    ask: whether the assistant's next answer follows; a template that marks answers is written up to the answer's own text, such
    as behind the empty thoughts that Qwen3's puts before it. Raises: DataError for a chat template that is missing, raises, or
    drops a message.
    """
    if not tokenizer.chat_template:
        raise DataError(
            "data.prompt.chat: the tokenizer has no chat template; add one to its folder (chat_template.jinja), or set "
            "data.prompt.chat=false"
        )
    turns = _turns(messages, prompt)

    def written(turns: Sequence[Mapping[str, str]]) -> str:
        end = [NEXT] if ask and marks_answers(tokenizer) else []
        how = {"add_generation_prompt": ask and not end, "chat_template": _template(tokenizer), "tokenize": False}
        text: str = tokenizer.apply_chat_template([*turns, *end], **how)
        return text.partition(NEXT["content"])[0] if end else text

    try:
        found = written(turns)
    except Exception as error:  # a template is a program: it raises whatever it likes
        raise DataError(
            f"data.prompt.chat: the tokenizer's chat template cannot be applied: {first_line(error)}; correct the template, "
            "or set data.prompt.chat=false"
        ) from error
    place = 0
    for number, (one, turn) in enumerate(zip(messages, turns, strict=True)):
        text = turn["content"].strip()
        at = found.find(text, place)
        place = max(place, at + len(text))
        # one that is not found was dropped, or written another way: then the text changes with the message
        if at < 0 and written([*turns[:number], {**turn, "content": f"{text}."}, *turns[number + 1 :]]) == found:
            what = "question" if len(messages) == 1 else f"{one.role}'s message"
            raise DataError(
                f"data.prompt.chat: the tokenizer's chat template drops the {what} {shown(one.content)}; correct the template, "
                "or set data.prompt.chat=false"
            )
    return found


def _template(tokenizer: Any) -> str:
    """A tokenizer's chat template, with a fixed date where it writes today's, as LLaMA 3.2's does."""
    found = str(tokenizer.get_chat_template())
    return DATED + found if "strftime_now" in found else found


def _turns(messages: Sequence[Message], prompt: PromptConfig) -> list[dict[str, str]]:
    return [{"role": one.role, "content": filled(prompt, one.role, one.content)} for one in messages]


def learned_parts(sample: Sample, prompt: PromptConfig, tokenizer: Any) -> list[str]:
    """The conversation before a sample's last answer in the chat template, cut where learned text begins and ends.

    Every second part is an earlier answer, with the template's own end where that is the tokenizer's end token. Raises: DataError
    for a template that does not write an earlier answer right behind the prompt it is asked by.
    """
    whole, end_token, cuts = in_template(sample.messages, prompt, tokenizer), tokenizer.eos_token, [0]
    for number, turn in enumerate(_turns(sample.messages, prompt)):
        if turn["role"] != "assistant" or not number:  # a greeting that opens a conversation answers nothing
            continue
        asked, text = in_template(sample.messages[:number], prompt, tokenizer), turn["content"].strip()
        start = whole.find(text, len(asked))
        if not whole.startswith(asked) or start < 0 or whole[len(asked) : start].strip():
            raise DataError(
                f"sample '{sample.id}': the chat template writes the answer {shown(text)} another way when more follows, "
                "so it cannot be learned; set data.prompt.targets=last, or mark answers in the template by {% generation %}"
            )
        after = whole[start + len(text) :].lstrip()
        closed = bool(end_token) and after.startswith(end_token)
        cuts += [len(asked), len(whole) - len(after) + len(end_token) if closed else start + len(text)]
    return [whole[start:end] for start, end in pairwise([*cuts, None])]


def generated_parts(sample: Sample, prompt: PromptConfig, tokenizer: Any) -> list[str]:
    """A whole conversation in parts, every second of which its template marks by `{% generation %}`; the last is the answer.

    The answer begins where the prompt of generation ends, whatever of the template's own is marked before it. Raises: DataError
    where nothing of the answer is marked, and as `in_template` does.
    """
    from transformers.utils.chat_template_utils import render_jinja_template

    before = sample.messages or (Message("user", sample.question),)
    messages = [*before, Message("assistant", sample.answer)]
    asked, whole = in_template(before, prompt, tokenizer), in_template(messages, prompt, tokenizer, ask=False)
    how: Any = {"chat_template": _template(tokenizer), "return_assistant_tokens_mask": True, **tokenizer.special_tokens_map}
    rendered: Any = render_jinja_template([_turns(messages, prompt)], **how)
    end = max((end for _, end in rendered[1][0]), default=0)
    if not whole.startswith(asked) or end <= len(asked):
        raise DataError(f"sample '{sample.id}': the chat template marks no token of it by {{% generation %}}; correct it")
    earlier = [edge for span in rendered[1][0] if span[1] <= len(asked) for edge in span if prompt.targets == "every"]
    return [whole[start:stop] for start, stop in pairwise([0, *earlier, len(asked), end])]
