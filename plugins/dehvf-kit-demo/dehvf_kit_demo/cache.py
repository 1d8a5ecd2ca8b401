"""A folder made once from a source file, kept under a name that holds the file's hash and the converter's version."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from dehvf_kit.errors import DehvfError
from dehvf_kit.utils.atomic import refused

LEFTOVER_AGE_S = 3600.0
"""A temporary folder that has not been written to for this long belonged to a process that was killed."""


def cache_root() -> Path:
    """`$DEHVF_KIT_CACHE`, else `$XDG_CACHE_HOME/dehvf-kit`, else `~/.cache/dehvf-kit`; not created here."""
    own = os.environ.get("DEHVF_KIT_CACHE")
    if own:
        return Path(own).expanduser().absolute()
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared).expanduser() if shared else Path.home() / ".cache").absolute() / "dehvf-kit"


def converted_folder(name: str, source: Path, converter_version: int, convert: Callable[[Path, Path], None]) -> Path:
    """The cache's folder `name-<hash of source>-v<converter_version>`; `convert(source, folder)` makes it if absent.

    `convert` writes into a temporary folder beside the final one, which is then renamed: a process that is killed
    leaves nothing that looks finished, and of two processes at once the first to end wins, the other using its result.
    Hashing the source takes about 0.1 s per 100 MB at each call.
    Raises: DehvfError where the cache cannot be written; whatever `convert` raises.
    """
    root = cache_root()
    key = f"{name}-{_file_hash(source)}-v{converter_version}"
    target = root / key
    _remove_leftovers(root, key)
    if target.is_dir():
        return target
    try:
        root.mkdir(parents=True, exist_ok=True)
        working = Path(tempfile.mkdtemp(prefix=f".{key}-", dir=root))
        try:
            print(f"dehvf-kit-demo: converting {source.name} to {target} (once)", file=sys.stderr, flush=True)
            convert(source, working)
            working.chmod(0o755)  # mkdtemp makes it private
            _rename_or_keep_existing(working, target)
        finally:
            shutil.rmtree(working, ignore_errors=True)
    except Exception as error:
        found = refused(error)
        if found is None:
            raise
        raise DehvfError(
            f"dehvf-kit-demo: cannot write the cache folder {root}: {found}; "
            "set DEHVF_KIT_CACHE to a folder with 1 GB of free space"
        ) from error
    return target


def _rename_or_keep_existing(working: Path, target: Path) -> None:
    try:
        working.rename(target)
    except OSError:
        if not target.is_dir():  # else another process was first: its result is the same
            raise


def _remove_leftovers(root: Path, key: str) -> None:
    for leftover in root.glob(f".{key}-*"):
        try:
            newest = max(path.stat().st_mtime for path in (leftover, *leftover.iterdir()))
        except OSError:  # its process just ended, or it is another user's
            continue
        if time.time() - newest > LEFTOVER_AGE_S:
            shutil.rmtree(leftover, ignore_errors=True)


def _file_hash(path: Path) -> str:
    """The first 16 hexadecimal digits of the file's SHA-256."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()[:16]
