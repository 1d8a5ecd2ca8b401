"""Questions and pictures to model inputs, with the prompt the adapter was trained on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import tiny_decoder, tiny_recipe, tiny_vision, worst
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast

import dehvf_kit
from dehvf_kit.backbones.vision.config import MEAN_STD, ImageConfig
from dehvf_kit.data.processing import DehvfProcessor, SeveralImageProcessor, build_image_processor
from dehvf_kit.errors import DataError

WORDS = ["<pad>", "<s>", "</s>", "<unk>", "what", "colour", "is", "it", "?", "Question", "Answer", ":", "user", "assistant"]
CHAT = "{% for message in messages %}user {{ message['content'] }} {% endfor %}{% if add_generation_prompt %}assistant{% endif %}"
PROMPT = {"question": "Question: {question}\nAnswer:", "answer": " {answer}", "chat": False}


def tokenizer(chat: bool = False) -> PreTrainedTokenizerFast:
    core = Tokenizer(WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="<unk>"))
    core.pre_tokenizer = Whitespace()
    made = PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    if chat:
        made.chat_template = CHAT
    return made


def picture(size: tuple[int, int] = (40, 20), mode: str = "RGB") -> Image.Image:
    values = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(values).convert(mode)


def processor(prompt: dict | None = PROMPT, chat: bool = False) -> DehvfProcessor:
    made = tokenizer(chat)
    made.padding_side, made.pad_token = "left", "<pad>"
    return DehvfProcessor(ImageConfig(size=8).processor(), made, prompt=prompt)


def model(**data):
    recipe = tiny_recipe(data={"type": "jsonl", **data})
    return dehvf_kit.build(recipe, decoder=tiny_decoder(), vision=tiny_vision(), tokenizer=tokenizer())


def test_a_built_model_brings_its_processor():
    built = model(prompt={"question": "Question: {question} Answer:"})
    inputs = built.processor(images=picture(), text="what colour is it ?")
    assert set(inputs) == {"input_ids", "attention_mask", "pixel_values"}
    assert inputs["pixel_values"].shape == (1, 3, 32, 32)
    words = [WORDS[index] for index in inputs["input_ids"][0].tolist()]
    assert words == ["Question", ":", "what", "colour", "is", "it", "?", "Answer", ":"]
    written = built.generate(**inputs, max_new_tokens=3, min_new_tokens=3)
    assert built.processor.batch_decode(written, skip_special_tokens=True)[0].startswith("Question : what")


def test_padding_is_on_the_left_with_a_token_of_its_own_or_the_end():
    inputs = model().processor(text=["what ?", "what colour is it ?"])
    assert inputs["attention_mask"].tolist()[0][:3] == [0, 0, 0] and inputs["attention_mask"][1].all()
    assert inputs["input_ids"][0, 0] == WORDS.index("</s>"), "LLaMA has no padding token"


def test_without_a_tokenizer_there_is_no_processor():
    assert dehvf_kit.build(tiny_recipe(), decoder=tiny_decoder(), vision=tiny_vision()).processor is None


PROMPTS = {
    "put into the prompt": (PROMPT, False, "what ?", "Question: what ?\nAnswer:"),
    "left alone when it stands in it": (PROMPT, False, "Question: what ?\nAnswer:", "Question: what ?\nAnswer:"),
    "half of the prompt is no prompt": (PROMPT, False, "Question: what ?", "Question: Question: what ?\nAnswer:"),
    "an empty prompt": ({**PROMPT, "question": "{question}"}, False, "what ?", "what ?"),
    "no prompt at all": (None, False, "what ?", "what ?"),
    "chat": ({**PROMPT, "question": "{question}", "chat": True}, True, "what ?", "user what ? assistant"),
    "chat around a prompt": ({**PROMPT, "chat": True}, True, "what ?", "user Question: what ?\nAnswer: assistant"),
    "a chat already": ({**PROMPT, "chat": True}, True, "user what ? assistant", "user what ? assistant"),
}


@pytest.mark.parametrize("case", PROMPTS)
def test_prompt(case):
    prompt, chat, question, expected = PROMPTS[case]
    made = processor(prompt, chat)
    assert made.with_prompt(question) == expected
    ids = made(text=question)["input_ids"]
    assert torch.equal(ids, made(text=expected, apply_prompt=False)["input_ids"])


CONVERSATION = [
    {"role": "user", "content": [{"type": "image", "image": picture()}, {"type": "text", "text": "it ?"}]},
    {"role": "assistant", "content": "it"},
    {"role": "user", "content": "what colour ?"},
]


def test_a_conversation_in_a_plain_prompt_is_a_line_for_each_message():
    made = processor()
    text = "Question: it ?\nit\nwhat colour ?\nAnswer:"
    assert made.apply_chat_template(CONVERSATION) == text
    assert made.apply_chat_template([CONVERSATION, CONVERSATION]) == [text] * 2
    inputs = made.apply_chat_template(CONVERSATION, tokenize=True)
    assert inputs["pixel_values"].shape == (1, 3, 8, 8)
    assert torch.equal(inputs["input_ids"], made(text="it ?\nit\nwhat colour ?")["input_ids"])
    assert "pixel_values" not in made.apply_chat_template(CONVERSATION[1:], tokenize=True)


NO_CONVERSATION = {
    "empty": ([], "a conversation is a list of messages with `role` and `content`"),
    "a text": ("what ?", "a conversation is a list of messages with `role` and `content`"),
    "no role": ([{"content": "what ?"}], "message 0: its role must be"),
    "no content": ([{"role": "user"}], r"message 0 \(user\): is empty"),
    "an image without one": (
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "it ?"}]}],
        "there is no image",
    ),
    "an image alone": ([{"role": "user", "content": [{"type": "image", "image": picture()}]}], "no text beside <image>"),
    "a number": ([3], "message 0: its role must be"),
    "a video": ([{"role": "user", "content": [{"type": "video", "video": "a.mp4"}]}], "parts of the type text or image"),
}


@pytest.mark.parametrize("case", NO_CONVERSATION)
def test_a_conversation_that_is_none(case):
    conversation, message = NO_CONVERSATION[case]
    with pytest.raises(DataError, match=message):
        processor().apply_chat_template(conversation)


def test_a_picture_that_cannot_be_read(tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    for image in (str(tmp_path / "none.png"), str(tmp_path / "text.png"), 3):
        with pytest.raises(DataError, match="(picture|image) .* cannot be read: "):
            processor()(images=image, text="what ?")


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK"])
def test_pictures_of_every_mode_become_rgb(mode):
    made = processor()
    assert made(images=picture(mode=mode))["pixel_values"].shape == (1, 3, 8, 8)
    assert made(images=[picture(), [picture(mode=mode)]])["pixel_values"].shape == (2, 3, 8, 8)


@pytest.mark.parametrize("name", MEAN_STD)
def test_pixels_are_resized_scaled_and_normalised(name):
    """Against PIL's bicubic resize and the formula. Worst error measured: 0."""
    image = picture((40, 20))
    found = ImageConfig(size=8, normalisation=name).processor()(image, return_tensors="pt")["pixel_values"][0]
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in MEAN_STD[name])
    small = torch.from_numpy(np.array(image.resize((8, 8), Image.Resampling.BICUBIC))).permute(2, 0, 1) / 255
    assert worst(found, ((small - mean) / std).float()) < 1e-5


