"""The prompt that is asked is the prompt that was trained, whatever a tokenizer adds; tokenizers that cannot serve are named."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from cli.commands import Command
from helpers import tiny_decoder, tiny_recipe, tiny_vision
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import AutoProcessor, PreTrainedTokenizerFast

import dehvf_kit
from dehvf_kit.data.encoding import EncodedSamples
from dehvf_kit.data.samples import PromptConfig, Sample
from dehvf_kit.data.tokens import closes, format_question, tokenizer_faults
from dehvf_kit.errors import DataError
from dehvf_kit.evaluation.answers import answer, prompts
from dehvf_kit.model.model import DehvfModel
from dehvf_kit.training.run import train

WORDS = ["<pad>", "<s>", "</s>", "<unk>", "what", "colour", "is", "it", "?", "red", "white", "blue", "The", "answer", "a"]
ADDED = {
    "nothing": "$A",
    "start": "<s> $A",
    "end": "$A </s>",
    "both": "<s> $A </s>",
    "the end token in front": "</s> $A",
    "the end token on both sides": "</s> $A </s>",
}


def tokenizer(added: str = "$A", words: list[str] = WORDS, **special: str) -> PreTrainedTokenizerFast:
    core = Tokenizer(WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    core.pre_tokenizer = Whitespace()
    core.post_processor = TemplateProcessing(single=added, special_tokens=[("<s>", 1), ("</s>", 2)])
    special = special or {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    return PreTrainedTokenizerFast(tokenizer_object=core, **special)


def model(made: PreTrainedTokenizerFast, chat: bool = False, **decoder: object) -> DehvfModel:
    prompt = {"question": "{question}", "answer": " {answer}", "chat": chat}
    recipe = tiny_recipe(data={"type": "jsonl", "prompt": prompt})
    return dehvf_kit.build(recipe, decoder=tiny_decoder(**decoder), vision=tiny_vision(), tokenizer=made)


SAMPLES = [
    Sample("1", "what colour is it ?", "red"),
    Sample("2", "what ?", "The answer is red", answer_start="The answer is"),
    Sample("3", "is it red ?", "white"),
]


@pytest.mark.parametrize("special", ADDED)
def test_what_is_asked_is_what_was_trained(special: str) -> None:
    built = model(tokenizer(ADDED[special]))
    trained = EncodedSamples(SAMPLES, built.processor, built.recipe.data.prompt, 64, images=False).tokens
    assert all(tokens[-1] == 2 and tokens[-2] != 2 for tokens, _ in trained), "one end token, after the answer"
    for batch, tokens in ((SAMPLES, trained), (SAMPLES[:1], trained[:1]), (SAMPLES[2:], trained[2:])):
        inputs, starts = prompts(built.processor, batch)
        for row, mask, start, (whole, labels) in zip(
            inputs["input_ids"].tolist(), inputs["attention_mask"].tolist(), starts, tokens, strict=True
        ):
            asked = [token for token, kept in zip(row, mask, strict=True) if kept]
            assert whole[: len(asked)] == asked
            assert len(asked) - len(start) == sum(label == -100 for label in labels)
    alone = built.processor(text="what ?")
    padded = built.processor(text=["what ?", "what colour is it ?"])
    assert torch.equal(padded["input_ids"][0, -alone["input_ids"].shape[1] :], alone["input_ids"][0])
    assert padded["attention_mask"].tolist()[0][:3] == [0, 0, 0]


def test_an_end_token_in_front_is_no_appended_one() -> None:
    assert [closes(tokenizer(ADDED[special])) for special in ADDED] == [False, False, True, True, False, True]


def says(built: DehvfModel, words: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a model say these tokens one after the other, whatever it is asked."""
    forward, step = built.decoder.forward, iter(words)

    def spoken(*args: object, **kwargs: object) -> object:
        output = forward(*args, **kwargs)
        output.logits = torch.full_like(output.logits, -10.0)
        output.logits[:, -1, next(step)] = 10.0
        return output

    monkeypatch.setattr(built.decoder, "forward", spoken)


