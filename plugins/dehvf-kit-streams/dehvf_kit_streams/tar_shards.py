"""WebDataset shards: tar files in which the members of one sample follow each other.

A member's path up to the first dot of its file name is its sample's key, the rest is its field: `a/0001.depth.png` is the field
`depth.png` of `a/0001`. Shards are only read, from front to back; nothing is ever extracted. Source of the layout: the
WebDataset format specification, and what webdataset 1.0 and datasets 5.2 do.
"""

from __future__ import annotations

import functools
import io
import lzma
import os
import tarfile
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from dehvf_kit.data.samples import HeldImage, Issue, note
from dehvf_kit.errors import DataError, listing, shown
from dehvf_kit.utils.plain_data import NotJson, parse_json

IMAGES = frozenset(
    ["jpg", "jpeg", "jfif", "png", "webp", "bmp", "gif", "tif", "tiff", "ppm", "pgm", "pbm", "pnm", "jp2", "avif"]
    + ["heic", "heif", "jxl"]  # refused by name when they are opened, not taken for no image
)
TEXTS = frozenset(["txt", "text", "transcript", "cls", "cls2", "class", "index", "inx", "id"])
OBJECTS = frozenset(["json", "jsn"])
LARGEST = 2**28
"""Bytes a member may have that is read; a larger one is no image and no text."""
BLOCK = tarfile.BLOCKSIZE
Row = tuple[str, dict[str, Any], HeldImage | None]


class _Damaged(DataError):
    """A shard that cannot be read any further."""


@dataclass
class _Group:
    """The members of one sample: those read, by field, and the names of the other fields."""

    key: str
    read: dict[str, bytes] = field(default_factory=dict)
    others: list[str] = field(default_factory=list)
    twice: str = ""
    too_large: str = ""
    repeated: bool = False


def tar_rows(shard: Path, issues: list[Issue] | None = None, image: str = "image") -> Iterator[Row]:
    """(place, row, image) of every sample: the keys of its .json as the row, with its text fields (`txt`) as further columns.

    Args:
        shard: the tar file.
        issues: where given, samples with a faulty member and a damaged shard's end are added to it and excluded; so are, as
            notes, the fields that are not read.
        image: the field that is the image; where there is none of this name, the only image without a further dot in it.

    Raises:
        DataError: naming shard and member, for a member that points out of the archive (`../`, an absolute path, a link); without
            `issues` also for a faulty member and for a shard that is damaged, cut short or several shards in one file.
    """
    unread: Counter[str] = Counter()
    try:
        for group in _groups(shard, image, unread):
            place = f"{shard}:{group.key}"
            try:
                row, held = _row(place, group, image)
            except DataError as error:
                note(issues, Issue("faulty member", place), error)
                continue
            yield place, row, held
    except _Damaged as error:
        note(issues, Issue("damaged shard", str(shard)), error)
    if issues is not None:
        counts = ((name, f"{count:,} member{'s' if count > 1 else ''}") for name, count in unread.items())
        issues += [Issue("field that is not read", f"{shard}:*{name}", count, fatal=False) for name, count in counts]


def _groups(shard: Path, image: str, unread: Counter[str]) -> Iterator[_Group]:
    """The samples in their order; `unread` counts the members that are not read, by ending."""
    group, keys, last = None, set(), ""
    try:
        state = os.stat(shard)
        _check_compression(shard, state.st_size, state.st_mtime_ns)
        with tarfile.open(shard, mode="r:*") as archive:
            for member in archive:
                _refuse(member, f"{shard}:{member.name}")
                path = PurePosixPath(member.name)
                if not member.isfile() or _hidden(path):
                    continue
                last = member.name
                stem, _, name = path.name.partition(".")
                key, name = str(path.with_name(stem)), name.lower()
                if not name:
                    unread[" without an ending"] += 1
                    continue
                if group is None or group.key != key:
                    if group is not None:
                        yield group
                    group = _Group(key, repeated=key in keys)
                    keys.add(key)
                if name in group.read or name in group.others:
                    group.twice = name
                elif name != image.lower() and name.rpartition(".")[2] not in TEXTS | OBJECTS and name not in IMAGES:
                    group.others.append(name)
                    unread[f".{name}"] += 1
                elif member.size > LARGEST:
                    group.too_large = name
                else:
                    group.read[name] = _read(archive, member)
            _check_end_mark(archive)
            if group is not None:
                yield group
            _check_nothing_after(archive)
    except DataError:
        raise
    except Exception as error:  # whatever tarfile and the decompressors raise for what they do not understand
        after = f" beyond '{last}'" if last else ""
        reason = str(error).partition(":\n")[0] or type(error).__name__
        raise _Damaged(f"{shard}: cannot be read as a tar file{after}: {reason}") from error


