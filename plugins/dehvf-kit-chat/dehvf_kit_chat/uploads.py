"""Images that were uploaded: kept in memory under random ids, so that no request ever names a file."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from hmac import compare_digest
from io import BytesIO
from threading import Lock
from typing import IO

from dehvf_kit.errors import DataError

KEPT = 32  # images
MOST = 8  # images of one question
KEPT_SIZES = 8  # times the largest image
INCOMING = 4  # images received at the same time
MAX_NAME = 200  # characters


@dataclass(frozen=True)
class Upload:
    """One uploaded image in memory; messages call it by its name."""

    name: str
    data: bytes = field(repr=False)

    def open(self, mode: str = "rb") -> IO[bytes]:
        return BytesIO(self.data)

    def read_bytes(self) -> bytes:
        return self.data

    def __str__(self) -> str:
        return self.name


class TooLarge(DataError):
    """An image of more bytes than one may have."""


class TooMany(DataError):
    """More images than are received at the same time."""


class Uploads:
    """What each session uploaded. Newer images replace the oldest; nothing is written to disk.

    At most `KEPT` images and `KEPT_SIZES` times the largest image are held, and `INCOMING` more while they are received.

    Args:
        max_mb: the largest image file, in MiB.
    """

    def __init__(self, max_mb: float) -> None:
        self.max_mb, self.limit = max_mb, int(max_mb * 2**20)
        self._kept: dict[str, tuple[str, Upload]] = {}
        self._incoming = 0
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._kept)

    async def receive(self, session: str, name: str, announced: int, chunks: AsyncIterator[bytes]) -> tuple[str, str]:
        """Keep an image.

        Args:
            session: whose it is; a session that has no image gets a new, random name.
            name: what the sender calls the file; used in messages alone.
            announced: bytes as the sender counts them, 0 if unknown. The chunks are counted in any case.

        Returns:
            Session and id. Both are needed to find the image.

        Raises:
            TooLarge: before more than the limit is held.
            TooMany: before anything is held.
        """
        if announced > self.limit:
            raise self.too_large()
        self._begin()
        try:
            data = bytearray()
            async for chunk in chunks:
                if len(data) + len(chunk) > self.limit:
                    raise self.too_large()
                data += chunk
            return self._keep(session, Upload(_plain(name), bytes(data)))
        finally:
            with self._lock:
                self._incoming -= 1

    def find(self, session: str, id: str) -> Upload:
        """The image of an id. Raises: DataError unless this session uploaded it and it is still held."""
        with self._lock:
            owner, upload = self._kept.get(id, ("", None))
        if upload is None or not compare_digest(owner.encode(), session.encode()):
            raise DataError("this page does not hold that image (newer ones replace the oldest); choose it again")
        return upload

    def find_all(self, session: str, ids: str) -> list[Upload]:
        """The images of ids with spaces between them. Raises: DataError as `find` does, and for more than a question may have."""
        each = ids.split(" ") if ids else []
        if len(each) > MOST:
            raise self.too_many()
        return [self.find(session, id) for id in each]

    def _begin(self) -> None:
        with self._lock:
            if self._incoming >= INCOMING:
                raise TooMany(f"{INCOMING} images are being uploaded already; try again in a moment")
            self._incoming += 1

    def _keep(self, session: str, upload: Upload) -> tuple[str, str]:
        id = secrets.token_urlsafe(32)
        with self._lock:
            if all(owner != session for owner, _ in self._kept.values()):
                session = secrets.token_urlsafe(32)
            self._kept[id] = session, upload
            while len(self._kept) > KEPT or self._bytes() > KEPT_SIZES * self.limit:
                del self._kept[next(iter(self._kept))]
        return session, id

    def _bytes(self) -> int:
        return sum(len(upload.data) for _, upload in self._kept.values())

    def too_many(self) -> DataError:
        """What is said of more images than a question may have."""
        return DataError(f"a question has at most {MOST} images; remove some")

    def too_large(self) -> TooLarge:
        """What is said of an image over the limit."""
        return TooLarge(f"the image has more than {self.max_mb:g} MiB; choose a smaller one, or raise --max-upload-mb")


def _plain(name: str) -> str:
    """The last part of a file's name, without control characters."""
    last = name.replace("\\", "/").rpartition("/")[2]
    return "".join(letter for letter in last if letter.isprintable())[:MAX_NAME] or "image"
