"""Rows of several turns and several images through a tiny LLaMA, Qwen and Gemma with their chat templates."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from data.chat_templates import chat_tokenizer
from data.small_sets import picture
from helpers import LLAMA, randomise, tiny_recipe, tiny_vision
from transformers import AutoConfig, AutoModelForCausalLM

from dehvf_kit.data.encoding import Collator, EncodedSamples
from dehvf_kit.evaluation.answers import answer, asked
from dehvf_kit.model.builder import build
from dehvf_kit.model.model import DehvfModel

DECODERS = {
    "llama": ("llama", {}),
    "qwen": ("qwen2", {"num_key_value_heads": 4}),
    "gemma": ("gemma", {"head_dim": 8, "num_key_value_heads": 4}),
}


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
    kind, settings = DECODERS[family]
    config = {"model_type": kind, **LLAMA, **settings}
    recipe = tiny_recipe(decoder={"config": config}, data={"type": "messages", "train": str(folder / "rows.jsonl"), "test": ""})
    torch.manual_seed(0)
    decoder = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config)).eval()
    model = build(recipe, decoder=decoder, vision=tiny_vision(), tokenizer=chat_tokenizer(family))
    randomise(model.nodes)
    return model


@pytest.mark.parametrize("family", DECODERS)
def test_conversations_with_images_train_and_answer_together_as_alone(family: str, tmp_path: Path) -> None:
    """Loss of a mixed batch is the mean over its learned tokens; logits and answers are those of one row at a time.

    Worst difference measured: 3.6e-7 of a loss of 4.5.
    """
    model = made(family, tmp_path)
    samples = model.recipe.data.samples("train")
    assert [len(one.images) for one in samples] == [2, 1, 0] and [len(one.messages) for one in samples] == [3, 0, 3]
    encoded = EncodedSamples(samples, model.processor, model.recipe.data.prompt, 64)
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
