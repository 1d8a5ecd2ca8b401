"""Questions and images -> model inputs, as a transformers processor that knows the prompt its adapter was trained on."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from transformers import BatchFeature, ProcessorMixin
from transformers.image_processing_utils import BaseImageProcessor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from dehvf_kit.backbones.decoder import prepare_tokenizer
from dehvf_kit.backbones.vision.config import ImageConfig
from dehvf_kit.data.conversations import in_template, messages_of, plain_text
from dehvf_kit.data.images import in_threads, read_any
from dehvf_kit.data.samples import Message, PromptConfig, marked
from dehvf_kit.data.tokens import format_question, tokenise
from dehvf_kit.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image


class SeveralImageProcessor(BaseImageProcessor):
    """One image prepared for several encoders: `pixel_values` is a mapping with one tensor per encoder."""

    model_input_names = ["pixel_values"]

    def __init__(self, encoders: Mapping[str, Mapping[str, Any]] | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.encoders = {name: dict(settings) for name, settings in (encoders or {}).items()}

    def preprocess(self, images: Any, **kwargs: Any) -> BatchFeature:
        """Images -> {"pixel_values": {encoder: [image, 3, height, width]}}."""
        given = read_images(images)
        pixels = {
            name: _as_trained(ImageConfig(**settings).processor())(given, return_tensors="pt")["pixel_values"]
            for name, settings in self.encoders.items()
        }
        return BatchFeature({"pixel_values": pixels})


class CheckedImageProcessor(CLIPImageProcessorPil):
    """The image processor of one encoder, whose images are read by `read_any`: the same limits and conversion as for files.

    It is saved, and compared, under the name of its parent.
    """

    def preprocess(self, images: Any, *args: Any, **kwargs: Any) -> BatchFeature:
        """Images -> {"pixel_values": [image, 3, height, width]}. Raises: ImageError for an image that cannot be read."""
        if args or not (self.do_resize and self.do_rescale and self.do_normalize) or kwargs.keys() - {"return_tensors"}:
            return super().preprocess(read_images(images), *args, **kwargs)
        ramp = np.broadcast_to(np.arange(256, dtype=np.uint8), (3, 1, 256))
        values = self.normalize(self.rescale(ramp, self.rescale_factor), self.image_mean, self.image_std)[:, 0]
        pixels = in_threads(lambda image: self._pixels(image, values), _each(images))
        return BatchFeature({"pixel_values": pixels}, tensor_type=kwargs.get("return_tensors"))

    def _pixels(self, image: Any, values: np.ndarray) -> np.ndarray:
        """What the parent makes of an image, without its way through arrays; values: of each colour's 256 steps."""
        found, edge = read_any(image), self.size["shortest_edge"]
        size = [int(edge * side / min(found.size)) for side in found.size] if edge else (self.size["width"], self.size["height"])
        small = np.asarray(found.resize(size, self.resample))
        if self.do_center_crop:
            height, width = self.crop_size["height"], self.crop_size["width"]
            top, left = (small.shape[0] - height) // 2, (small.shape[1] - width) // 2
            small = small[top : top + height, left : left + width]
        pixels = np.empty((3, *small.shape[:2]), values.dtype)
        for colour, plane in enumerate(pixels):
            np.take(values[colour], small[:, :, colour], out=plane, mode="clip")  # checks no bounds: a colour has 256 steps
        return pixels

    def to_dict(self) -> dict[str, Any]:
        return {**super().to_dict(), "image_processor_type": "CLIPImageProcessor"}


def build_image_processor(images: Mapping[str, ImageConfig]) -> BaseImageProcessor:
    """The image processor of a recipe's encoders."""
    if len(images) == 1:
        return _as_trained(next(iter(images.values())).processor())
    return SeveralImageProcessor({name: config.model_dump() for name, config in images.items()})


