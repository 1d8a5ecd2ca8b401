"""Images: what is refused, and what becomes of those that are read."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable

import numpy as np
from bad_files.ground import HANDLED, REFUSED, Case, Ground, Words, collector
from PIL import Image

from dehvf_kit.data.images import read_image

IMAGES: list[Case] = []
case = collector("Images", IMAGES)
SIDE = 32


def noise(channels: int = 3, side: int = SIDE) -> np.ndarray:
    """Random bytes [side, side, channel]."""
    return np.random.default_rng(0).integers(0, 256, (side, side, channels), dtype=np.uint8)


def becomes(pixels: Callable[[], np.ndarray], name: str = "image.png") -> Callable[[Ground], None]:
    """Says what the image must be when it is read."""

    def look(ground: Ground) -> None:
        found = read_image(ground.folder / name)
        assert found.mode == "RGB" and np.array_equal(np.asarray(found), pixels())

    return look


def png(width: int, height: int) -> bytes:
    """A PNG that says it is that large and holds next to nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


@case("no such file", REFUSED, "there is no image")
def missing(ground: Ground) -> Words:
    return ground.ask(ground.folder / "image.png")


@case("a symlink to nothing", REFUSED, "there is no image")
def dangling(ground: Ground) -> Words:
    (ground.folder / "image.png").symlink_to("gone.png")
    return ground.ask(ground.folder / "image.png")


@case("a folder in its place", REFUSED, "there is no image")
def folder(ground: Ground) -> Words:
    (ground.folder / "image.png").mkdir()
    return ground.ask(ground.folder / "image.png")


@case("a named pipe in its place", REFUSED, "there is no image", needs="mkfifo")
def pipe(ground: Ground) -> Words:
    os.mkfifo(ground.folder / "image.png")
    return ground.ask(ground.folder / "image.png")


@case("no permission to read", REFUSED, "Permission denied", needs="user")
def unreadable(ground: Ground) -> Words:
    file = ground.write("image.png", png(1, 1))
    file.chmod(0)
    return ground.ask(file)


@case("zero bytes", REFUSED, "cannot be read: it is empty or no image")
def empty(ground: Ground) -> Words:
    return ground.ask(ground.write("image.png", b""))


@case("a text named `.png`", REFUSED, "cannot be read: it is empty or no image")
def text(ground: Ground) -> Words:
    return ground.ask(ground.write("image.png", "no image"))


