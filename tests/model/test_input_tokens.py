"""Tokens put into the decoder's input: where they stand, what moves along, and what the decoder's embedding is made to say."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dehvf_kit.errors import ShapeError
from dehvf_kit.model.input_tokens import ExtendedInputs, InputTokens, bos_token, positions

BOS, PAD = 1, 0
TEXT = torch.tensor([[BOS, 11, 12, 13], [PAD, BOS, 21, 22], [31, 32, 33, PAD], [PAD, PAD, PAD, 41]])
MASK = torch.tensor([[1, 1, 1, 1], [0, 1, 1, 1], [1, 1, 1, 0], [0, 0, 0, 1]])
# Two tokens of a node, then two of another; rows 1 and 3 have some of them, row 2 none.
FIRST = InputTokens(torch.tensor([[[50.0], [51.0]]]), torch.tensor([[1, 1], [0, 1], [0, 0], [1, 0]]))
SECOND = InputTokens(
    torch.tensor([[[60.0], [61.0]], [[62.0], [63.0]], [[64.0], [65.0]], [[66.0], [67.0]]]),
    torch.tensor([[1, 1], [1, 0], [0, 0], [0, 0]]),
)
# Each row by hand: what stands in it from the left, its padding as 0.
ROWS = [[1, 50, 51, 60, 61, 11, 12, 13], [0, 0, 0, 1, 51, 62, 21, 22], [0, 0, 0, 0, 31, 32, 33, 0], [0, 0, 0, 0, 0, 0, 50, 41]]


class Numbers(nn.Module):
    """An embedding that says each id's own number."""

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return ids[..., None].float()


def extended() -> ExtendedInputs:
    return ExtendedInputs([FIRST, SECOND], TEXT, MASK, BOS)


def test_they_stand_after_bos_or_in_front_and_text_columns_agree() -> None:
    made = extended()
    assert made.count == 4 and made.length == 8
    whole = made.extend(Numbers()(TEXT))[..., 0] * made.attention_mask
    assert whole.tolist() == [[float(number) for number in row] for row in ROWS]
    assert (whole != 0).tolist() == made.attention_mask.bool().tolist()
    assert torch.equal(made.attention_mask[:, 4:], torch.tensor([[1, 1, 1, 1]] * 2 + [[1, 1, 1, 0], [0, 0, 1, 1]]))
    assert made.position_ids[1].tolist() == [0, 0, 0, 0, 1, 2, 3, 4]


def test_the_embedding_says_them_for_this_batch_alone() -> None:
    made, embedding, told = extended(), Numbers(), []
    plain = embedding(made.input_ids)
    with made.embedded(embedding, told.append):
        filled = embedding(made.input_ids)
        longer = embedding(torch.cat([made.input_ids, torch.full((4, 2), 9)], 1))
        beams = embedding(made.input_ids.repeat_interleave(3, 0))
        assert torch.equal(embedding(TEXT[:, :1]), TEXT[:, :1, None].float()), "a cached step is left alone"
        other = made.input_ids + 1
        assert torch.equal(embedding(other), other[..., None].float()), "so is another text"
    mask = made.attention_mask
    assert (filled[..., 0] * mask).tolist() == [[float(number) for number in row] for row in ROWS]
    assert torch.equal(longer[:, :8], filled) and (longer[:, 8:] == 9).all()
    assert torch.equal(beams, filled.repeat_interleave(3, 0))
    assert torch.equal(embedding(made.input_ids), plain), "the hook is gone"


def test_components_are_told_where_an_image_stands_in_the_passes_that_hold_it() -> None:
    """Its tokens' numbers, -1 for words and text; nothing in a cached step, and nothing afterwards."""
    block = InputTokens(torch.ones(1, 3, 1), torch.tensor([[1, 1, 1], [1, 0, 0], [0, 0, 0], [1, 1, 1]]), torch.tensor([-1, 0, 1]))
    made, embedding, told = ExtendedInputs([block], TEXT, MASK, BOS), Numbers(), []
    with made.embedded(embedding, told.append):
        embedding(made.input_ids.repeat_interleave(2, 0))
        embedding(TEXT[:, :1])
    places = told[1]
    assert told[0] is None and told[2:] == [None, None] and torch.equal(places[0], places[1])
    for row, ids in enumerate(made.input_ids):
        assert places[2 * row].shape == ids.shape
        assert places[2 * row][places[2 * row] >= 0].tolist() == [[0, 1], [], [], [0, 1]][row]
    assert ExtendedInputs([FIRST], TEXT, MASK, BOS).places is None


