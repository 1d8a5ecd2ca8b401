"""Images by every door: the same limits, the same pixels."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import struct
import time
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dehvf_kit.backbones.vision.config import ImageConfig
from dehvf_kit.data import images
from dehvf_kit.data.images import read_any, read_image
from dehvf_kit.data.processing import build_image_processor
from dehvf_kit.errors import ImageError

GREYS = np.array([[0, 0x1234], [0x8000, 0xFFFF]], np.uint16)
UPPER = [[0, 0x12], [0x80, 0xFF]]


def saved(image: Image.Image, kind: str = "PNG", **settings: Any) -> bytes:
    data = io.BytesIO()
    image.save(data, kind, **settings)
    return data.getvalue()


def tiff(pixels: np.ndarray, bits: int = 16, photometric: int = 1, kind: int = 1, data: bytes = b"") -> bytes:
    """A grey TIFF (TIFF 6.0, sections 3 and 19). photometric: 0 where 0 is white; kind: 1 whole, 2 signed, 3 fractions."""
    data, (height, width) = data or pixels.tobytes(), pixels.shape
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: photometric, 273: 134, 277: 1, 278: height, 279: len(data), 339: kind}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + data


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png16(colour: int, *values: int) -> bytes:
    """A PNG of one pixel in 16 bits. colour: 0 grey, 4 grey and alpha, 2 RGB, 6 RGBA."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 16, colour, 0, 0, 0))
    row = zlib.compress(b"\0" + struct.pack(f">{len(values)}H", *values))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", row) + chunk(b"IEND", b"")


def doors(data: bytes, folder: Path) -> dict[str, Any]:
    """An image file by every door."""
    file = folder / "image"
    file.write_bytes(data)
    text = base64.b64encode(data).decode()
    return {"path": file, "name": str(file), "bytes": data, "opened": Image.open(io.BytesIO(data)),
            "data URI": f"data:image/png;base64,{text}", "DATA URI": f"DATA:image/png;base64,{text}"}  # fmt: skip


SIXTEEN = {
    "PNG": (saved(Image.fromarray(GREYS)), UPPER),
    "TIFF": (tiff(GREYS), UPPER),
    "TIFF in which 0 is white": (tiff(GREYS, photometric=0), [[0xFF, 0xED], [0x7F, 0]]),
    "TIFF of 12 bits": (tiff(GREYS, bits=12, data=bytes([0x00, 0x01, 0x23, 0x80, 0x0F, 0xFF])), UPPER),
    "PGM": (saved(Image.fromarray(GREYS), "PPM"), UPPER),
    "PNG, grey and alpha": (png16(4, 0x3456, 0xFFFF), [[0x34]]),
    "PNG, RGB": (png16(2, 0x3456, 0x3456, 0x3456), [[0x34]]),
}


@pytest.mark.parametrize("case", SIXTEEN)
def test_16_bits_keep_their_upper_half_by_every_door(case: str, tmp_path: Path) -> None:
    data, grey = SIXTEEN[case]
    for door, image in doors(data, tmp_path).items():
        assert np.asarray(read_any(image)).tolist() == [[[value] * 3 for value in row] for row in grey], door


def test_arrays_and_tensors_as_image_processors_take_them() -> None:
    colours = np.random.default_rng(0).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    first = torch.from_numpy(colours).permute(2, 0, 1)
    for image in (
        first,
        first / 255,
        first.double() / 255,
        (first / 255).requires_grad_(),
        first.float(),
        first.numpy(),
        colours / 255,
    ):
        assert np.array_equal(read_any(image), colours)
    assert np.array_equal(read_any(first[:1]), read_any(colours[..., 0]))


def test_decoded_images_and_arrays_are_as_files(tmp_path: Path) -> None:
    colours = np.random.default_rng(0).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    assert np.array_equal(read_any(colours), colours) and np.array_equal(read_any(Image.fromarray(colours)), colours)
    for image in (GREYS, Image.fromarray(GREYS), Image.frombytes("I;16B", (2, 2), GREYS.astype(">u2").tobytes())):
        assert np.asarray(read_any(image))[..., 0].tolist() == UPPER


