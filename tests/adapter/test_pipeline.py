"""transformers' own pipeline on a saved adapter: batched prompts of different length answer as `load` does one by one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data.small_sets import COLOURS, picture
from evaluation.benchmarks import recipe, towers
from PIL import Image
from transformers import AutoProcessor, pipeline

import dehvf_kit
from dehvf_kit.data.samples import Sample
from dehvf_kit.errors import ImageError
from dehvf_kit.evaluation.answers import answer

QUESTIONS = ["red", "Look closely . What colour is the square in this picture ?", "Is it green ? or blue", "What colour is it ?"]
LENGTH = 5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter whose answers depend on question and image."""
    folder = tmp_path_factory.mktemp("pipeline")
    torch.manual_seed(0)
    model = dehvf_kit.build(dehvf_kit.load_recipe(recipe(towers(folder), "{type: jsonl}")))
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder / "adapter")
    for colour in COLOURS:
        picture(folder / f"{colour}.png", colour)
    return folder


def one_by_one(folder: Path, images: list[Path | None]) -> list[str]:
    model = dehvf_kit.load(folder / "adapter")
    samples = [Sample(str(n), question, "", image) for n, (question, image) in enumerate(zip(QUESTIONS, images, strict=True))]
    return [answer(model, [sample], max_new_tokens=LENGTH)[0].prediction for sample in samples]


def chat(question: str, *images: Path | None) -> list[dict[str, Any]]:
    parts = [{"type": "image", "image": str(image)} for image in images if image is not None]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": question}]}]


def test_batches_of_the_pipeline_answer_as_load_does_one_by_one(folder: Path) -> None:
    images = [folder / f"{colour}.png" for colour in ("red", "green", "blue", "red")]
    wanted = one_by_one(folder, images)
    assert len(set(wanted)) == len(wanted) and all(wanted)
    ask = pipeline("image-text-to-text", model=str(folder / "adapter"))
    chats = [chat(question, image) for question, image in zip(QUESTIONS, images, strict=True)]
    for batch_size in (1, 2, 4):
        found = ask(text=chats, batch_size=batch_size, max_new_tokens=LENGTH, return_full_text=False)
        assert [one[0]["generated_text"].strip() for one in found] == wanted, batch_size
    found = ask(images=[str(image) for image in images], text=QUESTIONS, batch_size=2, max_new_tokens=LENGTH)
    assert [one["generated_text"] for one in found] == [
        f"{question} {said}" for question, said in zip(QUESTIONS, wanted, strict=True)
    ]


def test_conversations_with_and_without_an_image_share_a_batch(folder: Path) -> None:
    images = [folder / "red.png", None, None, folder / "blue.png"]
    model, processor = dehvf_kit.load(folder / "adapter"), AutoProcessor.from_pretrained(folder / "adapter")
    chats = [chat(question, image) for question, image in zip(QUESTIONS, images, strict=True)]
    inputs = processor.apply_chat_template(chats, tokenize=True)
    tokens = model.generate(**inputs, max_new_tokens=LENGTH)[:, inputs["input_ids"].shape[1] :]
    said = processor.batch_decode(tokens, skip_special_tokens=True)
    assert [one.strip() for one in said] == one_by_one(folder, images)
    two = chat(QUESTIONS[0], folder / "red.png", folder / "blue.png")
    inputs = processor.apply_chat_template([chats[1], two], tokenize=True)  # as many images as conversations
    assert inputs["image_index"].tolist() == [[-1, -1], [0, 1]]
    together = model.generate(**inputs, max_new_tokens=LENGTH)[1]
    alone = processor.apply_chat_template(two, tokenize=True)
    assert torch.equal(together[-LENGTH:], model.generate(**alone, max_new_tokens=LENGTH)[0, -LENGTH:])


def test_the_pipeline_reads_images_as_files_are_read(folder: Path) -> None:
    Image.fromarray(np.arange(0, 2**16, 16, dtype=np.uint16).reshape(64, 64)).save(folder / "grey16.png")
    (folder / "image.eps").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n")
    ask = pipeline("image-text-to-text", model=str(folder / "adapter"))
    wanted = ask.processor(images=folder / "grey16.png", text=QUESTIONS[0])["pixel_values"]
    for image in (str(folder / "grey16.png"), Image.open(folder / "grey16.png")):
        found = ask.preprocess({"images": image, "text": QUESTIONS[0]})
        assert torch.equal(found["pixel_values"], wanted)
    with pytest.raises(ImageError, match="it is EPS, which is not read"):
        ask(images=str(folder / "image.eps"), text=QUESTIONS[0])
