"""Chat templates of three families, in their public formats, and tiny tokenizers that have them."""

from __future__ import annotations

from dataclasses import dataclass

from tokenizers import AddedToken, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast

LLAMA3 = (
    "{% for message in messages %}{% if loop.first %}{{ bos_token }}{% endif %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
QWEN = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are a helper.<|im_end|>\n' }}{% endif %}"
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}"
    "{{ '<start_of_turn>' + ('model' if message['role'] == 'assistant' else message['role']) + '\n' }}"
    "{{ message['content'] | trim + '<end_of_turn>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
MARKED = (
    "{% for message in messages %}{% if message['role'] == 'assistant' %}{{ '<|im_start|>assistant\n' }}"
    "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}"
    "{% else %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@dataclass(frozen=True)
class Family:
    """A chat template, its special tokens, and the one that ends an answer."""

    template: str
    begin: str | None
    end: str
    special: tuple[str, ...]
    turn_end: str


FAMILIES = {
    "llama": Family(LLAMA3, "<|begin_of_text|>", "<|eot_id|>", ("<|start_header_id|>", "<|end_header_id|>"), "<|eot_id|>"),
    "qwen": Family(QWEN, None, "<|im_end|>", ("<|im_start|>",), "<|im_end|>"),
    "gemma": Family(GEMMA, "<bos>", "<eos>", ("<start_of_turn>", "<end_of_turn>"), "<end_of_turn>"),
    "marked": Family(MARKED, None, "<|im_end|>", ("<|im_start|>",), "<|im_end|>"),
}
WORDS = "system user assistant model what colour is it ? and size red blue small big be brief".split()  # noqa: SIM905


def chat_tokenizer(family: str) -> PreTrainedTokenizerFast:
    """Words, and the family's special tokens with its template."""
    one = FAMILIES[family]
    special = ["<pad>", "<unk>", *filter(None, [one.begin, one.end]), *one.special]
    vocabulary = {word: number for number, word in enumerate(dict.fromkeys([*special, *WORDS]))}
    core = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = Whitespace()
    core.add_special_tokens([AddedToken(token, special=True) for token in special])
    made = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token=one.begin, eos_token=one.end, unk_token="<unk>", pad_token="<pad>"
    )
    made.chat_template = one.template
    return made
