"""The batch's question as embeddings, for nodes that read it (ports `prompt` and `prompt_mask`)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dehvf_kit.errors import ShapeError
from dehvf_kit.model.input_tokens import IGNORED
from dehvf_kit.recipe.graph import BATCH, Graph

Prompt = tuple[Tensor, Tensor]
"""Embeddings [row, token, decoder_hidden] and mask [row, token]."""


def reads_prompt(graph: Graph) -> bool:
    """Whether a node reads the question."""
    return any(wire.node == BATCH and wire.port.startswith("prompt") for wire, _, _ in graph.edges())


def question(model: Any, text: Tensor, attention_mask: Tensor | None, labels: Tensor | None, cache: Any) -> Prompt | None:
    """The text before a row's first label, which is what generation is given; None where no node reads it.

    Shapes: text [row, token], or its embeddings [row, token, decoder_hidden]; attention_mask and labels [row, token].
    Raises: ShapeError with a filled cache, whose pass is given the last tokens alone.
    """
    if not reads_prompt(model.graph):
        return None
    if cache is not None and cache.get_seq_length() > 0:
        raise ShapeError("past_key_values: this model reads the whole question (port prompt); give the whole text, or use generate")
    mask = torch.ones(text.shape[:2], device=text.device).bool() if attention_mask is None else attention_mask.bool()
    if labels is not None:
        mask = mask & ((labels != IGNORED).cumsum(1) == 0).to(mask.device)
    return (model.get_input_embeddings()(text) if text.ndim == 2 else text).detach(), mask