@pytest.mark.parametrize(("ends", "said"), [(5, 2), ([5, 6], 2), ([5, 6], 6), (2, 2), (None, 2)])
def test_an_answer_ends_at_the_tokenizers_end_token_and_at_the_decoders(
    ends: object, said: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = model(tokenizer(), eos_token_id=ends)
    says(built, [9, said, 10, 10], monkeypatch)
    (found,) = answer(built, SAMPLES[:1], max_new_tokens=4)
    text = "red" if said == 2 else "red is"  # token 6 is a word of this tokenizer
    assert found.prediction == text


def test_the_saved_processor_pads_on_the_left(tmp_path: Path) -> None:
    made = tokenizer()
    made.padding_side = "right"
    model(made).save_pretrained(tmp_path)
    found = AutoProcessor.from_pretrained(tmp_path)
    inputs = found(text=["what ?", "what colour is it ?"])
    assert found.tokenizer.padding_side == "left" and inputs["attention_mask"].tolist()[0][:3] == [0, 0, 0]
    assert '"padding_side": "left"' in (tmp_path / "tokenizer_config.json").read_text()


CHAT = PromptConfig(question="{question}", chat=True)
TEMPLATES = {
    None: "has no chat template",
    "{{ raise_exception('only with a system message') }}": "cannot be applied: only with a system message",
    "{{ messages[3]['content'] }}": "cannot be applied",
    "{% if %}": "cannot be applied",
    "user: assistant:": "drops the question",
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ m['content'] }}{% endif %}{% endfor %}Say:": "drops the question",
    "Q {{ messages[0]['content'] if messages[0]['content'] | length < 3 else '' }} A": "drops the question",
}


@pytest.mark.parametrize("template", TEMPLATES)
def test_chat_templates_that_cannot_ask(template: str | None) -> None:
    made = tokenizer()
    made.chat_template = template
    with pytest.raises(DataError, match=TEMPLATES[template]):
        format_question("what colour is it ?", CHAT, made)
    (fault,) = tokenizer_faults(made, CHAT)
    assert "data.prompt.chat" in str(fault)


FAULTS = {
    "no end token": (tokenizer(unk_token="<unk>"), "no end token"),
    "nothing to pad with": (tokenizer(bos_token="<s>"), "no padding token"),
    "more words than the embedding": (tokenizer(words=[*WORDS, *map(str, range(90))]), "tokens up to number 104"),
}


@pytest.mark.parametrize("case", FAULTS)
def test_tokenizers_that_cannot_train_are_named_before_the_first_batch(case: str, tmp_path: Path) -> None:
    made, says = FAULTS[case]
    built = model(made)
    recipe = built.recipe
    with pytest.raises(DataError, match=says):
        train(recipe, tmp_path / "run", model=built, samples=SAMPLES)
    assert not (tmp_path / "run" / "adapter").exists()
    if case != "no end token":  # an adapter that was trained so can still be asked
        with pytest.raises(DataError, match=says):
            answer(built, SAMPLES)


def test_check_says_it_before_anything_is_trained(world: Path, command: Command) -> None:
    sound = command("check", world / "tiny.yaml")
    assert sound.code == 0, sound.err
    ended = command("check", world / "tiny.yaml", "data.prompt.chat=true")
    assert ended.code == 1 and "decoder: data.prompt.chat: the tokenizer has no chat template" in ended.err
    ended = command("train", world / "tiny.yaml", "data.prompt.chat=true", "--output", world / "none")
    assert ended.code == 1 and "the tokenizer has no chat template" in ended.err


@pytest.mark.parametrize("case", FAULTS)
def test_check_knows_a_tokenizer_that_cannot_serve(case: str, tmp_path: Path, world: Path, command: Command) -> None:
    made, says = FAULTS[case]
    tiny_decoder().save_pretrained(tmp_path / "decoder")
    made.save_pretrained(tmp_path / "decoder")
    ended = command("check", world / "tiny.yaml", f"decoder.model={tmp_path}/decoder")
    assert ended.code == 1 and says in ended.err, ended.err
    (tmp_path / "decoder/tokenizer.json").write_text("{")
    assert "cannot be loaded" in command("check", world / "tiny.yaml", f"decoder.model={tmp_path}/decoder").err
