"""Questions and images -> model inputs, as a transformers processor that knows the prompt its adapter was trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from transformers import BatchFeature, ProcessorMixin
from transformers.image_processing_utils import BaseImageProcessor

from dehvf_kit.backbones.decoder import prepare_tokenizer
from dehvf_kit.backbones.vision.config import ImageConfig
from dehvf_kit.data.images import read_any
from dehvf_kit.data.samples import PromptConfig
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
        given = _images(images)
        pixels = {
            name: ImageConfig(**settings).processor()(given, return_tensors="pt")["pixel_values"]
            for name, settings in self.encoders.items()
        }
        return BatchFeature({"pixel_values": pixels})

    def __call__(self, images: Any, **kwargs: Any) -> BatchFeature:
        return self.preprocess(images, **kwargs)


def build_image_processor(images: Mapping[str, ImageConfig]) -> BaseImageProcessor:
    """The image processor of a recipe's encoders."""
    if len(images) == 1:
        return next(iter(images.values())).processor()
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
        """Images and texts -> input_ids, attention_mask, pixel_values.

        Args:
            images: one a text: paths, PIL images, bytes of image files, arrays, data URIs, URLs, or a list of them; see `read_any`.
            text: the questions.
            apply_prompt: put them into the adapter's prompt.
            download: allow fetching images that are URLs.
            kwargs: passed to the tokenizer.

        Raises:
            ImageError: for an image that cannot be read, or a URL without `download`.
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
        if images is not None:
            data |= self.image_processor(_images(images, download), return_tensors="pt")
        data.pop("token_type_ids", None)
        return BatchFeature(data)

    def with_prompt(self, question: str) -> str:
        """The question in the adapter's prompt; a text that is in it already is left alone."""
        return format_question(question, PromptConfig(**self.prompt), self.tokenizer) if self.prompt else question

    def apply_chat_template(self, conversation: Any, chat_template: str | None = None, **kwargs: Any) -> Any:
        """A conversation with images -> model inputs (`tokenize=True`) or text. The last user message is the question.

        An adapter trained on a plain prompt gets the conversation's text in that prompt, not in a chat template it never saw.
        """
        texts, images = [], []
        try:
            several = isinstance(conversation[0], (list, tuple))
            for chat in conversation if several else [conversation]:
                text, found = _flatten(chat)
                texts.append(text)
                images += found
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            raise DataError(
                "a conversation is a list of messages with `role` and `content`, the content a text or a list of parts "
                "such as {'type': 'text', 'text': ...} and {'type': 'image', 'image': ...}"
            ) from error
        if not kwargs.get("tokenize", False):
            prompts = [self.with_prompt(text) for text in texts]
            return prompts if several else prompts[0]
        extra = kwargs.get("processor_kwargs") or {}
        return self(images=images or None, text=texts, **extra)

    def batch_decode(self, *args: Any, **kwargs: Any) -> list[str]:
        return self.tokenizer.batch_decode(*args, **kwargs)

    def decode(self, *args: Any, **kwargs: Any) -> str:
        return self.tokenizer.decode(*args, **kwargs)

    def post_process_image_text_to_text(self, generated_outputs: Any, skip_special_tokens: bool = True, **kwargs: Any) -> list[str]:
        return self.tokenizer.batch_decode(generated_outputs, skip_special_tokens=skip_special_tokens)

    @property
    def model_input_names(self) -> list[str]:
        return ["input_ids", "attention_mask", "pixel_values"]


def _as_trained(image_processor: Any) -> Any:
    """The PIL form of a CLIP image processor.

    transformers loads the torchvision form where torchvision is installed, whose bicubic resize gives other pixel values
    than the form an adapter was trained with.
    """
    if type(image_processor).__name__ != "CLIPImageProcessor":
        return image_processor
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    return CLIPImageProcessorPil.from_dict(image_processor.to_dict())


_TEXT_ARGUMENTS = {"return_tensors", "padding", "truncation", "max_length", "padding_side", "pad_to_multiple_of"}


def _images(images: Any, download: bool = False) -> list[Image]:
    """PIL images in RGB from paths, PIL images, bytes, arrays, data URIs, URLs or lists of them."""
    if not isinstance(images, (list, tuple)):
        return [read_any(images, download)]
    return [found for image in images for found in _images(image, download)]


def _flatten(chat: Sequence[Mapping[str, Any]]) -> tuple[str, list[Any]]:
    """The text of the last user message, and the conversation's images."""
    images, text = [], ""
    for message in chat:
        content = message["content"]
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        words = [part["text"] for part in parts if part.get("type") == "text"]
        for part in parts:
            if part.get("type") == "image":
                key = next((key for key in ("image", "url", "path", "base64") if key in part), "image")
                images.append(part[key])
        if message["role"] == "user" and words:
            text = "\n".join(words)
    return text, images
