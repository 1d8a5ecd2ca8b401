"""Chat templates of LLaMA, Qwen and Gemma as their authors publish them, and tiny tokenizers that have them.

The templates are files of the package trl (Apache-2.0), of its pinned version, in `trl/chat_templates`: each is the chat
template of a public checkpoint, which trl's README there names; trl recognises a model by comparing the two, and a weekly job of
its own looks for differences. Those called `_training` are trl's forms of them that mark by `{% generation %}` what an assistant
writes. Nothing is copied here: the templates keep the licences of their authors.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True)
class Family:
    """The file of a chat template, its tokenizer's special tokens, and the text that ends an answer in it."""

    file: str
    begin: str | None
    end: str
    special: tuple[str, ...]
    turn_end: str


LLAMA = ("<|begin_of_text|>", "<|eot_id|>", ("<|start_header_id|>", "<|end_header_id|>"), "<|eot_id|>")
QWEN = (None, "<|im_end|>", ("<|im_start|>",), "<|im_end|>")
GEMMA = ("<bos>", "<eos>", ("<start_of_turn>", "<end_of_turn>"), "<end_of_turn>")
PUBLISHED = {
    "llama": Family("llama3", *LLAMA),
    "llama3.2": Family("llama3_2", *LLAMA),
    "qwen": Family("qwen2_5", *QWEN),
    "qwen3": Family("qwen3", *QWEN),
    "gemma": Family("gemma", *GEMMA),  # of Gemma 1 and 2
    "gemma3": Family("gemma3", *GEMMA),
}
MARKED = {
    "llama marked": Family("llama3_training", *LLAMA),
    "qwen marked": Family("qwen2_5_training", *QWEN),
    "qwen3 marked": Family("qwen3_training", *QWEN),
    "gemma marked": Family("gemma_training", *GEMMA),
}
FAMILIES = PUBLISHED | MARKED
WORDS = (
    "what colour is it ? and size ? red blue small big be brief system user assistant model helpful You are Qwen , created by "
    "Alibaba Cloud . You are a helpful assistant Cutting Knowledge Date : December Today"
)


@cache
def template(file: str) -> str:
    found = find_spec("trl")
    if found is None or not found.submodule_search_locations:
        pytest.skip("the published chat templates are files of the package trl, which is not installed")
    return Path(found.submodule_search_locations[0], "chat_templates", f"{file}.jinja").read_text()


def chat_tokenizer(family: str, gpt2: bool = False) -> PreTrainedTokenizerFast:
    """Bytes and some words, and the family's special tokens with its template; lines' ends are tokens of their own.

    gpt2: split texts as GPT-2 does, which cuts `\\n\\n` another way where a word follows.
    """
    one = FAMILIES[family]
    core = Tokenizer(models.BPE())
    lines = pre_tokenizers.Split(Regex(r"\n+| ?\w+| ?[^\s\w]+|\s"), "isolated")
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [lines][: not gpt2] + [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=gpt2)]
    )
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=470, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    core.train_from_iterator([WORDS, WORDS.replace(" ", "\n"), "\n\n"] * 2, trainer)
    special = ["<pad>", *dict.fromkeys(filter(None, [one.begin, one.end, *one.special]))]
    core.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    core.add_tokens([AddedToken(token, normalized=False) for token in ("<think>", "</think>")])  # as Qwen3 has them: not special
    made = PreTrainedTokenizerFast(tokenizer_object=core, bos_token=one.begin, eos_token=one.end, pad_token="<pad>")
    made.chat_template = template(one.file)
    return made
