"""Conversations: rows of TRL, ms-swift and LLaVA, chat templates of three families, what is learned and what is refused."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from data.chat_templates import FAMILIES, PUBLISHED, chat_tokenizer
from data.small_sets import picture
from dehvf_kit_streams.llava import LlavaDataConfig
from dehvf_kit_streams.messages import ChatPromptConfig, MessagesDataConfig
from pydantic import ValidationError

from dehvf_kit.backbones.vision.config import ImageConfig
from dehvf_kit.data.encoding import IGNORED, EncodedSamples
from dehvf_kit.data.processing import DehvfProcessor
from dehvf_kit.data.samples import Message, PromptConfig, Sample
from dehvf_kit.errors import DataError
from dehvf_kit.evaluation.answers import prompts

SYSTEM = {"role": "system", "content": "be brief"}
TALK = [
    {"role": "user", "content": "what colour is it ?"},
    {"role": "assistant", "content": "red"},
    {"role": "user", "content": "and size ?"},
    {"role": "assistant", "content": "small"},
]
EVERY, LAST = ChatPromptConfig(), ChatPromptConfig(targets="last")


def rows(folder: Path, *given: dict[str, Any], **settings: Any) -> MessagesDataConfig:
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in given))
    return MessagesDataConfig(train=str(file), test="", **settings)


def processor(family: str, prompt: PromptConfig = EVERY) -> DehvfProcessor:
    return DehvfProcessor(ImageConfig(size=8).processor(), chat_tokenizer(family), prompt=prompt.model_dump())


def sample(*messages: dict[str, str]) -> Sample:
    (*before, answer) = [Message(**one) for one in messages]
    return Sample("a", "\n".join(one.content for one in before), answer.content, messages=tuple(before))


def encoded(family: str, one: Sample, prompt: PromptConfig, made: DehvfProcessor | None = None) -> tuple[str, list[str]]:
    """The whole text, and the learned runs of it."""
    made = made or processor(family, prompt)
    ((tokens, labels),) = EncodedSamples([one], made, prompt, 99, images=False).tokens
    runs, before = [], False
    for token, label in zip(tokens, labels, strict=True):
        if label != IGNORED:
            assert label == token
            runs = runs if before else [*runs, []]
            runs[-1].append(token)
        before = label != IGNORED
    return made.tokenizer.decode(tokens), [made.tokenizer.decode(run) for run in runs]


LEARNED = {
    "llama": ["red<|eot_id|>", "small<|eot_id|>"],
    "llama3.2": ["red<|eot_id|>", "small<|eot_id|>"],
    "qwen": ["red<|im_end|>", "small<|im_end|>"],
    "qwen3": ["red<|im_end|>", "small<|im_end|>"],
    "gemma": ["red", "small<eos>"],  # its template ends a turn with another token than its tokenizer's end token
    "gemma3": ["red", "small<eos>"],
    "llama marked": ["red<|eot_id|>", "small<|eot_id|>"],
    "qwen marked": ["\nred<|im_end|>\n", "small<|im_end|>\n"],  # it marks the line's end before an answer, too
    "qwen3 marked": ["<think>\n\n</think>\n\nred<|im_end|>\n", "small<|im_end|>\n"],
    "gemma marked": ["red<end_of_turn>\n", "small<end_of_turn>\n"],
}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_answer_or_the_last_is_learned_and_generation_sees_what_training_saw(family: str) -> None:
    """Qwen3's own template puts empty thoughts before the last answer alone, its marked form before each: none is asked for."""
    one = sample(*TALK)
    text, runs = encoded(family, one, EVERY)
    assert runs == LEARNED[family]
    again, last = encoded(family, one, LAST)
    assert (again, last) == (text, runs[-1:])
    made = processor(family)
    inputs, _ = prompts(made, [one])
    asked = inputs["input_ids"][0].tolist()
    ((tokens, _),) = EncodedSamples([one], made, EVERY, 99, images=False).tokens
    assert tokens[: len(asked)] == asked and made.tokenizer.decode(tokens[len(asked) :]) == runs[-1]