class DehvfProcessor(ProcessorMixin):
    """Tokenizer and image processor in one, with the adapter's prompt.

    `processor(images=..., text="what colour is the shape?")` puts the question into the prompt the adapter was trained on
    unless it is in it already, and pads on the left, as generation needs. `apply_prompt=False` leaves texts alone.
    """

    attributes = ["image_processor", "tokenizer"]

    def __init__(
        self, image_processor: Any = None, tokenizer: Any = None, prompt: Mapping[str, Any] | None = None, **kwargs: Any
    ) -> None:
        self.prompt = dict(prompt) if prompt else None
        if tokenizer is not None:
            prepare_tokenizer(tokenizer)
        super().__init__(_as_trained(image_processor), tokenizer, **kwargs)
        if getattr(self, "chat_template", None) is None:
            self.chat_template = getattr(tokenizer, "chat_template", None)

    def __call__(
        self,
        images: Any = None,
        text: str | Sequence[str] | None = None,
        apply_prompt: bool = True,
        download: bool = False,
        **kwargs: Any,
    ) -> BatchFeature:
        """Images and texts -> input_ids, attention_mask, pixel_values; has_image or image_index where not each text has one image.

        Args:
            images: one a text, in a list: paths, PIL images, bytes of image files, arrays, tensors, data URIs, URLs (see
                `read_any`); a text may also have a list of several, or None. All of a flat list belong to a lone text.
            text: the questions.
            apply_prompt: put them into the adapter's prompt.
            download: allow fetching images that are URLs.
            kwargs: passed to the tokenizer.

        Raises:
            ImageError: for an image that cannot be read, or a URL without `download`.
            DataError: for images of each text that are not as many as the texts.
        """
        kwargs.setdefault("return_tensors", "pt")
        data: dict[str, Any] = {}
        if text is not None:
            texts = [text] if isinstance(text, str) else list(text)
            if apply_prompt:
                texts = [self.with_prompt(one) for one in texts]
            kwargs.setdefault("padding", len(texts) > 1)
            arguments = {key: value for key, value in kwargs.items() if key in _TEXT_ARGUMENTS}
            chat = self.prompt is not None and self.prompt.get("chat")
            data |= tokenise(self.tokenizer, texts, special=not chat, **arguments)
        found = read_images(images, download)
        if found:
            data |= self.image_processor(found, return_tensors="pt")
            counts = None if text is None else _by_text(images, len(texts))
            numbers = iter(range(len(found)))
            data |= {} if counts is None else image_places([[next(numbers) for _ in range(count)] for count in counts])[1]
        data.pop("token_type_ids", None)
        return BatchFeature(data)

    def with_prompt(self, asked: str | Sequence[Message]) -> str:
        """A question, or a conversation up to an answer, in the adapter's prompt; a text that is in it already is left alone."""
        prompt = PromptConfig(**self.prompt) if self.prompt else None
        if prompt is not None and prompt.chat and not isinstance(asked, str):
            return in_template(asked, prompt, self.tokenizer)
        question = asked if isinstance(asked, str) else plain_text(asked)
        return question if prompt is None else format_question(question, prompt, self.tokenizer)

    def apply_chat_template(self, conversation: Any, chat_template: str | None = None, **kwargs: Any) -> Any:
        """A conversation with images -> model inputs (`tokenize=True`) or text, as `with_prompt` renders it.

        An adapter trained on a plain prompt gets the conversation's text in that prompt, not in a chat template it never saw.

        Args:
            conversation: messages with `role` and `content`, or a list of such conversations.
            chat_template: in place of the tokenizer's.
            kwargs: of transformers' method.

        Raises: DataError for what is no conversation, does not end with a question, or has parts that nothing carries.
        """
        several = bool(conversation) and isinstance(conversation, (list, tuple)) and isinstance(conversation[0], (list, tuple))
        texts, images = [], []
        for chat in conversation if several else [conversation]:
            messages, found = messages_of(chat)
            if messages[-1].role != "user":
                raise DataError(f"a conversation ends with the user's question, this one with a message of the {messages[-1].role}")
            texts.append(self.with_prompt(marked(messages, len(found))))
            images.append(found)
        if not kwargs.get("tokenize", False):
            return texts if several else texts[0]
        extra = kwargs.get("processor_kwargs") or {}
        return self(images=images if any(images) else None, text=texts, apply_prompt=False, **extra)

    @property
    def model_input_names(self) -> list[str]:
        return ["input_ids", "attention_mask", "pixel_values", "has_image", "image_index"]


def _as_trained(image_processor: Any) -> Any:
    """The checked PIL form of a CLIP image processor.

    transformers loads the torchvision form where torchvision is installed, whose bicubic resize gives other pixel values
    than the form an adapter was trained with.
    """
    if type(image_processor).__name__ not in ("CLIPImageProcessor", "CLIPImageProcessorPil"):
        return image_processor
    return CheckedImageProcessor.from_dict(image_processor.to_dict())


_TEXT_ARGUMENTS = {"return_tensors", "padding", "truncation", "max_length", "padding_side", "pad_to_multiple_of"}


def read_images(images: Any, download: bool = False) -> list[Image]:
    """PIL images in RGB from paths, PIL images, bytes, arrays, tensors, data URIs, URLs, or lists and batches of them."""
    return in_threads(lambda image: read_any(image, download), _each(images))


def _each(images: Any) -> list[Any]:
    """The images of a list or batch, however nested."""
    return [] if images is None else [one for image in images for one in _each(image)] if _several(images) else [images]


def _several(images: Any) -> bool:
    return isinstance(images, (list, tuple)) or getattr(images, "ndim", 0) == 4


def _by_text(images: Any, texts: int) -> list[int] | None:
    """How many images each text has; None where they are given one after the other, and the caller says whose they are.

    Raises: DataError for images of each text that are not as many entries as there are texts.
    """
    given = list(images) if _several(images) else [images]
    if not any(one is None or _several(one) for one in given):
        return [len(given)] if texts == 1 else None
    if len(given) != texts:
        raise DataError(f"images has {len(given)} entries for {texts} texts; give an image, a list of images, or None for each")
    return [0 if one is None else len(one) if _several(one) else 1 for one in given]


def image_places(rows: Sequence[Sequence[Hashable]]) -> tuple[list[int], dict[str, Tensor]]:
    """Where each distinct image of some rows comes first among all of them, and the model's keywords that say whose each is."""
    places, index = distinct([image for row in rows for image in row])
    if any(len(row) > 1 for row in rows):
        numbers = iter(range(len(places)) if index is None else index.tolist())
        return places, {"image_index": padded_index([[next(numbers) for _ in row] for row in rows])}
    given = {} if index is None else {"image_index": index}
    return places, given if all(rows) else given | {"has_image": torch.tensor([bool(row) for row in rows])}


def padded_index(rows: Sequence[Sequence[int]]) -> Tensor:
    """Numbers of each row's images as one tensor [row, image], -1 where a row has fewer."""
    most = max((len(row) for row in rows), default=0)
    return torch.tensor([[*row, *[-1] * (most - len(row))] for row in rows], dtype=torch.long).view(len(rows), most)


def distinct(images: Sequence[Hashable]) -> tuple[list[int], Tensor | None]:
    """Where each distinct image comes first, and for each given one its place among those; None where all differ."""
    first: dict[Hashable, int] = {}
    numbers = [first.setdefault(image, len(first)) for image in images]
    if len(first) == len(numbers):
        return list(range(len(numbers))), None
    return [numbers.index(number) for number in range(len(first))], torch.tensor(numbers)


"""Arguments of a tokenizer's call that its `pad` takes as well."""
