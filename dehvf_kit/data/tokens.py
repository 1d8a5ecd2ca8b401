"""How prompts become tokens, how many there may be, and what a tokenizer lacks for that; needs neither torch nor transformers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dehvf_kit.data.conversations import in_template
from dehvf_kit.data.samples import Message, PromptConfig, filled
from dehvf_kit.errors import DataError, shown

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PADDING = ("padding", "padding_side", "pad_to_multiple_of", "return_tensors", "max_length")


def closes(tokenizer: Any) -> bool:
    """Whether the tokenizer appends its end token to every text; an end token that is the start token too is put in front."""
    end = tokenizer.eos_token_id
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    full = tokenizer("a", add_special_tokens=True)["input_ids"]
    appended = full[-1:] == [end] and plain[-1:] != [end]
    return appended and (bool(plain) or tokenizer.bos_token_id != end)


def open_ended(tokenizer: Any, rows: Sequence[list[int]], special: bool) -> list[list[int]]:
    """Rows of token ids without the end token that the tokenizer appended: a prompt goes on with its answer.

    special: whether the tokenizer was asked for its own special tokens.
    """
    if not (special and closes(tokenizer)):
        return list(rows)
    return [row[:-1] if row[-1:] == [tokenizer.eos_token_id] else row for row in rows]


def tokenise(tokenizer: Any, texts: Sequence[str], special: bool, **arguments: Any) -> Mapping[str, Any]:
    """Token ids and mask of prompts, as `tokenizer(texts, ...)` gives them, without an appended end token."""
    if not (special and closes(tokenizer)):
        return tokenizer(list(texts), add_special_tokens=special, **arguments)
    padding = {name: arguments[name] for name in PADDING if name in arguments}
    cut = {name: arguments[name] for name in ("truncation", "max_length") if name in arguments}
    rows = tokenizer(list(texts), add_special_tokens=True, **cut)["input_ids"]
    return tokenizer.pad({"input_ids": open_ended(tokenizer, rows, True)}, **padding)


def format_question(question: str, prompt: PromptConfig, tokenizer: PreTrainedTokenizerBase) -> str:
    """A question in a prompt: the recipe's template, inside the decoder's chat template where the recipe says so.

    Raises: DataError for a chat template that is missing, raises, or drops the question.
    """
    if not prompt.chat:
        return filled(prompt, "user", question)
    found = in_template([Message("user", question)], prompt, tokenizer)
    bare = PromptConfig(question="{question}", chat=True)
    opening, place, _ = in_template([Message("user", "\0")], bare, tokenizer).partition("\0")
    return question if place and opening and question.startswith(opening) else found


def text_positions(graph: Any) -> int | None:
    """Tokens of text that the decoder of a graph has positions for, beside those that components put into its input."""
    limit = graph.contexts[graph.order[0]].decoder.max_positions
    if limit is None:
        return None
    return limit - sum(graph.nodes[name].config.input_tokens(graph.contexts[name]) for name in graph.order)


def longest_sample(max_length: int, graph: Any) -> int:
    """Tokens a training sample may have: `training.max_length`, or the decoder's positions where those are fewer."""
    limit = text_positions(graph)
    return max_length if limit is None else max(1, min(max_length, limit))


def longest_prompt(max_length: int | None, graph: Any, new_tokens: int) -> int | None:
    """Tokens a prompt may have when it is asked: as many as in training, and so that the answer has positions too.

    Raises: DataError where the answer alone needs all positions.
    """
    limit = text_positions(graph)
    if limit is None:
        return max_length
    room = limit - new_tokens
    if room < 1:
        raise DataError(
            f"an answer of {new_tokens} tokens leaves no room for a question: the decoder has positions for {limit} tokens of "
            "text; ask for fewer by --max-new-tokens or generation.max_new_tokens"
        )
    return room if max_length is None else min(max_length, room)


def embedded_tokens(model: Any) -> int:
    """Rows of a model's embedding; 0 where they cannot be told."""
    return getattr(model.get_input_embeddings(), "num_embeddings", 0)


def tokenizer_faults(tokenizer: Any, prompt: PromptConfig | None, embedded: int = 0, learns: bool = True) -> list[DataError]:
    """What is wrong with a tokenizer.

    Args:
        tokenizer: the decoder's.
        prompt: the prompt it will be used with.
        embedded: rows of the decoder's embedding; 0 where they are not known.
        learns: whether answers are to be learned, which needs an end token.
    """
    faults: list[DataError] = []
    if learns and tokenizer.eos_token_id is None:
        faults.append(
            DataError(
                "the tokenizer has no end token, so the model would never learn to end an answer; name its `eos_token` in "
                "tokenizer_config.json"
            )
        )
    if tokenizer.pad_token_id is None:
        faults.append(
            DataError(
                "the tokenizer has no padding token, and no end or unknown token to pad with; name its `pad_token` in "
                "tokenizer_config.json"
            )
        )
    words = tokenizer.get_vocab()
    last = max(words, key=lambda word: words[word], default=None)
    if last is not None and embedded and words[last] >= embedded:
        faults.append(
            DataError(
                f"the tokenizer has tokens up to number {words[last]} ({shown(last)}), the decoder's embedding has {embedded} "
                "rows; use the tokenizer that belongs to the decoder, or resize the decoder's embedding and save it"
            )
        )
    if prompt is not None and prompt.chat:
        try:
            format_question("What is in the image?", prompt, tokenizer)
        except DataError as error:
            faults.append(error)
    return faults


def require_tokenizer(tokenizer: Any, prompt: PromptConfig | None, embedded: int = 0, learns: bool = True) -> None:
    """Raises: DataError with every one of `tokenizer_faults`."""
    if faults := tokenizer_faults(tokenizer, prompt, embedded, learns):
        raise DataError("\n".join(str(fault) for fault in faults))
