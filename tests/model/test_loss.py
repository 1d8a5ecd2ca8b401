"""The loss of answers alone: each row's own columns reach the output head, and the loss is the one of whole logits."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn

from dehvf_kit.data.encoding import Collator
from dehvf_kit.errors import ShapeError
from dehvf_kit.model.loss import answer_loss, decoder_loss, following_labels
from dehvf_kit.testing import tiny_models
from tests.helpers import VOCAB, pixels, tiny_model, tokens

KEPT = torch.tensor([[2, 3, -1], [4, 5, 6], [6, -1, -1]])
FAMILIES = ["llama", "gpt2", "gemma3_text", "mixtral", "cohere", "mamba"]
NOT_AT_THE_HEAD = {"musicgen", "musicgen_melody", "prophetnet"}  # several codebooks or streams: logits are picked after the head


def answers_of(ids: Tensor) -> Tensor:
    """Labels whose columns are `KEPT`."""
    labels = torch.full_like(ids, -100)
    for row, columns in enumerate(KEPT):
        own = columns[columns >= 0] + 1
        labels[row, own] = ids[row, own]
    return labels


def widths_at_the_head(decoder: nn.Module, seen: list[int]) -> Any:
    return decoder.get_output_embeddings().register_forward_hook(lambda _, given, out: seen.append(given[0].shape[1]))


def holds(model_type: str) -> None:
    decoder = tiny_models.tiny_decoder(model_type)
    ids = torch.randint(3, 30, (3, 8), generator=torch.Generator().manual_seed(0))
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": answers_of(ids)}
    with torch.no_grad():
        whole = decoder_loss(decoder, given)
        seen: list[int] = []
        handle = widths_at_the_head(decoder, seen) if model_type not in NOT_AT_THE_HEAD else None
        part = answer_loss(decoder, {**given, "logits_to_keep": KEPT})
    if handle is not None:
        handle.remove()
        assert seen == [3], f"{model_type}: the head read {seen} columns"
    # Worst of 186 families: 5e-7; the head multiplies fewer rows at a time.
    torch.testing.assert_close(part.loss, whole.loss, rtol=1e-6, atol=2e-6)
    wanted = whole.logits.take_along_dim(KEPT.clamp(min=0)[..., None], 1)
    torch.testing.assert_close(part.logits, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("model_type", [*FAMILIES, "prophetnet"])
def test_a_family_reads_each_rows_own_columns(model_type: str) -> None:
    holds(model_type)


@pytest.mark.nightly
def test_every_family_reads_each_rows_own_columns() -> None:
    read = 0
    for model_type in tiny_models.decoder_types():
        try:
            tiny_models.tiny_decoder(model_type)
        except (ValueError, StrictDataclassError):  # transformers itself makes none of this configuration's defaults
            continue
        holds(model_type)
        read += 1
    assert read > 180


def test_gradients_are_those_of_whole_logits() -> None:
    ids, grads = tokens(3, 8), []
    for extra in ({}, {"logits_to_keep": KEPT}):
        model = tiny_model().train()
        model(input_ids=ids, pixel_values=pixels(), labels=answers_of(ids), **extra).loss.backward()
        grads.append([parameter.grad for parameter in model.trainable_parameters()])
    for whole, part in zip(*grads, strict=True):
        torch.testing.assert_close(part, whole, rtol=1e-4, atol=1e-7)


def test_labels_of_missing_columns_are_ignored() -> None:
    labels = answers_of(tokens(3, 8))
    assert torch.equal(following_labels(labels, KEPT) == -100, KEPT < 0)
    assert torch.equal(following_labels(labels, torch.tensor([2, 5])), labels[:, [3, 6]])


def test_a_batch_without_answers_has_no_logits() -> None:
    batch = Collator(0)([{"input_ids": [3, 4], "labels": [-100, -100]}])
    output = tiny_model()(**batch)
    assert output.logits.shape == (1, 0, VOCAB) and output.loss.isnan()


def test_columns_by_row_need_no_labels_and_have_a_row_each() -> None:
    model, ids = tiny_model().eval(), tokens(3, 8)
    whole = model(input_ids=ids, pixel_values=pixels()).logits
    part = model(input_ids=ids, pixel_values=pixels(), logits_to_keep=KEPT)
    assert part.loss is None
    torch.testing.assert_close(part.logits, whole.take_along_dim(KEPT.clamp(min=0)[..., None], 1), rtol=1e-5, atol=1e-6)
    with pytest.raises(ShapeError, match=re.escape("logits_to_keep is (2, 3); wants [position] or [3, position]")):
        model(input_ids=ids, pixel_values=pixels(), logits_to_keep=KEPT[:2])


@pytest.mark.parametrize("model_type", ["llama", "prophetnet"])
def test_all_columns_come_in_the_order_asked_for(model_type: str) -> None:
    decoder, ids = tiny_models.tiny_decoder(model_type), tokens(2, 8) % 30
    backwards = torch.arange(7, -1, -1)
    with torch.no_grad():
        whole = decoder(input_ids=ids).logits
        part = answer_loss(decoder, {"input_ids": ids, "logits_to_keep": backwards})
    torch.testing.assert_close(part.logits, whole[:, backwards], rtol=1e-5, atol=1e-6)


def test_the_head_is_left_as_it_was_after_an_error() -> None:
    decoder, ids = tiny_model().decoder, tokens(3, 8)
    head = decoder.get_output_embeddings()
    with pytest.raises(IndexError):
        answer_loss(decoder, {"input_ids": ids + VOCAB, "labels": answers_of(ids), "logits_to_keep": KEPT})
    assert not head._forward_pre_hooks


def test_it_compiles_without_a_graph_break() -> None:
    decoder = tiny_models.tiny_decoder("llama")
    ids = torch.randint(3, 30, (3, 8), generator=torch.Generator().manual_seed(0))
    given = {"input_ids": ids, "labels": answers_of(ids), "logits_to_keep": KEPT}
    torch.compiler.reset()
    try:
        compiled = torch.compile(answer_loss, backend="eager", fullgraph=True)(decoder, given)
    finally:
        torch.compiler.reset()
    assert torch.equal(compiled.loss, answer_loss(decoder, given).loss)