@pytest.mark.parametrize("family", PUBLISHED)
def test_training_renders_what_the_published_template_does(family: str) -> None:
    """Up to what a template writes before the last answer alone, and today's date, which a prompt must not have."""
    made, before = chat_tokenizer(family), TALK[:3] if family.startswith("gemma") else [SYSTEM, *TALK[:3]]
    text, _ = encoded(family, sample(*before, TALK[3]), EVERY)
    wanted = made.apply_chat_template(before, tokenize=False, add_generation_prompt=True)
    today = datetime.now().strftime("%d %b %Y")
    assert (today in wanted) == (family == "llama3.2") and today not in text
    assert text == wanted.replace(today, "26 Jul 2024") + "small" + made.eos_token


@pytest.mark.parametrize("family", ["llama", "llama marked"])
def test_history_has_the_tokens_of_generation_where_a_tokenizer_cuts_the_border_another_way(family: str) -> None:
    """GPT-2's rule makes one token of the two line ends at the end of a prompt, and two before a word."""
    made = DehvfProcessor(ImageConfig(size=8).processor(), chat_tokenizer(family, gpt2=True), prompt=EVERY.model_dump())
    one = sample(*TALK)
    ((tokens, labels),) = EncodedSamples([one], made, EVERY, 99, images=False).tokens
    inputs, _ = prompts(made, [one])
    asked = inputs["input_ids"][0].tolist()
    assert tokens[: len(asked)] == asked
    _, runs = encoded(family, one, EVERY, made)
    assert [run.strip() for run in runs] == LEARNED["llama"]


def test_an_answer_that_comes_another_way_than_it_is_asked_for_is_refused() -> None:
    """As templates of reasoning models write it: thoughts are asked for, and left out of what was said earlier."""
    made = processor("qwen3")
    made.tokenizer.chat_template += "{%- if add_generation_prompt %}<think>\n{% endif %}"
    with pytest.raises(DataError, match="writes the answer 'red' another way when more follows.*targets=last"):
        EncodedSamples([sample(*TALK)], made, EVERY, 99, images=False)
    assert len(EncodedSamples([sample(*TALK)], made, LAST, 99, images=False)) == 1
    marked = processor("qwen3 marked")
    with pytest.raises(DataError, match="marks no token of it"):
        EncodedSamples([sample(TALK[0], {"role": "assistant", "content": "<think>hm</think>red"})], marked, EVERY, 99, images=False)


@pytest.mark.parametrize("family", ["llama", "qwen", "gemma"])
def test_a_lone_question_in_a_template_is_as_before(family: str) -> None:
    """A plain question and answer: the template around the question, the answer, the tokenizer's end token."""
    made = chat_tokenizer(family)
    text, runs = encoded(family, Sample("a", "what is it ?", "red"), LAST)
    asked = made.apply_chat_template([{"role": "user", "content": "what is it ?"}], tokenize=False, add_generation_prompt=True)
    wanted = made(asked + "red", add_special_tokens=False)["input_ids"] + [made.eos_token_id]
    assert text == made.decode(wanted) and [run.split()[0].split("<")[0] for run in runs] == ["red"]


def test_a_long_conversation_loses_its_beginning_and_its_labels_with_it() -> None:
    made = processor("qwen")
    whole = EncodedSamples([sample(*TALK)], made, EVERY, 64, images=False)
    short = EncodedSamples([sample(*TALK)], made, EVERY, 12, images=False)
    assert short.cut == ["a"] and not whole.cut
    assert all(cut == full[-12:] for cut, full in zip(short.tokens[0], whole.tokens[0], strict=True))


