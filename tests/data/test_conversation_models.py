"""Rows of several turns and several images through tiny LLaMAs, Qwens and Gemmas with the chat templates their authors publish."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from data.chat_templates import chat_tokenizer
from data.small_sets import picture
from dehvf_kit_chat.answering import load_answerer
from dehvf_kit_chat.uploads import Upload
from helpers import LLAMA, randomise, tiny_recipe, tiny_vision
from transformers import AutoConfig, AutoModelForCausalLM, AutoProcessor, pipeline

import dehvf_kit
from dehvf_kit.data.encoding import Collator, EncodedSamples
from dehvf_kit.errors import ShapeError
from dehvf_kit.evaluation.answers import answer, asked
from dehvf_kit.model.builder import build
from dehvf_kit.model.features import FeatureStore
from dehvf_kit.model.model import DehvfModel

SIZES = {**LLAMA, "vocab_size": 512, "max_position_embeddings": 160}
DECODERS = {
    "llama": ("llama", {}),
    "qwen": ("qwen2", {"num_key_value_heads": 4}),
    "gemma": ("gemma2", {"head_dim": 8, "num_key_value_heads": 4}),
}
FURTHER = {
    "llama3.2": ("llama", {"num_key_value_heads": 2}),
    "qwen3": ("qwen3", {"head_dim": 8, "num_key_value_heads": 4}),
    "qwen3 marked": ("qwen3", {"head_dim": 8, "num_key_value_heads": 4}),
    "gemma3": ("gemma3_text", {"head_dim": 8, "num_key_value_heads": 4}),
}
ALL = [*DECODERS, *(pytest.param(family, marks=pytest.mark.nightly) for family in FURTHER)]


def made(family: str, folder: Path) -> DehvfModel:
    images = [str(picture(folder / f"{colour}.png", colour)) for colour in ("red", "blue")]
    ask, said = {"role": "user", "content": "what colour is it ?"}, {"role": "assistant", "content": "red"}
    places = [{"type": "image"}, {"type": "text", "text": "what colour ?"}, {"type": "image"}]
    rows = [
        {"id": "two turns, two images", "messages": [{"role": "user", "content": places}, said, ask, said], "images": images},
        {"id": "one of each", "messages": [ask, said], "images": images[:1]},
        {"id": "text alone", "messages": [ask, said, ask, said]},
    ]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    kind, settings = (DECODERS | FURTHER)[family]
    config = {"model_type": kind, **SIZES, **settings}
    recipe = tiny_recipe(decoder={"config": config}, data={"type": "messages", "train": str(folder / "rows.jsonl"), "test": ""})
    torch.manual_seed(0)
    decoder = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config)).eval()
    model = build(recipe, decoder=decoder, vision=tiny_vision(), tokenizer=chat_tokenizer(family))
    randomise(model.nodes)
    return model


@pytest.mark.parametrize("family", ALL)
def test_conversations_with_images_train_and_answer_together_as_alone(family: str, tmp_path: Path) -> None:
    """Loss of a mixed batch is the mean over its learned tokens; logits and answers are those of one row at a time.

    Worst difference measured: 3.6e-7 of a loss of 4.5.
    """
    model = made(family, tmp_path)
    samples = model.recipe.data.samples("train")
    assert [len(one.images) for one in samples] == [2, 1, 0] and [len(one.messages) for one in samples] == [3, 0, 3]
    encoded = EncodedSamples(samples, model.processor, model.recipe.data.prompt, 128)
    collate, rows = Collator(0), range(len(samples))
    together = model(**collate([encoded[row] for row in rows])).loss
    counts = [sum(label != -100 for label in encoded[row]["labels"]) for row in rows]
    alone = [model(**collate([encoded[row]])).loss.item() * count for row, count in zip(rows, counts, strict=True)]
    assert abs(together.item() - sum(alone) / sum(counts)) < 1e-5
    together.backward()
    assert all(parameter.grad is not None for parameter in model.trainable_parameters())
    said = [one.prediction for one in answer(model, samples, 3, max_new_tokens=3)]
    assert said == [one.prediction for sample in samples for one in answer(model, [sample], 1, max_new_tokens=3)]
    inputs, _ = asked(model, samples[:1])
    assert "red" in model.processor.tokenizer.decode(inputs["input_ids"][0]), "the earlier answer is in the prompt"


def kept(family: str, folder: Path) -> dict[str, Any]:
    """The recipe of `made` as data, its base models in folders; nothing is trained inside the encoder, so features can be kept."""
    model = made(family, folder)
    model.decoder.save_pretrained(folder / "decoder")
    model.processor.tokenizer.save_pretrained(folder / "decoder")
    tiny_vision().save_pretrained(folder / "vision")
    raw = {name: section for name, section in model.recipe.resolved().items() if section is not None}
    raw["decoder"], raw["vision"] = ({"model": str(folder / part)} for part in ("decoder", "vision"))
    raw["vision"]["image"] = {"size": 32}
    del raw["graph"]["vision_adapter"]
    return raw


@pytest.mark.nightly
@pytest.mark.parametrize("family", [*DECODERS, *FURTHER])
def test_conversations_are_trained_scored_and_chatted_about(family: str, tmp_path: Path) -> None:
    """`train` lowers the loss; `evaluate` and the chat page ask what training rendered, and answer alike."""
    raw = kept(family, tmp_path)
    raw["data"]["test"] = raw["data"]["train"]
    raw["training"] = {"epochs": 12, "batch_size": 3, "base_learning_rate": 0.3, "max_length": 128, "cache_features": True}
    raw["generation"] = {"max_new_tokens": 4}
    losses = [row["loss"] for row in dehvf_kit.train(raw, tmp_path / "run").log if "loss" in row]
    assert losses[-1] < losses[0]
    found = dehvf_kit.evaluate(tmp_path / "run")
    assert [one.answer for one in found.predictions] == ["red"] * 3 and found.scores.headline is not None
    chat = load_answerer(tmp_path / "run")
    first = chat.model.recipe.data.samples("test")[0]
    images = [Upload(image.name, image.read_bytes()) for image in first.images]
    earlier = [(first.messages[0].content, first.messages[1].content)]
    *_, last = chat.answer(first.messages[2].content, images, 0.0, earlier)
    assert chat.converses and last.answer == found.predictions[0].prediction and len(last.depths) == 2


@pytest.mark.nightly
@pytest.mark.parametrize("family", [*DECODERS, *FURTHER])
def test_conversations_with_images_are_cached_and_go_through_the_pipeline(family: str, tmp_path: Path) -> None:
    """Answers from kept features, and of transformers' own pipeline on the saved adapter, are those of the model that was saved."""
    saved = build(kept(family, tmp_path))
    samples = saved.recipe.data.samples("train")
    randomise(saved.nodes)
    saved.save_pretrained(tmp_path / "adapter")
    wanted = [one.prediction for one in answer(saved, samples, 1, max_new_tokens=3)]
    store = FeatureStore(saved)
    assert store.fill(samples) == 2
    assert [one.prediction for one in answer(saved, samples, 3, features=store, max_new_tokens=3)] == wanted
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    chats = [[dict(turn) for turn in row["messages"][:-1]] for row in rows]
    first, text = chats[0][0]["content"], chats[1][0]["content"]
    images = [{"type": "image", "image": image} for image in rows[0]["images"]]
    chats[0][0]["content"] = [images[0], first[1], images[1]]
    chats[1][0]["content"] = [images[0], {"type": "text", "text": text}]
    processor = AutoProcessor.from_pretrained(tmp_path / "adapter")
    ask = pipeline("image-text-to-text", model=str(tmp_path / "adapter"), processor=processor)
    found = ask(text=chats, max_new_tokens=3, return_full_text=False)
    assert [one[0]["generated_text"].strip() for one in found] == wanted
    others = [{"type": "image", "image": str(picture(tmp_path / f"other{number}.png", "green"))} for number in range(2)]
    other = [{**chats[0][0], "content": [others[0], first[1], others[1]]}, *chats[0][1:]]
    with pytest.raises(ShapeError, match="4 images were given, and image_index names 2 of them.*batch_size=1"):
        ask(text=[other, chats[0]], batch_size=2, max_new_tokens=3)  # transformers concatenates both, each numbered from 0