def test_labels_and_positions_move_along_and_nothing_inserted_is_learned() -> None:
    made = extended()
    labels = made.labels(TEXT)
    assert labels[:, :4].eq(-100).all()
    # Row 3 has no BOS, so that its first token follows inserted ones; row 2 has none inserted.
    assert labels[:, 4:].tolist() == [[-100, 11, 12, 13], [0, -100, 21, 22], [-100, 32, 33, 0], [0, 0, 0, 41]]
    decoder = type("Decoder", (), {"forward": lambda self, input_ids=None, position_ids=None: None})()
    given = {"labels": TEXT, "logits_to_keep": torch.tensor([1, 2]), "use_cache": False}
    arguments = made.arguments(decoder, None, given)
    assert arguments["logits_to_keep"].tolist() == [5, 6] and arguments["use_cache"] is False
    by_row = made.arguments(decoder, None, {**given, "logits_to_keep": torch.tensor([[1, 2], [0, -1]])})
    assert by_row["logits_to_keep"].tolist() == [[5, 6], [4, -1]]
    assert torch.equal(arguments["position_ids"], made.position_ids)
    blind = type("Blind", (), {"forward": lambda self, input_ids=None: None})()
    assert "position_ids" not in made.arguments(blind, None, given)
    with pytest.raises(ShapeError, match="position_ids"):
        made.arguments(decoder, None, {"position_ids": torch.arange(4)})


def test_tokens_may_stand_before_bos_and_embeddings_show_it_too() -> None:
    """BLIP-2's order; and a text given as embeddings has its tokens where its ids would have them."""
    made = ExtendedInputs([FIRST, SECOND], TEXT, MASK, None)
    assert made.input_ids[0].tolist()[4:] == TEXT[0].tolist() and made.labels(TEXT)[0, 4:].tolist() == TEXT[0].tolist()
    embedding = Numbers()
    shown = ExtendedInputs([FIRST, SECOND], embedding(TEXT), MASK, embedding(torch.tensor(BOS)))
    assert torch.equal(shown.attention_mask, extended().attention_mask)
    whole = shown.extend(embedding(TEXT))[..., 0] * shown.attention_mask
    assert whole.tolist() == [[float(number) for number in row] for row in ROWS]


def test_gradients_reach_what_is_inserted() -> None:
    tokens = torch.ones(1, 2, 3, requires_grad=True)
    made = ExtendedInputs([InputTokens(tokens)], TEXT, None, None)
    embedding = nn.Embedding(64, 3)
    with made.embedded(embedding, lambda places: None):
        embedding(made.input_ids).sum().backward()
    assert torch.equal(tokens.grad, torch.full((1, 2, 3), 4.0)), "each of four rows has each token once"


def test_other_shapes_are_refused() -> None:
    with pytest.raises(ShapeError, match="inserted tokens for 3 rows; the text has 4"):
        ExtendedInputs([InputTokens(torch.zeros(3, 2, 1))], TEXT, MASK, BOS)
    with pytest.raises(ShapeError, match=r"attention_mask is \(4, 3\); wants \[4, 4\]"):
        ExtendedInputs([FIRST], TEXT, MASK[:, :3], BOS)


def test_bos_is_what_the_tokenizer_begins_with() -> None:
    decoder = nn.Module()
    decoder.config = type("Config", (), {"bos_token_id": 7})()
    assert bos_token(None, decoder) == 7
    assert bos_token(lambda text: {"input_ids": [5]}, decoder) == 5
    assert bos_token(lambda text: {"input_ids": []}, decoder) is None


def test_positions_leave_padding_out() -> None:
    assert positions(MASK).tolist() == [[0, 1, 2, 3], [0, 0, 1, 2], [0, 1, 2, 2], [0, 0, 0, 0]]