BOMB = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 9_000, 10_000, 8, 2, 0, 0, 0)) + chunk(b"IDAT", b"")
REFUSED = {
    "too many pixels": (BOMB, "89,478,485 are read at most"),
    "EPS": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n", "it is EPS, which is not read"),
    "another format": (saved(Image.new("RGB", (4, 4)), "TGA"), "is TGA, which is not read|no image"),
    "a thread": (saved(Image.new("RGB", (1, 400))), "a side may be 200 times the other at most"),
    "a TIFF of fractions": (tiff(GREYS.astype("<f4"), bits=32, kind=3), "whose white is unknown"),
    "a signed TIFF": (tiff(GREYS, kind=2), "whose white is unknown"),
    "no image": (b"no image", "no image|cannot identify"),
}


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("case", REFUSED)
def test_every_door_refuses_alike(case: str, tmp_path: Path) -> None:
    data, message = REFUSED[case]
    file = tmp_path / "image"
    file.write_bytes(data)
    for image in (file, str(file), data, f"data:image/png;base64,{base64.b64encode(data).decode()}"):
        with pytest.raises(ImageError, match=message):
            read_any(image)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_an_opened_image_is_checked_before_it_is_decoded() -> None:
    image = Image.open(io.BytesIO(BOMB))
    with pytest.raises(ImageError, match="89,478,485 are read at most"):
        read_any(image)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ("HTTPS://example.org/a.png", "is a URL, and nothing is fetched unasked; give a file, or download=True"),
        ("https://example.org/a.png", "is a URL, and nothing is fetched unasked; give a file, or download=True"),
        ("none.png", "there is no such file"),
        ("data:image/png;base64,####", "it is no file, no URL and no base64"),
        (np.full((4, 4, 3), -1, np.float32), r"an array \[4, 4, 3\] of float32"),
        (np.full((4, 4, 3), 256, np.float32), r"an array \[4, 4, 3\] of float32"),
        (np.full((4, 4, 3), np.nan, np.float32), r"an array \[4, 4, 3\] of float32"),
        (np.zeros((2, 4, 5), np.uint8), r"an array \[2, 4, 5\] of uint8"),
        (3, "an array"),
    ],
)
def test_what_is_no_image_is_named(image: Any, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        read_any(image)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_broken_exif_leaves_the_pixels_as_they_are_stored(tmp_path: Path, kind: str) -> None:
    plain = Image.new("RGB", (4, 6), (200, 30, 30))
    for exif in (b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12", b"Exif\0\0broken", b"no exif"):
        (tmp_path / "image").write_bytes(saved(plain, kind, exif=exif))
        assert read_image(tmp_path / "image").size == (4, 6)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_the_image_processor_is_one_of_the_doors(tmp_path: Path) -> None:
    processor = build_image_processor({"vision": ImageConfig(size=2, normalisation="none", resample="nearest")})
    image = torch.from_numpy(np.asarray(Image.fromarray(np.array(UPPER, np.uint8)).convert("RGB")).copy()).permute(2, 0, 1)
    wanted = (image / 255)[None]
    for door, given in doors(SIXTEEN["TIFF in which 0 is white"][0], tmp_path).items():
        found = processor(given, return_tensors="pt")["pixel_values"]
        assert (found - (1 - wanted)).abs().max() < 0.5 / 255, door  # half a step of 8 bits
    for door, given in {"tensor": image, "batch": image[None], "array": GREYS, "list": [Image.fromarray(GREYS)]}.items():
        assert torch.allclose(processor(given, return_tensors="pt")["pixel_values"], wanted), door
    for data, message in REFUSED.values():
        with pytest.raises(ImageError, match=message):
            processor(data)
    again = type(processor).from_dict(processor.to_dict())
    assert again.to_dict()["image_processor_type"] == "CLIPImageProcessor"


class Slow(BaseHTTPRequestHandler):
    """`/whole.png` at once; elsewhere a byte every 20 ms, more often than any timeout of a single read."""

    whole = saved(Image.new("RGB", (2, 2), (1, 2, 3)))

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        with contextlib.suppress(OSError):
            if self.path == "/whole.png":
                self.wfile.write(self.whole)
                return
            for _ in range(500):
                self.wfile.write(b".")
                time.sleep(0.02)

    def log_message(self, *_: Any) -> None:
        pass


def test_an_address_is_fetched_within_a_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "TIMEOUT_S", 1.0)

    async def in_a_loop(address: str) -> Image.Image:  # as in a notebook
        return read_any(address, download=True)

    with ThreadingHTTPServer(("127.0.0.1", 0), Slow) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        assert asyncio.run(in_a_loop(f"{address}/whole.png")).getpixel((0, 0)) == (1, 2, 3)
        with pytest.raises(ImageError, match="cannot be fetched: it takes more than 1 s"):
            read_any(f"{address}/endless.png", download=True)
        server.shutdown()