SIZES = {
    "squash": {"size": 12},
    "crop": {"size": 12, "resize": "crop", "normalisation": "clip"},
    "crop from a larger side": {"size": 12, "resize": "crop", "resize_to": 17, "resample": "bilinear"},
    "squash, then crop": {"size": 12, "resize_to": 15, "resample": "lanczos"},
}


@pytest.mark.parametrize("case", SIZES)
def test_images_resized_as_images_have_the_values_of_transformers_arrays_bit_for_bit(case, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    config = ImageConfig(**SIZES[case])
    images = [picture(size) for size in ((40, 20), (13, 31), (12, 12), (3, 5), (101, 100))]
    ours = build_image_processor({"a": config})(images, return_tensors="pt")["pixel_values"]
    assert torch.equal(ours, config.processor()(images, return_tensors="pt")["pixel_values"])
    both = build_image_processor({"a": config, "b": config})(images)["pixel_values"]
    assert torch.equal(both["a"], ours) and torch.equal(both["b"], ours)


def test_crop_keeps_the_middle():
    image = Image.new("RGB", (30, 10), "black")
    image.paste("white", (10, 0, 20, 10))
    crop = ImageConfig(size=10, resize="crop", normalisation="half").processor()(image, return_tensors="pt")["pixel_values"]
    squash = ImageConfig(size=10, normalisation="half").processor()(image, return_tensors="pt")["pixel_values"]
    assert (crop == 1).all() and not (squash == 1).all()


def test_several_encoders_get_a_picture_each(tmp_path):
    made = build_image_processor({"clip": ImageConfig(size=8), "dino": ImageConfig(size=6, normalisation="half")})
    assert isinstance(made, SeveralImageProcessor)
    pixels = made([picture(), picture()])["pixel_values"]
    assert {name: tuple(tensor.shape) for name, tensor in pixels.items()} == {"clip": (2, 3, 8, 8), "dino": (2, 3, 6, 6)}
    made.save_pretrained(tmp_path)
    again = SeveralImageProcessor.from_pretrained(tmp_path)([picture()])["pixel_values"]
    assert all(torch.equal(again[name], pixels[name][:1]) for name in pixels)


def test_the_processor_travels_with_the_adapter(tmp_path: Path):
    built = model(prompt={"question": "{question} Answer:"})
    expected = built.processor(images=picture(), text="what ?")
    built.save_pretrained(tmp_path)
    loaded = dehvf_kit.load(tmp_path, decoder=tiny_decoder(), vision=tiny_vision())
    found = loaded.processor(images=picture(), text="what ?")
    assert set(found) == set(expected) and all(torch.equal(found[name], expected[name]) for name in expected)
    alone = DehvfProcessor.from_pretrained(tmp_path)(images=picture(), text="what ?")
    assert all(torch.equal(alone[name], expected[name]) for name in expected)


def test_images_of_each_text_are_none_one_or_several():
    made = processor()
    shots = [picture(), picture((20, 40))]
    mixed = made(images=[shots[0], None], text=["what ?", "it ?"])
    assert mixed["has_image"].tolist() == [True, False] and mixed["pixel_values"].shape[0] == 1
    several = made(images=[shots, None, shots[:1]], text=["what ?", "it ?", "is it ?"])
    assert several["image_index"].tolist() == [[0, 1], [-1, -1], [2, -1]] and several["pixel_values"].shape[0] == 3
    lone = made(images=shots, text="what ?")
    assert lone["image_index"].tolist() == [[0, 1]]
    assert not {"image_index", "has_image"} & set(made(images=shots, text=["what ?", "it ?"]))
    batch = torch.stack([torch.from_numpy(np.array(one.resize((8, 8)))).permute(2, 0, 1) for one in shots])
    assert torch.equal(made(images=batch, text=["what ?", "it ?"])["pixel_values"], made(images=list(batch))["pixel_values"])
    assert "pixel_values" not in made(images=[None], text="what ?")
    with pytest.raises(DataError, match="images has 2 entries for 3 texts; give an image, a list of images, or None for each"):
        made(images=[shots, None], text=["what ?", "it ?", "?"])


def test_several_images_in_a_conversation_reach_the_model():
    built = model()
    parts = [{"type": "image", "image": picture()}, {"type": "text", "text": "or"}, {"type": "image", "image": picture((20, 40))}]
    chat = [
        {"role": "user", "content": parts},
        {"role": "assistant", "content": "it"},
        {"role": "user", "content": "what colour ?"},
    ]
    inputs = built.processor.apply_chat_template(chat, tokenize=True)
    assert inputs["image_index"].tolist() == [[0, 1]] and inputs["pixel_values"].shape[0] == 2
    assert built.processor.apply_chat_template(chat) == "Question: <image>\nor\n<image>\nit\nwhat colour ?\nAnswer:"
    assert built.generate(**inputs, max_new_tokens=2, min_new_tokens=2).shape[1] == inputs["input_ids"].shape[1] + 2
