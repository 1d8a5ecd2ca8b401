"""Files and folders that appear whole or not at all, and folders that vanish at once: a kill at any moment leaves no half.

What is being written or taken away stands beside its target under a name that begins with `.unfinished-`; whoever owns the
folder calls `clean_up` when it starts. Files that belong together are replaced in an existing folder by `files_replaced`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import stat
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from dehvf_kit.errors import DehvfError

UNFINISHED = ".unfinished-"
PENDING, REMOVED = ".replacing", ".removed"
"""A folder of new files that only have to be moved to their places, and the list, within it, of the files to be removed."""


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


FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""A full disk, a used-up quota, a limit on the size of a file."""


def refused(error: BaseException) -> OSError | None:
    """What the system refused; None for other errors. Some name it in a text: `(os error 28)`, or `[Errno 28]` of `copytree`."""
    if isinstance(error, OSError) and not isinstance(error, shutil.Error):
        return error
    number = re.search(r"\[Errno (\d+)\]" if isinstance(error, shutil.Error) else r"\(os error (\d+)\)", str(error))
    return OSError(int(number[1]), os.strerror(int(number[1]))) if number else None


def unwritable(place: object, error: OSError) -> str:
    """The message for a place that cannot be written, with what would do."""
    cure = "make it writable, or name another place"
    if error.errno in FULL:
        cure = "make room and run the command again"
    elif error.errno in (errno.EEXIST, errno.ENOTDIR):
        cure = "a file is where a folder should be; name another place"
    return f"{place}: cannot be written: {error.strerror or error}; {cure}"


@contextmanager
def writing(place: object, kind: type[DehvfError] = DehvfError) -> Iterator[None]:
    """Inside, what the system refuses becomes one error of that kind, with the place, the reason and what would do."""
    try:
        yield
    except Exception as error:
        found = refused(error)
        if found is None:
            raise
        raise kind(unwritable(place, found)) from error


def write_output(target: Path, content: str | Callable[[Path], object], kind: type[DehvfError] = DehvfError) -> Path:
    """A file that the user asked for: a text, or what `content(path)` writes. Raises: `kind` where it cannot be written."""
    with writing(target, kind):
        return write_text(target, content) if isinstance(content, str) else write_file(target, content)


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


@contextmanager
def files_replaced(folder: Path, owned: Collection[str] = ()) -> Iterator[Path]:
    """A folder to fill with files that replace those of the same names in `folder`, all of them or none; others stay.

    The new files are flushed in a folder within, which is then renamed to `.replacing`. From that moment on they count:
    moving them to their places is finished here, or by `finish_replacing` after a kill.

    Args:
        folder: an existing folder.
        owned: names of files that are removed with the replacement where it does not bring them.

    Raises:
        OSError: where it cannot be written; then the folder is as it was before.
    """
    finish_replacing(folder)
    for left in folder.glob(f"{UNFINISHED}*-{PENDING}"):
        shutil.rmtree(left, ignore_errors=True)
    part = beside(folder / PENDING)
    os.mkdir(part)
    try:
        yield part
        for file in _files_in(part):
            if (folder / file).is_dir():
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(folder / file))
        gone = [name for name in owned if (folder / name).is_file() and not (part / name).exists()]
        (part / REMOVED).write_text("\n".join(gone), encoding="utf-8")
        publish(part, folder / PENDING)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    finish_replacing(folder)


def finish_replacing(folder: Path) -> None:
    """Finish what a killed `files_replaced` began; does nothing where there is nothing. Raises: OSError."""
    pending = folder / PENDING
    if not pending.is_dir():
        return
    names: list[str] = []
    with contextlib.suppress(FileNotFoundError):  # here and below: another process may be finishing it too
        names = (pending / REMOVED).read_text(encoding="utf-8", errors="replace").splitlines()
    for name in names:
        if name and name == Path(name).name:
            (folder / name).unlink(missing_ok=True)
    for file in _files_in(pending):
        if str(file) != REMOVED:
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileNotFoundError):
                os.replace(pending / file, folder / file)
    sync(folder)
    remove_folder(pending)