@pytest.mark.parametrize(
    ("family", "messages", "message"),
    [
        ("gemma", [SYSTEM, *TALK], "System role not supported"),
        ("gemma marked", [SYSTEM, *TALK], "System role not supported"),
        ("gemma", [TALK[0], *TALK[:2]], "roles must alternate"),
        ("gemma3", [SYSTEM, *TALK[1:]], "roles must alternate"),
    ],
)
def test_what_a_template_cannot_carry_is_refused_by_name(family: str, messages: list, message: str) -> None:
    skipped: list[str] = []
    with pytest.raises(DataError, match=message):
        EncodedSamples([sample(*messages)], processor(family), EVERY, 64, images=False)
    EncodedSamples([sample(*messages)], processor(family), EVERY, 64, images=False, skip=lambda one, why: skipped.append(why))
    assert len(skipped) == 1 and message in skipped[0]


def test_a_template_that_drops_a_message_is_refused() -> None:
    made = processor("qwen")
    made.tokenizer.chat_template = "{{ messages[-1]['content'] }} Say:"
    with pytest.raises(DataError, match="drops the system's message 'be brief'"):
        EncodedSamples([sample(SYSTEM, *TALK)], made, LAST, 64, images=False)


def test_rows_of_trl_and_of_ms_swift(tmp_path: Path) -> None:
    parts = [{"type": "image", "text": None}, {"type": "text", "text": "what colour is it ?"}]
    trl = {"messages": [SYSTEM, {"role": "user", "content": parts}, TALK[1]], "images": [str(picture(tmp_path / "a.png"))]}
    swift = {"id": 7, "messages": [{"role": "user", "content": "<image>what ?"}, TALK[1], *TALK[2:]], "images": ["b.png"]}
    plain = {"messages": TALK[:2]}
    first, second, third = rows(tmp_path, trl, swift, plain).samples("train")
    assert first == Sample(
        "0", "be brief\nwhat colour is it ?", "red", tmp_path / "a.png",
        messages=(Message("system", "be brief"), Message("user", "what colour is it ?")),
    )  # fmt: skip
    assert (second.id, second.image, second.messages[0].content) == ("7", tmp_path / "b.png", "what ?")
    assert len(second.messages) == 3 and second.answer == "small"
    assert third == Sample("2", "what colour is it ?", "red"), "one turn is a plain question"


