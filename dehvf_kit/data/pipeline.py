"""transformers' pipeline "image-text-to-text", with the kit's limits and conversion for images given as `images=`."""

from __future__ import annotations

from typing import Any

from transformers.pipelines.image_text_to_text import ImageTextToTextPipeline

from dehvf_kit.data.images import read_any
from dehvf_kit.data.processing import DehvfProcessor


class CheckedImagePipeline(ImageTextToTextPipeline):
    """transformers' own pipeline; only for adapters, images are read by the kit before transformers converts them."""

    def preprocess(self, inputs: Any = None, **kwargs: Any) -> Any:  # type: ignore[override]
        if isinstance(inputs, dict) and "images" in inputs and isinstance(self.processor, DehvfProcessor):
            inputs = {**inputs, "images": _read(inputs["images"])}
        parent: Any = super()
        return parent.preprocess(inputs, **kwargs)


def _read(images: Any) -> Any:
    """Images, or lists of them, in RGB."""
    return [_read(one) for one in images] if isinstance(images, (list, tuple)) else read_any(images, download=True)