def cache_folder() -> Path:
    """Where the kit keeps what it can make again: `$DEHVF_KIT_CACHE`, or `dehvf-kit` where the system keeps caches."""
    own, system = os.environ.get("DEHVF_KIT_CACHE"), os.environ.get("XDG_CACHE_HOME")
    return Path(own) if own else Path(system or Path.home() / ".cache") / "dehvf-kit"


def _files_in(folder: Path) -> list[Path]:
    """All files below a folder, by their paths within it."""
    return sorted(path.relative_to(folder) for path in folder.rglob("*") if not path.is_dir())


def publish(folder: Path, target: Path) -> None:
    """Flush everything in a folder, then give it its name. Raises: OSError, such as where `target` exists and is not empty."""
    for place, _, files in os.walk(folder):
        for name in files:
            sync(Path(place) / name)
        sync(Path(place))
    os.rename(folder, target)
    sync(target.parent)


def remove_folder(folder: Path) -> None:
    """Take a folder away: its name goes first and at once, then what is in it; another process may be doing the same."""
    going = beside(folder)
    with contextlib.suppress(FileNotFoundError):
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
    import hashlib  # not for `--help`

    digest = hashlib.sha256()
    with file.open("rb") as opened:
        while chunk := opened.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


LONGEST = 200
"""Characters of a path that a message shows."""


def exists(path: Path) -> bool:
    """Whether anything is there. Raises: DehvfError where nobody can look, as at a path that is too long."""
    return _mode(path) is not None


def is_file(path: Path) -> bool:
    """Whether a file is there. Raises: DehvfError as `exists` does."""
    return stat.S_ISREG(_mode(path) or 0)


def is_folder(path: Path) -> bool:
    """Whether a folder is there. Raises: DehvfError as `exists` does."""
    return stat.S_ISDIR(_mode(path) or 0)


def _mode(path: Path) -> int | None:
    """Kind and permissions of what is at a path; None where nothing is."""
    try:
        return path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:  # too long a name, a folder that is closed, links in a circle, a null character
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        shown = str(path) if len(str(path)) <= LONGEST else f"{str(path)[:LONGEST]}..."
        raise DehvfError(f"{shown}: cannot be looked at: {reason}") from error


def check_new_files(files: Mapping[str, Path | None], replaced: Mapping[str, Path] | None = None) -> None:
    """Refuse files that cannot be written, before anything is computed.

    Args:
        files: by option, files to be made; None where the option was not given.
        replaced: by option, files that will be written anew whether they are there or not.

    Raises:
        DehvfError: for a file that is there already, a folder that is missing or cannot be written into, and one file that
            two options name.
    """
    named = {option: file for option, file in files.items() if file is not None}
    taken: dict[str, str] = {}
    for option, file in [*named.items(), *(replaced or {}).items()]:
        if option in named and os.path.lexists(file):
            raise DehvfError(f"{file}: exists already; name another {option}")
        _try(file, option)
        earlier = taken.setdefault(os.path.normcase(os.path.realpath(file)), option)
        if earlier != option:
            raise DehvfError(f"{file}: both {earlier} and {option} would write it; name two files")


def check_new_folder(folder: Path, option: str = "--output") -> None:
    """Refuse a folder that cannot be made or written into, before anything is computed. Raises: DehvfError."""
    place = folder
    while not exists(place) and place != place.parent:
        place = place.parent
    _try(folder, option, place / folder.name)


def _try(file: Path, option: str, beside_it: Path | None = None) -> None:
    """Make a file beside it, as writing does, and take it away."""
    trial = beside(beside_it or file)
    try:
        if beside_it is None and is_folder(file):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        with trial.open("xb"):
            pass
        trial.unlink()
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        cure = "give --no-store, or leave --store out" if option.startswith("--store") else "name another place"
        if isinstance(error, NotADirectoryError):
            cure = f"a file is where a folder should be; {cure}"
        raise DehvfError(f"{option} {file}: cannot be written: {reason}; {cure}") from error