def row(*messages: Any, **others: Any) -> dict[str, Any]:
    return {"messages": list(messages), **others}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (row(*TALK[:3]), "must end with a question of the user and the assistant's answer"),
        (row({"role": "tool", "content": "x"}, TALK[1]), "message 0: its role must be system, user, assistant, given 'tool'"),
        (row(TALK[0], {**TALK[1], "tool_calls": [1]}), r"message 1 \(assistant\): has 'tool_calls', which is not read"),
        (row({"role": "user", "content": [{"type": "video", "video": "a.mp4"}]}, TALK[1]), "parts of the type text or image"),
        (row({"role": "user", "content": 7}, TALK[1]), "parts of the type text or image"),
        (row({"role": "user", "content": [["a"]]}, TALK[1]), "parts of the type text or image"),
        (row({"role": ["user"], "content": "a"}, 3), "its role must be"),
        (
            row(*TALK[:2], images="a.png", **{"id": 3})
            | {
                "messages": [
                    {"role": "user", "content": [{"type": "image", "path": "b.png"}, {"type": "text", "text": "?"}]},
                    TALK[1],
                ]
            },
            "in its messages and in a column",
        ),
        (row({"role": "user", "content": " "}, TALK[1]), r"message 0 \(user\): is empty"),
        (row({"role": "user", "content": "<image>what ?"}, TALK[1]), "has <image>, and there is no image"),
        (row({"role": "user", "content": "<image><image>what ?"}, TALK[1], images=["a.png"]), "2 x <image> in the text"),
        (row(), "a conversation is a list of messages"),
        (row(*TALK[:2], videos=["a.mp4"]), "'videos' is given, which is not read"),
    ],
)
def test_rows_that_are_no_conversation(tmp_path: Path, given: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        rows(tmp_path, given).samples("train")


def test_the_first_place_of_an_image_is_its_place_and_a_later_one_is_text(tmp_path: Path) -> None:
    ask = {"role": "user", "content": "<image> what ?"}
    reading = rows(tmp_path, row(TALK[0], TALK[1], ask, TALK[1], ask, TALK[1], images=["a.png"])).read("train")
    assert reading.samples[0].question == "what colour is it ?\nred\nwhat ?\nred\n<image> what ?"
    assert [issue.kind for issue in reading.issues] == ["<image> inside a text, kept as text"]


def test_a_row_of_an_image_alone_is_named_and_the_others_are_read(tmp_path: Path) -> None:
    image = {"role": "user", "content": [{"type": "image", "image": "a.png"}]}
    reading = rows(tmp_path, row(image, TALK[1]), row(*TALK)).read("train")
    assert [one.id for one in reading.samples] == ["1"]
    assert [(one.kind, "no text beside <image>" in str(one)) for one in reading.issues] == [("empty question", True)]


def test_marks_of_video_and_audio_are_noted(tmp_path: Path) -> None:
    reading = rows(tmp_path, row({"role": "user", "content": "<video>what ?"}, TALK[1])).read("train")
    assert [(issue.kind, issue.fatal) for issue in reading.issues] == [("<video> inside a text, kept as text", False)]


@pytest.mark.parametrize("family", ["qwen", "llama"])
def test_a_greeting_that_answers_nothing_is_read_and_not_learned(family: str) -> None:
    hello = {"role": "assistant", "content": "brief"}
    text, runs = encoded(family, sample(hello, *TALK), EVERY)
    assert "brief" in text and runs == LEARNED[family]


def test_a_file_of_messages_is_recognised_and_a_prompt_keeps_its_chat(tmp_path: Path) -> None:
    data = rows(tmp_path, row(*TALK), prompt={"targets": "last"})
    assert MessagesDataConfig.recognise(Path(data.train)) == {"train": data.train, "test": ""}
    assert data.prompt.chat and data.prompt.question == "{question}"
    with pytest.raises(ValidationError, match="targets=every needs the chat template"):
        MessagesDataConfig(prompt={"chat": False})


def test_llava_conversations_are_messages_in_a_chat_template_and_lines_elsewhere(tmp_path: Path) -> None:
    speakers = {"system": "system", "user": "human", "assistant": "gpt"}
    turns = [{"from": speakers[one["role"]], "value": one["content"]} for one in [SYSTEM, *TALK]]
    file = tmp_path / "talks.json"
    file.write_text(json.dumps([{"id": "a", "conversations": turns}]))
    first, second = LlavaDataConfig(train=file).samples("train")
    assert second.question == "be brief\nwhat colour is it ?\nred\nand size ?"
    assert [one.role for one in second.messages] == ["system", "user", "assistant", "user"] and len(first.messages) == 2
    (whole,) = LlavaDataConfig(train=file, prompt=EVERY).samples("train")
    assert whole == second
    _, runs = encoded("qwen", whole, EVERY)
    assert [run.replace(" ", "") for run in runs] == LEARNED["qwen"]
    made = processor("qwen", PromptConfig())
    assert made.with_prompt(second.asked) == f"Question: {second.question}\nAnswer:"


@pytest.mark.parametrize("family", ["llama", "qwen", "qwen3", "gemma3", "qwen marked"])
def test_apply_chat_template_renders_the_whole_conversation_as_training_does(family: str) -> None:
    made, one = processor(family), sample(SYSTEM, *TALK)
    text = made.apply_chat_template([SYSTEM, *TALK[:3]])
    assert text == made.with_prompt(one.asked) and "be brief" in text and "red" in text
    inputs = made.apply_chat_template([SYSTEM, *TALK[:3]], tokenize=True)
    ((tokens, _),) = EncodedSamples([one], made, EVERY, 64, images=False).tokens
    asked = inputs["input_ids"][0].tolist()
    assert asked == tokens[: len(asked)] and made.tokenizer.decode(tokens[len(asked) :]) == LEARNED[family][-1]
    with pytest.raises(DataError, match="ends with the user's question, this one with a message of the assistant"):
        made.apply_chat_template(TALK)
