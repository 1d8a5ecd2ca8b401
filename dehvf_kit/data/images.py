"""Picture files -> RGB, one way for training, scoring and questions; `docs/bad_files.md` lists what is accepted and what is not.

The first frame, turned upright as its EXIF says, in 8 bits a colour (16-bit greys keep their upper half, as 16-bit colours do);
CMYK and palettes become RGB, transparency is dropped with the colours below it kept, as the official scripts do.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from dehvf_kit.data.samples import ImageFile, Sample
from dehvf_kit.errors import ImageError

FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")
"""What is read. Others, such as EPS, would start programs."""
MAX_PIXELS = 89_478_485
"""Pixels a picture may have: where Pillow begins to warn of decompression bombs, the kit refuses."""
MAX_RATIO = 200
"""Times the longer side may be the shorter one: resizing to the shorter would otherwise make a bomb of a thread."""


def read_image(file: ImageFile | Path) -> Image.Image:
    """A picture in RGB. Raises: ImageError naming the file."""
    if isinstance(file, Path) and not os.path.isfile(file):
        what = "is no file" if os.path.lexists(file) and not os.path.islink(file) else ""
        raise ImageError(f"'{file}' {what}, so no picture" if what else f"there is no picture '{file}'")
    try:
        with file.open("rb") as opened, Image.open(opened) as picture:
            refuse_image(picture)
            return to_rgb(picture)
    except Image.DecompressionBombError as error:
        raise _unreadable(file, f"it has more than {MAX_PIXELS:,} pixels") from error
    except UnidentifiedImageError as error:
        raise _unreadable(file, "it is empty or no picture") from error
    except OSError as error:
        raise _unreadable(file, error.strerror or str(error)) from error
    except Exception as error:  # Pillow's decoders raise whatever they stumble over
        raise _unreadable(file, str(error) or type(error).__name__) from error


def open_image(sample: Sample) -> Image.Image:
    """A sample's picture in RGB. Raises: ImageError naming the sample and the file."""
    try:
        return read_image(sample.image)
    except ImageError as error:
        raise ImageError(f"sample '{sample.id}': {error}") from error


def refuse_image(picture: Image.Image) -> None:
    """Refuse what should not be decoded, by its header alone. Raises: ImageError."""
    width, height = picture.size
    if picture.format is not None and picture.format not in FORMATS:
        raise ImageError(f"it is {picture.format}, which is not read; save it as PNG or JPEG")
    if width * height > MAX_PIXELS:
        raise ImageError(f"it has {width:,} x {height:,} pixels; {MAX_PIXELS:,} are read at most")
    if max(width, height) > MAX_RATIO * min(width, height):
        raise ImageError(f"it has {width:,} x {height:,} pixels; a side may be {MAX_RATIO} times the other at most")


def to_rgb(picture: Image.Image) -> Image.Image:
    """A decoded or opened picture upright and in RGB. Raises: ImageError for pixels whose range nobody can tell."""
    upright = ImageOps.exif_transpose(picture)
    if upright.mode.startswith("I;16") or (upright.mode == "I" and picture.format == "PNG"):
        return Image.fromarray((np.asarray(upright) >> 8).astype(np.uint8)).convert("RGB")
    if upright.mode in ("I", "F"):
        raise ImageError(f"its pixels are of mode {upright.mode}, whose white is unknown; save it in 8 bits")
    if "transparency" in upright.info:
        upright = upright.convert("RGBA")
    return upright.convert("RGB")


def _unreadable(file: Any, reason: str) -> ImageError:
    return ImageError(f"picture '{file}' cannot be read: {' '.join(reason.split())[:200]}")
