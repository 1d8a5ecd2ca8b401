"""Files and folders that appear whole or not at all, and folders that vanish at once: a kill at any moment leaves no half.

What is being written or taken away stands beside its target under a name that begins with `.unfinished-`; whoever owns the
folder calls `clean_up` when it starts.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from dehvf_kit.errors import DehvfError

UNFINISHED = ".unfinished-"


def beside(target: Path) -> Path:
    """A name next to the target that nothing has yet; it keeps the target's ending."""
    return target.with_name(f"{UNFINISHED}{uuid.uuid4().hex[:12]}-{target.name}")


def write_file(target: Path, write: Callable[[Path], object]) -> Path:
    """`write(path)` beside the target, flush, rename. Raises: OSError; then the target is as it was before."""
    part = beside(target)
    try:
        write(part)
        os.chmod(part, 0o644)
        sync(part)
        os.replace(part, target)
        sync(target.parent)
    finally:
        part.unlink(missing_ok=True)
    return target


def write_text(target: Path, text: str) -> Path:
    """A text file in UTF-8, as `write_file` writes."""
    return write_file(target, lambda part: part.write_text(text, encoding="utf-8"))


def write_output(target: Path, content: str | Callable[[Path], object]) -> Path:
    """A file that the user asked for: a text, or what `content(path)` writes. Raises: DehvfError where it cannot be written."""
    try:
        return write_text(target, content) if isinstance(content, str) else write_file(target, content)
    except OSError as error:
        raise DehvfError(f"{target}: cannot be written: {error.strerror or error}") from error


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """A folder to fill; it becomes `target`, which must not exist, when the block ends well, else it is taken away.

    Raises: OSError where it cannot be written.
    """
    part = beside(target)
    os.makedirs(part)
    try:
        yield part
        publish(part, target)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise


def publish(folder: Path, target: Path) -> None:
    """Flush everything in a folder, then give it its name. Raises: OSError, such as where `target` exists and is not empty."""
    for place, _, files in os.walk(folder):
        for name in files:
            sync(Path(place) / name)
        sync(Path(place))
    os.rename(folder, target)
    sync(target.parent)


def remove_folder(folder: Path) -> None:
    """Take a folder away: its name goes first and at once, then what is in it."""
    going = beside(folder)
    os.rename(folder, going)
    shutil.rmtree(going, ignore_errors=True)


def clean_up(folder: Path) -> None:
    """Take away what a killed process left unfinished in a folder that no other process works in."""
    for left in folder.glob(f"{UNFINISHED}*"):
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Wait until a file's bytes, or a folder's names, are on the disk."""
    if os.name == "nt" and path.is_dir():
        return  # Windows opens no folders
    handle = os.open(path, os.O_RDWR if path.is_file() and os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256(file: Path) -> str:
    """Of a file's bytes, in hexadecimal digits. Raises: OSError."""
    digest = hashlib.sha256()
    with file.open("rb") as opened:
        while chunk := opened.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