@functools.lru_cache(maxsize=2**16)
def _check_compression(shard: Path, size: int, changed: int) -> None:
    """Read a compressed shard once: its checksum comes last, and damaged samples before it look like any others.

    One that is cut short passes: what is there of it is sound. Raises: DataError for another content than was compressed.
    """
    with tarfile.open(shard, mode="r:*") as archive:
        if isinstance(archive.fileobj, io.BufferedReader):
            return
        try:
            archive.fileobj.seek(0)
            while archive.fileobj.read(2**20):
                pass
        except EOFError:
            return
        except (OSError, zlib.error, lzma.LZMAError) as error:
            if "Not a gzipped file" not in str(error):  # something stands behind the archive
                raise _Damaged(f"{shard}: its compressed content is damaged, so none of it is read: {error}") from error


def _refuse(member: tarfile.TarInfo, where: str) -> None:
    path = PurePosixPath(member.name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts:
        raise DataError(f"{where}: this member points out of the archive; pack the shard with plain names")
    if member.issym() or member.islnk() or member.isdev():
        raise DataError(f"{where}: is a link or a device; pack the shard with plain files")


def _hidden(path: PurePosixPath) -> bool:
    """Whether a member is no part of a sample: `._x`, which macOS adds, `.DS_Store`, and `__x__`, WebDataset's notes on a shard."""
    notes = len(path.parts) == 1 and path.name.startswith("__") and path.name.endswith("__")
    return path.name.startswith(".") or notes or path.parts[0] == "__MACOSX"


def _check_end_mark(archive: tarfile.TarFile) -> None:
    """tarfile takes any header that it cannot read for the end. Raises: tarfile.ReadError where no block of zeros follows."""
    archive.fileobj.seek(archive.offset)
    if archive.fileobj.read(BLOCK) != bytes(BLOCK):
        raise tarfile.ReadError("it is cut short or damaged: there is no end mark")


def _check_nothing_after(archive: tarfile.TarFile) -> None:
    """tarfile, webdataset and datasets read the first of joined archives alone. Raises: tarfile.ReadError where more follows."""
    while rest := archive.fileobj.read(2**20):
        if rest.strip(b"\0"):
            raise tarfile.ReadError("more follows its end mark, as where archives were joined by `cat`; name each file by itself")


def _read(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = archive.extractfile(member)
    data = file.read() if file is not None else b""
    if len(data) != member.size:
        raise tarfile.ReadError(f"'{member.name}' is cut short")
    return data


def _row(place: str, group: _Group, image: str) -> tuple[dict[str, Any], HeldImage | None]:
    """A sample's row and image. Raises: DataError for members that contradict each other or cannot be read."""
    if group.repeated:
        raise DataError(f"{place}: stands twice in its shard; the members of a sample must follow each other")
    if group.twice:
        raise DataError(f"{place}: has two members .{group.twice}")
    if group.too_large:
        raise DataError(f"{place}: .{group.too_large} has more than {LARGEST:,} bytes, the most a member may have")
    row: dict[str, Any] = {}
    for name, data in group.read.items():
        kind = name.rpartition(".")[2]
        if name == image.lower() or kind not in TEXTS | OBJECTS:
            continue
        found = {name: _value(f"{place}: .{name}", kind, data)}
        if name in OBJECTS:
            found = found[name]
            if not isinstance(found, dict):
                raise DataError(f"{place}: .{name}: wants a JSON object, this is {type(found).__name__}")
        twice = row.keys() & found.keys()
        if twice:
            raise DataError(f"{place}: has two values of '{min(twice)}'")
        row |= found
    return {"__key__": group.key} | row, _image(place, group, row, image)


def _value(where: str, kind: str, data: bytes) -> Any:
    try:
        return parse_json(data) if kind in OBJECTS else data.decode("utf-8-sig").strip()
    except NotJson as error:
        raise DataError(f"{where}: {error}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: not UTF-8: {error.reason} at byte {error.start}") from error


def _image(place: str, group: _Group, row: dict[str, Any], image: str) -> HeldImage | None:
    """The field `image`, or else the only field that is called as image files are."""
    plain = [name for name in group.read if name in IMAGES]
    others = [name for name in group.others if name.rpartition(".")[2] in IMAGES]
    wanted = image.lower()
    strict = wanted.rpartition(".")[2] in IMAGES
    if wanted in group.read:
        chosen = wanted
    elif len(plain) == 1 and not strict:
        chosen = plain[0]
    elif plain or others:
        raise DataError(f"{place}: has the images {listing(f'.{name}' for name in plain + others)}; name one by data.columns.image")
    elif row.get(image):
        raise DataError(f"{place}: names the image {shown(row[image])}, but the shard has none beside it")
    else:
        return None
    return HeldImage(f"{place}.{chosen}", group.read[chosen])
