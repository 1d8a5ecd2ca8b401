"""WebDataset shards: tar files in which the members of one sample follow each other and share a name up to the first dot.

Shards are only read, from front to back; nothing is ever extracted. Source of the layout: the WebDataset format specification.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, Any

from dehvf_kit.data.issues import Issue, note
from dehvf_kit.errors import DataError

IMAGES = ("jpg", "jpeg", "png", "webp", "bmp", "gif")
TEXTS = ("json", "txt")
LARGEST = 2**28
"""Bytes a member may have; a larger one is no image and no text."""


@dataclass(frozen=True)
class HeldImage:
    """An image whose bytes were read already; equal to those of the same name."""

    name: str
    data: bytes = field(compare=False, repr=False)

    def read_bytes(self) -> bytes:
        return self.data

    def open(self, mode: str = "rb") -> IO[bytes]:
        return io.BytesIO(self.data)

    def __str__(self) -> str:
        return self.name


def tar_rows(shard: Path, issues: list[Issue] | None = None) -> Iterator[tuple[str, dict[str, Any], HeldImage | None]]:
    """(place, row, image) of every sample: its .json as the row, with `txt` for its .txt, and the first image beside it.

    Args:
        shard: the tar file.
        issues: where given, samples with a faulty .json or .txt are added to it and excluded.

    Raises:
        DataError: naming shard and member, for a member that points out of the archive (`../`, an absolute path, a link) or
            is too large, for what is no tar file, and for no JSON without `issues`.
    """
    try:
        with tarfile.open(shard, mode="r:*") as archive:
            yield from _samples(archive, shard, issues)
            _check_end(archive, shard)
    except (tarfile.TarError, OSError, EOFError) as error:
        raise DataError(f"{shard}: cannot be read as a tar file: {error}") from error


def _samples(
    archive: tarfile.TarFile, shard: Path, issues: list[Issue] | None
) -> Iterator[tuple[str, dict[str, Any], HeldImage | None]]:
    key, sound = "", True
    row: dict[str, Any] = {}
    image: HeldImage | None = None
    for member in archive:
        where = f"{shard}:{member.name}"
        _check(member, where)
        if not member.isfile():
            continue
        name, _, ending = PurePosixPath(member.name).name.partition(".")
        here, ending = str(PurePosixPath(member.name).with_name(name)), ending.lower()
        if here != key:
            if key and sound:
                yield f"{shard}:{key}", row, image
            key, row, image, sound = here, {"__key__": here}, None, True
        kind = ending.rpartition(".")[2]
        if kind in IMAGES and image is None:
            image = HeldImage(where, _read(archive, member, where))
        elif kind in TEXTS:
            data = _read(archive, member, where)
            try:
                row |= _text(kind, data, where)
            except DataError as error:
                note(issues, Issue("faulty member", where), error)
                sound = False
    if key and sound:
        yield f"{shard}:{key}", row, image


def _check(member: tarfile.TarInfo, where: str) -> None:
    path = PurePosixPath(member.name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts:
        raise DataError(f"{where}: this member points out of the archive; pack the shard with plain names")
    if member.issym() or member.islnk() or member.isdev():
        raise DataError(f"{where}: is a link or a device; pack the shard with plain files")
    if member.size > LARGEST:
        raise DataError(f"{where}: has {member.size:,} bytes; {LARGEST:,} are the most a member may have")


def _check_end(archive: tarfile.TarFile, shard: Path) -> None:
    """tarfile takes a header that is cut short for the end; a whole archive ends with a block of zeros."""
    archive.fileobj.seek(archive.offset)
    block = archive.fileobj.read(tarfile.BLOCKSIZE)
    if block != bytes(tarfile.BLOCKSIZE):
        raise DataError(f"{shard}: is cut short; it has no end mark")


def _read(archive: tarfile.TarFile, member: tarfile.TarInfo, where: str) -> bytes:
    file = archive.extractfile(member)
    data = file.read() if file is not None else b""
    if len(data) != member.size:
        raise DataError(f"{where}: is cut short")
    return data


def _text(kind: str, data: bytes, where: str) -> dict[str, Any]:
    try:
        text = data.decode("utf-8-sig")
        found = json.loads(text) if kind == "json" else {"txt": text.strip()}
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise DataError(f"{where}: not UTF-8 {'JSON' if kind == 'json' else 'text'}: {error}") from error
    if not isinstance(found, dict):
        raise DataError(f"{where}: wants a JSON object, this is {type(found).__name__}")
    return found
