"""A decoder's output with the loss of the next token: at every label, or of the answers' columns alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dehvf_kit.errors import ShapeError
from dehvf_kit.model.input_tokens import IGNORED

if TYPE_CHECKING:
    from transformers.modeling_outputs import CausalLMOutputWithPast


def decoder_loss(decoder: nn.Module, arguments: Mapping[str, Any]) -> CausalLMOutputWithPast:
    """The decoder's output, with labels also the loss of the next token.

    arguments: what the decoder is given; with num_items_in_batch, the labels of a step. The decoder's own loss is not asked for:
    some families take it at the token a position stands at, and some ignore num_items_in_batch.
    """
    given = dict(arguments)
    labels, items = given.pop("labels", None), given.pop("num_items_in_batch", None)
    output = _of_the_text(decoder, given)
    if labels is not None:
        output.loss = next_token_loss(output.logits[:, :-1], labels[:, -output.logits.shape[1] :][:, 1:], items)
    return output


def answer_loss(decoder: nn.Module, arguments: Mapping[str, Any]) -> CausalLMOutputWithPast:
    """The decoder's output with logits [batch, position, vocabulary] of columns `logits_to_keep`, with labels also their loss.

    The output head reads no other columns: an answer of two tokens costs it two, whatever the lengths of the questions in a batch.

    arguments: what the decoder is given, with labels [batch, token], -100 where no loss is taken, or without; logits_to_keep
    [position], or [batch, position] of each row's own, -1 where a row has fewer: the columns before an answer token, never counted
    from the end; and, where batches are accumulated, num_items_in_batch, the answer tokens of the step.
    Raises: ShapeError for columns of another number of rows.
    """
    given = dict(arguments)
    labels, kept, items = (given.pop(name, None) for name in ("labels", "logits_to_keep", "num_items_in_batch"))
    rows, tokens = _text(given).shape[:2]
    if kept.ndim > 2 or (kept.ndim == 2 and len(kept) != rows):
        raise ShapeError(f"logits_to_keep is {tuple(kept.shape)}; wants [position] or [{rows}, position]")
    kept = kept.expand(rows, -1)
    with _head_reads(decoder, kept, tokens) as reached:
        output = decoder(**given)
    if not reached:
        output.logits = _columns(output.logits, kept, tokens)
    if labels is not None:
        output.loss = next_token_loss(output.logits, following_labels(labels, kept), items)
    return output


def following_labels(labels: Tensor, kept: Tensor) -> Tensor:
    """What the logits of columns `kept`, as in `answer_loss`, are compared with: [batch, position], -100 for columns of -1."""
    kept = kept.expand(len(labels), -1)
    return labels.take_along_dim(kept.clamp(min=0) + 1, 1).masked_fill(kept < 0, IGNORED)


def _text(given: Mapping[str, Any]) -> Tensor:
    return given["input_ids"] if given.get("input_ids") is not None else given["inputs_embeds"]


@contextmanager
def _head_reads(decoder: nn.Module, kept: Tensor, tokens: int) -> Iterator[list[nn.Module]]:
    """Inside, the decoder's output head is given columns `kept` [batch, position] of `tokens` alone; yields the heads that were.

    Not where the decoder as a whole is compiled, which would be compiled anew for every hook.
    """
    head = decoder.get_output_embeddings()
    reached: list[nn.Module] = []  # a call of list[nn.Module] would break the graph of a compiled model
    if not isinstance(head, nn.Module) or _compiled(decoder):
        yield reached
        return

    def gather(module: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden = given[0] if given else None
        if not isinstance(hidden, Tensor) or hidden.ndim != 3 or len(hidden) != len(kept) or hidden.shape[1] < tokens:
            return given
        reached.append(module)
        return (_columns(hidden, kept, tokens), *given[1:])

    handle = head.register_forward_pre_hook(gather)
    try:
        yield reached
    finally:
        handle.remove()


def _compiled(decoder: nn.Module) -> bool:
    return torch.compiler.is_compiling() or hasattr(decoder, "_orig_mod") or decoder._compiled_call_impl is not None


def _columns(values: Tensor, kept: Tensor, tokens: int) -> Tensor:
    """values [batch, column, size] -> [batch, position, size]; columns before the last `tokens` are of peft's prompts."""
    columns = kept.clamp(min=0).to(values.device) + values.shape[1] - tokens
    return values.take_along_dim(columns[..., None], 1)


def _of_the_text(decoder: nn.Module, arguments: Mapping[str, Any]) -> CausalLMOutputWithPast:
    """The decoder's output with one column of logits for each text token.

    peft's prompt tuning, p-tuning and multitask prompt tuning put virtual tokens before the text: they have columns of their own in
    its logits, and `logits_to_keep` would count them.
    """
    tuned = getattr(decoder, "active_peft_config", None)
    if tuned is None or not tuned.is_prompt_learning:
        return decoder(**arguments)
    given = dict(arguments)
    kept = given.pop("logits_to_keep") if isinstance(given.get("logits_to_keep"), Tensor) else None
    output = decoder(**given)
    output.logits = output.logits[:, -_text(given).shape[1] :]
    if kept is not None:
        output.logits = output.logits[:, kept]
    return output


def next_token_loss(logits: Tensor, targets: Tensor, items: Any) -> Tensor:
    """Cross entropy of logits [batch, position, vocabulary] at targets [batch, position]; items: what the sum is divided by."""
    scores, wanted = logits.float().flatten(0, 1), targets.flatten().to(logits.device)
    if items is None:
        return nn.functional.cross_entropy(scores, wanted)
    return nn.functional.cross_entropy(scores, wanted, reduction="sum") / items
