"""Loss of the answers alone: logits are only made where an answer token follows."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers.modeling_outputs import CausalLMOutputWithPast


def answer_loss(
    decoder: nn.Module, labels: Tensor, logits_to_keep: Tensor, items: int | Tensor | None, arguments: dict[str, Any]
) -> CausalLMOutputWithPast:
    """The decoder's output with loss and logits [batch, position, vocabulary] of the positions in `logits_to_keep` alone.

    labels [batch, token], -100 where no loss is taken; logits_to_keep [position]: columns before an answer token; items:
    answer tokens of the whole step, where batches are accumulated (None: those of this batch).
    """
    if "logits_to_keep" in inspect.signature(decoder.forward).parameters:
        arguments = {**arguments, "logits_to_keep": logits_to_keep}
    output = decoder(**arguments)
    if output.logits.shape[1] != len(logits_to_keep):
        output.logits = output.logits[:, logits_to_keep]
    targets = labels[:, logits_to_keep + 1]
    loss = nn.functional.cross_entropy(
        output.logits.float().flatten(0, 1), targets.flatten(), reduction="mean" if items is None else "sum"
    )
    output.loss = loss if items is None else loss / items
    return output
