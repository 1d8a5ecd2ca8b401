"""Image files -> RGB, one way for training, scoring and questions; `docs/bad_files.md` lists what is accepted and what is not.

The first frame, turned upright as its EXIF says, in 8 bits a colour (16-bit greys keep their upper half, as 16-bit colours do);
CMYK and palettes become RGB, transparency is dropped with the colours below it kept, as the official scripts do.
"""

from __future__ import annotations

import asyncio
import base64
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from dehvf_kit.data.samples import HeldImage, ImageFile, Sample, is_data_uri, is_url
from dehvf_kit.errors import ImageError, shown

FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")
"""What is read. Others, such as EPS, would start programs."""
MAX_PIXELS = 89_478_485
"""Pixels an image may have: where Pillow begins to warn of decompression bombs, the kit refuses."""
MAX_RATIO = 200
"""Times the longer side may be the shorter one: resizing to the shorter would otherwise make a bomb of a thread."""

LONGEST_NAME = 255
"""Characters of a file's name; a longer text that is no file may be base64."""
MAX_DOWNLOAD = 2**26
TIMEOUT_S = 20.0
"""Seconds that fetching an image may take, from the address to the last byte."""
BITS_PER_SAMPLE, PHOTOMETRIC = 258, 262
"""Tags of a TIFF (TIFF 6.0, section 8)."""
WHITE_IS_ZERO = 0


def read_image(file: ImageFile | Path) -> Image.Image:
    """An image in RGB. Raises: ImageError naming the file."""
    if isinstance(file, Path) and not os.path.isfile(file):
        what = "is no file" if os.path.lexists(file) and not os.path.islink(file) else ""
        raise ImageError(f"'{file}' {what}, so no image" if what else f"there is no image '{file}'")
    try:
        with file.open("rb") as opened, Image.open(opened) as image:
            refuse_image(image)
            return to_rgb(image)
    except Image.DecompressionBombError as error:
        raise _unreadable(file, f"it has more than {MAX_PIXELS:,} pixels") from error
    except UnidentifiedImageError as error:
        raise _unreadable(file, "it is empty or no image") from error
    except OSError as error:
        raise _unreadable(file, error.strerror or str(error)) from error
    except Exception as error:  # Pillow's decoders raise whatever they stumble over
        raise _unreadable(file, str(error) or type(error).__name__) from error


def read_any(image: Any, download: bool = False) -> Image.Image:
    """An image in RGB from whatever holds it, with the limits and the conversion of `read_image`.

    Args:
        image: a path, a PIL image (opened or decoded), the bytes of an image file, a data URI or its base64 text, a URL, or an
            array or tensor [height, width], [height, width, channel] or [channel, height, width] of uint8, of fractions from 0
            to 1 (or to 255 where any is above 1) or, in grey, of uint16.
        download: allow fetching a URL.

    Raises:
        ImageError: naming what cannot be read.
    """
    if isinstance(image, str):
        if is_url(image):
            if not download:
                raise ImageError(f"image {shown(image)} is a URL, and nothing is fetched unasked; give a file, or download=True")
            image = HeldImage(image, _fetched(image))
        elif not is_data_uri(image) and os.path.isfile(image):
            image = Path(image)
        else:
            image = HeldImage(image[:40], _decoded(image))
    elif isinstance(image, (bytes, bytearray)):
        image = HeldImage(f"of {len(image):,} bytes", bytes(image))
    if hasattr(image, "open") and hasattr(image, "read_bytes"):
        return read_image(image)
    try:
        found = image if isinstance(image, Image.Image) else _from_array(image)
        refuse_image(found)
        return to_rgb(found)
    except Exception as error:  # whatever a decoder, or an object of another kind, raises
        raise _unreadable(shown(image), str(error) or type(error).__name__) from error


def _decoded(text: str) -> bytes:
    """The bytes in a data URI, or in base64 text. Raises: ImageError for other text."""
    if len(text) <= LONGEST_NAME and not is_data_uri(text):
        raise ImageError(f"image {shown(text)} cannot be read: there is no such file")
    try:
        return base64.b64decode("".join((text.partition(",")[2] if is_data_uri(text) else text).split()), validate=True)
    except ValueError as error:
        raise ImageError(f"image {shown(text)} cannot be read: it is no file, no URL and no base64") from error


def _fetched(url: str) -> bytes:
    with ThreadPoolExecutor(1) as pool:  # this thread may have a running loop, as a notebook's does
        return pool.submit(asyncio.run, fetch(url)).result()


