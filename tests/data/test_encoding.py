"""Tokens, label masks, padding and pictures of a training batch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import dehvf_kit
from dehvf_kit.data.encoding import IGNORED, Collator, EncodedSamples
from dehvf_kit.data.images import open_image
from dehvf_kit.data.samples import PromptConfig, Sample
from dehvf_kit.errors import DataError
from dehvf_kit.model.builder import build
from dehvf_kit.model.model import DehvfModel


@pytest.fixture(scope="module")
def model(world: Path) -> DehvfModel:
    return build(dehvf_kit.load_recipe(world / "tiny.yaml"))


PROMPT = PromptConfig(question="{question}", answer="{answer}")


def test_loss_is_on_answer_and_end_token_alone(model: DehvfModel) -> None:
    encoded = EncodedSamples([Sample("a", "what is it ?", "red")], model.processor, PROMPT, 16)
    input_ids, labels = encoded[0]["input_ids"], encoded[0]["labels"]
    assert model.processor.tokenizer.decode(input_ids) == "what is it ? red <eos>"
    assert labels == [IGNORED] * 4 + input_ids[4:]


def test_prompt_tokens_equal_those_of_generation(model: DehvfModel) -> None:
    encoded = EncodedSamples([Sample("a", "what is it ?", "red")], model.processor, PROMPT, 16)
    asked = model.processor(text="what is it ?")["input_ids"][0].tolist()
    assert encoded[0]["input_ids"][: len(asked)] == asked


def test_long_prompts_lose_their_start(model: DehvfModel) -> None:
    encoded = EncodedSamples([Sample("a", "what colour is it ?", "red")], model.processor, PROMPT, 4)
    assert model.processor.tokenizer.decode(encoded[0]["input_ids"]) == "it ? red <eos>"


def test_answer_without_room_is_refused(model: DehvfModel) -> None:
    with pytest.raises(DataError, match="sample 'a': its answer has 4 tokens, max_length is 4"):
        EncodedSamples([Sample("a", "what", "red red red")], model.processor, PROMPT, 4)


def test_batch_is_padded_right_and_names_the_loss_positions(model: DehvfModel, world: Path) -> None:
    samples = [Sample("a", "what colour is it ?", "red", world / "train0.png"), Sample("b", "what ?", "blue")]
    encoded = EncodedSamples(samples, model.processor, PROMPT, 16)
    batch = Collator(0)([encoded[0], encoded[1]])
    assert batch["attention_mask"].sum(1).tolist() == [7, 4]
    assert batch["input_ids"][1, 4:].tolist() == [0, 0, 0] and batch["labels"][1, 4:].tolist() == [IGNORED] * 3
    assert batch["logits_to_keep"].tolist() == [[4, 5], [1, 2]]
    assert batch["has_image"].tolist() == [True, False] and batch["pixel_values"].shape == (1, 3, 32, 32)
    assert torch.isfinite(model(**batch).loss)


def test_a_batch_is_what_its_samples_are_one_by_one(model: DehvfModel, world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    samples = [Sample(str(n), "what ?", "red", world / f"train{n % 2}.png") for n in range(5)]
    encoded = EncodedSamples([*samples, Sample("t", "what ?", "blue")], model.processor, PROMPT, 16)
    order = [5, 0, 3, 2, 1]
    for place, item in zip(order, encoded.__getitems__(order), strict=True):
        alone = encoded[place]
        assert item["id"] == alone["id"] and item.keys() == alone.keys()
        assert all(torch.equal(item[key], alone[key]) for key in ("pixel_values",) if key in alone)


def test_text_only_batch_has_no_picture_keys(model: DehvfModel) -> None:
    encoded = EncodedSamples([Sample("b", "what ?", "blue")], model.processor, PROMPT, 16)
    batch = Collator(0)([encoded[0]])
    assert not {"pixel_values", "vision_features", "has_image"} & set(batch)


@pytest.mark.parametrize(
    ("content", "message"), [(None, "there is no image"), (b"", "cannot be read"), (b"GIF89a", "cannot be read")]
)
def test_broken_pictures_are_named(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "x.png"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=f"sample 's1': .*{message}"):
        open_image(Sample("s1", "what ?", "red", path))
