"""Prompt and answer cut where the prompt ends, whatever the tokenizer does at the border."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from dehvf_kit.data.encoding import encode_pairs


def sentencepiece_like() -> PreTrainedTokenizerFast:
    """As LLaMA's: a mark before every word and at the beginning of a text, and a token before all."""
    pieces = ["<unk>", "<s>", "</s>", "▁Response", ":", "The", "▁The", "▁answer", "▁is", "▁A", "▁", ":T"]
    tokenizer = Tokenizer(models.WordLevel({piece: n for n, piece in enumerate(pieces)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace(prepend_scheme="first"), pre_tokenizers.Split(":", "isolated")]
    )
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", bos_token="<s>", unk_token="<unk>")


def pieces(tokenizer: PreTrainedTokenizerFast, ids: list[int]) -> list[str]:
    return tokenizer.convert_ids_to_tokens(ids)


@pytest.mark.parametrize(("special", "first"), [(True, ["<s>"]), (False, [])])
def test_one_text_cut_in_two(special: bool, first: list[str]) -> None:
    tokenizer = sentencepiece_like()
    ((prompt, answer),) = encode_pairs(tokenizer, ["Response:"], ["The answer is A"], special)
    assert pieces(tokenizer, prompt) == [*first, "▁Response", ":"]
    # Alone, the answer would begin with another token: ▁The.
    assert pieces(tokenizer, answer) == ["The", "▁answer", "▁is", "▁A"]


def test_a_token_across_the_border_is_avoided() -> None:
    merges = [("a", "b")]
    tokenizer = Tokenizer(models.BPE({"a": 0, "b": 1, "ab": 2}, merges))
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    assert fast("ab")["input_ids"] == [2]
    assert encode_pairs(fast, ["a", "b"], ["b", "a"], True) == [([0], [1]), ([1], [0])]


def test_an_end_token_the_tokenizer_adds_is_no_part_of_the_prompt() -> None:
    tokenizer = sentencepiece_like()
    tokenizer._tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    ((prompt, answer),) = encode_pairs(tokenizer, ["Response:"], ["The answer"], True)
    assert pieces(tokenizer, prompt) == ["<s>", "▁Response", ":"] and pieces(tokenizer, answer) == ["The", "▁answer"]


def test_nothing() -> None:
    assert encode_pairs(sentencepiece_like(), [], [], True) == []
