"""What each row of a batch reads beside its text.

Features: from pixels or features given, one, several or no images a row. The question as embeddings, for nodes that read it (ports
`prompt` and `prompt_mask`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dehvf_kit.data.processing import padded_index
from dehvf_kit.errors import DehvfError, ShapeError
from dehvf_kit.model.input_tokens import IGNORED
from dehvf_kit.model.run import Features, by_tower, image_entries, one_a_row
from dehvf_kit.recipe.graph import BATCH, Graph

Prompt = tuple[Tensor, Tensor]
"""Embeddings [row, token, decoder_hidden] and mask [row, token]."""


class RowFeatures(NamedTuple):
    """features: of each encoder [row, layer, 1 + patch, vision_hidden], None without images; has_image [row];
    text_row [row]: which row of text an image belongs to, None where each has at most one."""

    features: dict[str, Tensor] | None = None
    has_image: Tensor | None = None
    text_row: Tensor | None = None


def row_features(
    model: Any,
    rows: int,
    pixel_values: Features | None,
    vision_features: Features | None,
    has_image: Tensor | None,
    image_index: Tensor | Sequence[Sequence[int]] | None,
) -> RowFeatures:
    """The features of `rows` rows of text. Args: model, a `DehvfModel`; the others as in its `forward`.

    Raises: ShapeError where images and rows do not match; DehvfError for features where a vision adapter is trained.
    """
    towers = model.towers
    if pixel_values is not None and vision_features is not None:
        raise ShapeError("give pixel_values or vision_features, not both")
    if vision_features is not None and model.training and torch.is_grad_enabled() and model.image_is_trained:
        raise DehvfError(
            "vision_features in training: the vision adapter works inside the encoder and would get no gradient; "
            "give pixel_values, or leave the vision adapter out of the recipe"
        )
    if has_image is not None:
        has_image = torch.as_tensor(has_image).bool()
        if has_image.shape != (rows,):
            raise ShapeError(f"has_image is {tuple(has_image.shape)}; wants one flag for each of {rows} rows")
    if not model.reads_images:
        return RowFeatures(has_image=has_image)
    if pixel_values is not None and any(one.shape[0] for one in by_tower(pixel_values, towers, "pixel_values").values()):
        vision_features = model.vision_features(pixel_values)
    if vision_features is None:
        if has_image is not None and has_image.any():
            raise ShapeError(f"has_image flags {int(has_image.sum())} of {rows} rows, but no images were given")
        return RowFeatures()
    given = by_tower(vision_features, towers, "vision_features")
    text_row = None
    if image_index is not None:
        if not isinstance(image_index, Tensor):
            image_index = padded_index(image_index)
        if image_index.ndim == 2:
            count = max(map(len, given.values()))
            if not torch.compiler.is_compiling() and (named := len(torch.unique(image_index[image_index >= 0]))) < count:
                raise ShapeError(
                    f"{count} images were given, and image_index names {named} of them; where a pipeline of transformers "
                    "puts several conversations together, set batch_size=1"
                )
            text_row, has_image, image_index = image_entries(image_index, rows)
        given = {name: tensor.index_select(0, image_index.to(tensor.device)) for name, tensor in given.items()}
    return RowFeatures(one_a_row(given, towers, rows if text_row is None else len(text_row), has_image), has_image, text_row)


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