async def fetch(url: str) -> bytes:
    """The bytes at an address. Raises: ImageError where they are too many, take too long altogether, or cannot be had."""
    httpx: Any = import_module("httpx2" if find_spec("httpx2") else "httpx")  # huggingface_hub brings one of them

    data = bytearray()
    try:
        async with (
            asyncio.timeout(TIMEOUT_S),
            httpx.AsyncClient(timeout=TIMEOUT_S, follow_redirects=True) as client,
            client.stream("GET", url) as answer,
        ):
            answer.raise_for_status()
            async for part in answer.aiter_bytes():
                data += part
                if len(data) > MAX_DOWNLOAD:
                    raise ImageError(f"image {shown(url)} cannot be read: it has more than {MAX_DOWNLOAD:,} bytes")
    except TimeoutError as error:
        raise ImageError(f"image {shown(url)} cannot be fetched: it takes more than {TIMEOUT_S:g} s") from error
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise ImageError(f"image {shown(url)} cannot be fetched: {error or type(error).__name__}") from error
    return bytes(data)


def _from_array(image: Any) -> Image.Image:
    """Raises: ImageError for an array whose white or channels are unknown."""
    if hasattr(image, "detach"):
        image = (image.detach().float() if image.is_floating_point() else image.detach()).cpu()
    given = pixels = np.asarray(image)
    if pixels.ndim == 3 and pixels.shape[0] in (1, 3, 4) and pixels.shape[2] not in (1, 3, 4):
        pixels = pixels.transpose(1, 2, 0)
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    if pixels.dtype.kind == "f" and pixels.size and pixels.min() >= 0 and pixels.max() <= 255:
        pixels = np.rint(pixels * (255.0 if pixels.max() <= 1 else 1.0)).astype(np.uint8)
    grey = pixels.ndim == 2
    if pixels.dtype == np.uint16 and grey or pixels.dtype == np.uint8 and (grey or pixels.ndim == 3 and pixels.shape[2] in (3, 4)):
        return Image.fromarray(np.ascontiguousarray(pixels))
    raise ImageError(f"it is an array {list(given.shape)} of {given.dtype}; wants [height, width] or [height, width, 3] of uint8")


def in_threads(function: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
    """What a function makes of some images, in order, on torch's threads: Pillow decodes and resizes without Python's lock."""
    import torch

    with ThreadPoolExecutor(max(1, min(len(items), torch.get_num_threads()))) as pool:
        return list(pool.map(function, items))


def open_image(sample: Sample) -> Image.Image:
    """A sample's image in RGB. Raises: ImageError naming the sample and the file."""
    try:
        return read_image(sample.image)
    except ImageError as error:
        raise ImageError(f"sample '{sample.id}': {error}") from error


def refuse_image(image: Image.Image) -> None:
    """Refuse what should not be decoded, by its header alone. Raises: ImageError."""
    width, height = image.size
    if image.format is not None and image.format not in FORMATS:
        raise ImageError(f"it is {image.format}, which is not read; save it as PNG or JPEG")
    if width * height > MAX_PIXELS:
        raise ImageError(f"it has {width:,} x {height:,} pixels; {MAX_PIXELS:,} are read at most")
    if max(width, height) > MAX_RATIO * min(width, height):
        raise ImageError(f"it has {width:,} x {height:,} pixels; a side may be {MAX_RATIO} times the other at most")


def to_rgb(image: Image.Image) -> Image.Image:
    """A decoded or opened image upright and in RGB. Raises: ImageError for pixels whose range nobody can tell."""
    upright = _upright(image)
    if upright.mode.startswith("I;16") or (upright.mode == "I" and image.format in ("PNG", "PPM")):
        return Image.fromarray(_eight_bits(np.asarray(upright), image)).convert("RGB")
    if upright.mode in ("I", "F"):
        raise ImageError(f"its pixels are of mode {upright.mode}, whose white is unknown; save it in 8 bits")
    if "transparency" in upright.info:
        upright = upright.convert("RGBA")
    return upright if upright.mode == "RGB" else upright.convert("RGB")


def _upright(image: Image.Image) -> Image.Image:
    """An image turned as its EXIF says; as it is stored where that is upright or cannot be read."""
    image.load()
    try:
        return image if image.getexif().get(ExifTags.Base.Orientation, 1) == 1 else ImageOps.exif_transpose(image)
    except Exception:  # whatever Pillow raises for metadata; the pixels were read above
        return image


def _eight_bits(grey: np.ndarray, image: Image.Image) -> np.ndarray:
    """The upper eight bits of 16-bit greys. A TIFF says how many bits it uses and whether 0 is white; Pillow ignores both."""
    tags = getattr(image, "tag_v2", {})
    bits = tags.get(BITS_PER_SAMPLE, (16,))[0]
    if tags.get(PHOTOMETRIC) == WHITE_IS_ZERO:
        grey = 2**bits - 1 - grey.astype(np.int32)
    return (grey >> (bits - 8)).astype(np.uint8)


def _unreadable(file: Any, reason: str) -> ImageError:
    return ImageError(f"image '{file}' cannot be read: {' '.join(reason.split())[:200]}")