@case("cut in half", REFUSED, "cannot be read")
def half(ground: Ground) -> Words:
    file = ground.folder / "image.png"
    Image.fromarray(noise()).save(file)
    return ground.ask(ground.write("image.png", file.read_bytes()[: file.stat().st_size // 2]))


@case("a JPEG cut in half", REFUSED, "image file is truncated")
def half_jpeg(ground: Ground) -> Words:
    file = ground.folder / "image.jpg"
    Image.fromarray(noise(side=200)).save(file)
    return ground.ask(ground.write("image.jpg", file.read_bytes()[: file.stat().st_size // 2]))


@case("a decompression bomb: a few bytes that say 60,000 x 60,000 pixels", REFUSED, "it has more than 89,478,485 pixels")
def bomb(ground: Ground) -> Words:
    return ground.ask(ground.write("image.png", png(60_000, 60_000)))


@case("10,000 x 10,000 pixels, where Pillow only warns", REFUSED, "it has 10,000 x 10,000 pixels; 89,478,485 are read at most")
def large(ground: Ground) -> Words:
    return ground.ask(ground.write("image.png", png(10_000, 10_000)))


@case("a thread of 1 x 5,000 pixels", REFUSED, "a side may be 200 times the other at most")
def thread(ground: Ground) -> Words:
    file = ground.folder / "image.png"
    Image.new("RGB", (1, 5000)).save(file)
    return ground.ask(file)


@case("EPS, which would start a program", REFUSED, "it is EPS, which is not read; save it as PNG or JPEG")
def eps(ground: Ground) -> Words:
    return ground.ask(ground.write("image.eps", "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n"))


@case("a TIFF of fractions", REFUSED, "whose white is unknown; save it in 8 bits")
def fractions(ground: Ground) -> Words:
    file = ground.folder / "image.tiff"
    Image.fromarray(np.full((8, 8), 0.5, dtype=np.float32)).save(file)
    return ground.ask(file)


def grey() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 2**16, (SIDE, SIDE)).astype(np.uint16)


@case("16-bit grey", HANDLED, "", becomes(lambda: np.repeat((grey() >> 8).astype(np.uint8)[..., None], 3, 2)))
def sixteen(ground: Ground) -> Words:
    """The upper half of each value."""
    Image.fromarray(grey()).save(ground.folder / "image.png")
    return ground.ask(ground.folder / "image.png")


def cmyk() -> np.ndarray:
    return np.asarray(Image.fromarray(noise(4), "CMYK").convert("RGB"))


@case("CMYK", HANDLED, "", becomes(cmyk, "image.tiff"))
def inks(ground: Ground) -> Words:
    """Converted to RGB without a colour profile."""
    Image.fromarray(noise(4), "CMYK").save(ground.folder / "image.tiff")
    return ground.ask(ground.folder / "image.tiff")


@case("animated", HANDLED, "", becomes(lambda: np.full((SIDE, SIDE, 3), (220, 30, 30), np.uint8), "image.gif"))
def animated(ground: Ground) -> Words:
    """The first frame."""
    first, second = (Image.new("RGB", (SIDE, SIDE), colour) for colour in ((220, 30, 30), (30, 60, 220)))
    first.save(ground.folder / "image.gif", save_all=True, append_images=[second])
    return ground.ask(ground.folder / "image.gif")


@case("a palette with a transparent colour", HANDLED, "", becomes(lambda: np.full((SIDE, SIDE, 3), (30, 180, 60), np.uint8)))
def palette(ground: Ground) -> Words:
    """Transparency is dropped, the colours below it are kept."""
    made = Image.new("P", (SIDE, SIDE), 0)
    made.putpalette([30, 180, 60, 0, 0, 0])
    made.save(ground.folder / "image.png", transparency=bytes([0, 255]))
    return ground.ask(ground.folder / "image.png")


@case("transparent, RGBA", HANDLED, "", becomes(lambda: noise(4)[..., :3]))
def transparent(ground: Ground) -> Words:
    """Transparency is dropped, the colours below it are kept."""
    Image.fromarray(noise(4), "RGBA").save(ground.folder / "image.png")
    return ground.ask(ground.folder / "image.png")


@case("turned by its EXIF", HANDLED, "", becomes(lambda: np.rot90(noise(), -1)))
def turned(ground: Ground) -> Words:
    """Set upright."""
    made = Image.fromarray(noise())
    exif = made.getexif()
    exif[0x0112] = 6  # to be turned by a quarter, clockwise
    made.save(ground.folder / "image.png", exif=exif)
    return ground.ask(ground.folder / "image.png")


@case("1 x 1", HANDLED, "", becomes(lambda: np.full((1, 1, 3), (220, 30, 30), np.uint8)))
def single(ground: Ground) -> Words:
    """Read as it is."""
    Image.new("RGB", (1, 1), (220, 30, 30)).save(ground.folder / "image.png")
    return ground.ask(ground.folder / "image.png")


@case("black and white, one bit", HANDLED, "", becomes(lambda: np.full((SIDE, SIDE, 3), 255, np.uint8)))
def bit(ground: Ground) -> Words:
    """Read as black and white in RGB."""
    Image.new("1", (SIDE, SIDE), 1).save(ground.folder / "image.png")
    return ground.ask(ground.folder / "image.png")


@case("a BMP named `.png`", HANDLED, "", becomes(noise))
def misnamed(ground: Ground) -> Words:
    """Told by its bytes, not by its name."""
    Image.fromarray(noise()).save(ground.folder / "image.png", format="BMP")
    return ground.ask(ground.folder / "image.png")


@case("a symlink to an image", HANDLED, "", becomes(noise))
def link(ground: Ground) -> Words:
    """Followed."""
    Image.fromarray(noise()).save(ground.folder / "real.png")
    (ground.folder / "image.png").symlink_to("real.png")
    return ground.ask(ground.folder / "image.png")


@case("a PNG with broken EXIF", HANDLED, "", becomes(noise))
def broken_exif(ground: Ground) -> Words:
    """Read as it is stored, not turned."""
    Image.fromarray(noise()).save(ground.folder / "image.png", exif=b"Exif\0\0broken")
    return ground.ask(ground.folder / "image.png")


def inverted() -> np.ndarray:
    return 255 - np.repeat((grey() >> 8).astype(np.uint8)[..., None], 3, 2)


@case("16-bit grey TIFF in which 0 is white", HANDLED, "", becomes(inverted, "image.tiff"))
def white_is_zero(ground: Ground) -> Words:
    """Inverted, then the upper half of each value."""
    Image.fromarray(grey()).save(ground.folder / "image.tiff", tiffinfo={262: 0})
    return ground.ask(ground.folder / "image.tiff")
