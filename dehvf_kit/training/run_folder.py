"""A training run's folder: who works in it, the record of what the run was begun with, and errors named after it.

The record (`run.json`) holds the resolved recipe, hashes of the data files and library versions; resuming compares it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

import torch
import transformers

from dehvf_kit import errors
from dehvf_kit._version import __version__
from dehvf_kit.adapter.files import ADAPTER, LOG
from dehvf_kit.data.samples import Sample
from dehvf_kit.errors import DataError, DehvfError, ImageError, RecipeError, TrainingError, shown
from dehvf_kit.recipe.files import flat
from dehvf_kit.recipe.plugin_manager import plugins
from dehvf_kit.recipe.recipe import Recipe, as_recipe
from dehvf_kit.training.checkpoints import checkpoints
from dehvf_kit.utils import atomic
from dehvf_kit.utils.atomic import exists, is_folder

try:
    import fcntl
except ImportError:  # Windows: two runs in one folder are not noticed there
    fcntl = None  # type: ignore[assignment]

CHECKPOINTS, LOCK, RECORD = "checkpoints", ".lock", "run.json"

RUNS, FOLDER_NAME = Path("runs"), re.compile(r"\w[\w.-]*")


def default_folder(name: str) -> Path:
    """`runs/NAME`. Raises: DehvfError for a recipe whose name cannot be a folder's."""
    if not FOLDER_NAME.fullmatch(name):
        raise DehvfError(f"name: '{name}' cannot name a folder; say where the adapter goes with --output")
    return RUNS / name


def lock_folder(place: Path) -> IO[str]:
    """A POSIX record lock: it ends with the process, however that ends, and forked workers do not inherit it.

    Raises: TrainingError where another process holds it.
    """
    lock = (place / LOCK).open("a+", encoding="ascii")
    try:
        if fcntl is not None:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:
        lock.seek(0)
        owner = lock.read().strip() or "unknown"
        lock.close()
        raise TrainingError(
            f"{place}: another run (process {owner}) is working in it; let it finish, or name another folder"
        ) from error
    lock.truncate(0)
    os.write(lock.fileno(), f"{os.getpid()}\n".encode())
    return lock


def holds_run(place: Path) -> bool:
    """Whether a run was begun in a folder and got as far as its first checkpoint."""
    return exists(place / ADAPTER) or bool(checkpoints(place / CHECKPOINTS))


class RunFolder:
    """A run's folder; inside `with` no other run can use it, and unfinished files of a killed run are removed.

    The adapter is the last thing a run writes: where it is, the run is finished.

    Args:
        place: the folder.
        resume: go on with the run that is there.
        writes: whether this process writes into it; of several processes the first does.

    Raises:
        DehvfError: on entering, where the folder holds a run already (without resume) or is not there (with it).
        TrainingError: on entering, where another process works in it, or it cannot be written.
    """

    def __init__(self, place: Path, resume: bool, writes: bool = True) -> None:
        self.place, self.resume = place, resume
        self.checkpoints, self.adapter = place / CHECKPOINTS, place / ADAPTER
        self._lock: IO[str] | None = None
        self._made = False
        self.writes = writes

    @property
    def finished(self) -> bool:
        """Whether the run's adapter is there."""
        return exists(self.adapter)

    def __enter__(self) -> RunFolder:
        there = exists(self.place)
        if there and not is_folder(self.place):
            raise DehvfError(f"{self.place}: is a file; name a folder")
        if self.resume and not there:
            raise DehvfError(f"{self.place}: holds no checkpoint to resume from; leave out --resume")
        if not self.resume and holds_run(self.place):
            raise DehvfError(f"{self.place}: holds a run already; name another folder, or go on with it by --resume (resume=True)")
        if self.writes:
            with contextlib.ExitStack() as stack, atomic.writing(self.place, TrainingError):
                stack.callback(self.__exit__)
                self._made = not there
                self.place.mkdir(parents=True, exist_ok=True)
                self._lock = lock_folder(self.place)
                atomic.check_new_files({}, {f"--output ({name})": self.place / name for name in (LOG, RECORD)})
                atomic.check_new_folder(self.checkpoints)
                for folder in (self.place, self.checkpoints):
                    atomic.clean_up(folder)
                stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        """Release the folder; one that was made here is removed where no run was begun in it."""
        if self._lock is None and not self._made:
            return
        if not exists(self.place / RECORD):
            with contextlib.suppress(OSError):
                if self._lock is not None:
                    (self.place / LOCK).unlink()
                if self._made:
                    self.place.rmdir()
        if self._lock is not None:
            self._lock.close()

    def write_log(self, rows: list[dict[str, Any]]) -> None:
        """Raises: TrainingError."""
        atomic.write_output(self.place / LOG, "".join(json.dumps(row) + "\n" for row in rows), TrainingError)

    def read_log(self) -> list[dict[str, Any]]:
        """The log of a finished run; empty where it cannot be read."""
        try:
            return [json.loads(line) for line in (self.place / LOG).read_text(encoding="utf-8").splitlines()]
        except (OSError, ValueError, RecursionError):
            return []


FORMAT = 1
BUILTIN = "built-in"
HEAD_BYTES = 1 << 14
THREADS = 4
NAMED = 5
NOT_READ = "unreadable"
"""In place of an image's digest: nothing was learned from it."""
# Fields that no trained weight depends on: they may differ between a run's parts.
FREE = (
    "name",
    "description",
    "published",
    "generation",
    "data.test",
    "training.num_workers",
    "training.cache_folder",
    "training.cache_limit_gib",
    "training.save_steps",
    "training.logging_steps",
    "training.max_bad_steps",
    "training.max_minutes",
)


# Of these three only the product, the effective batch, decides what a step sees.
BATCH = ("training.batch_size", "training.gradient_accumulation")


def record_of(recipe: Recipe, samples: Sequence[Sample], processes: int = 1) -> dict[str, Any]:
    """A run's record. processes: how many train together.

    Data files that the recipe names, also by a list, a `*` or their folder, are hashed whole; an image in a file of its own by
    its size and its first 16 KiB, which change when it is saved again; samples by their text. Images inside a table are hashed
    with the table.
    """
    images = sorted({image for sample in samples for image in sample.images if isinstance(image, Path)})
    named = _files(recipe)
    found = sorted(set(_found(recipe)) - set(named))
    with ThreadPoolExecutor(THREADS) as pool:
        heads = list(pool.map(_head, images))
        digests = list(pool.map(atomic.sha256, found))
    return {
        "format": FORMAT,
        "versions": versions(),
        "batch": {"processes": processes, "samples_per_step": recipe.training.samples_per_step(processes)},
        "code": code(),
        "recipe": recipe.resolved(),
        "files": {str(file): atomic.sha256(file) for file in named},
        "found": {str(file): digest for file, digest in zip(found, digests, strict=True)},
        "samples": {"count": len(samples), "sha256": _text(samples)},
        "streamed": not samples and recipe.data is not None and recipe.data.stream("train") is not None,
        "pictures": {str(file): head for file, head in zip(images, heads, strict=True)},
    }


def versions() -> dict[str, str]:
    """Of the kit and the two libraries that decide what a step computes."""
    return {"dehvf-kit": __version__, "torch": torch.__version__, "transformers": transformers.__version__}


def code() -> dict[str, str]:
    """The sha256 of the Python files of the kit and of each loaded plugin, by name, in short."""
    modules: dict[str, Any] = {"dehvf-kit": sys.modules["dehvf_kit"]}
    modules |= {name: module for name, module in plugins().manager.list_name_plugin() if name != BUILTIN and module}
    return {name: _code_of(module) for name, module in modules.items()}


def _code_of(module: Any) -> str:
    """Of all files of the package that a module belongs to, or of its own file."""
    root = sys.modules.get(module.__name__.partition(".")[0], module)
    file = Path(str(getattr(root, "__file__", None) or module.__file__))
    files = sorted(file.parent.rglob("*.py")) if hasattr(root, "__path__") else [file]
    digest = hashlib.sha256()
    for one in files:
        with contextlib.suppress(OSError):
            digest.update(f"{one.relative_to(file.parent)} {atomic.sha256(one)}\n".encode())
    return digest.hexdigest()[:16]


def write_record(folder: Path, record: Mapping[str, Any]) -> None:
    """Raises: OSError."""
    atomic.write_text(folder / RECORD, json.dumps(record, indent=1, default=str) + "\n")


def compare_records(folder: Path, now: Mapping[str, Any]) -> list[str]:
    """Compare a folder's record with the present one.

    Returns:
        A line for each library version, code and process count that changed, which do no harm.

    Raises:
        TrainingError: naming every field and file that changed and that the weights depend on, or where the record is
            missing or cannot be read.
    """
    file = folder / RECORD
    try:
        before = json.loads(file.read_text(encoding="utf-8"))
        number = before["format"]
        if number > FORMAT:
            raise TrainingError(f"{file}: format {number}, this kit reads up to {FORMAT}; upgrade dehvf-kit")
        batch, batch_now = before.get("batch"), now["batch"]
        changes = [*_fields(_with_new_fields(before["recipe"]), json.loads(json.dumps(now["recipe"], default=str)))]
        if batch is not None and batch["samples_per_step"] == batch_now["samples_per_step"]:
            if not now["streamed"] or _batches(before) == _batches(now):
                changes = [line for line in changes if not line.startswith(BATCH)]
        elif batch is not None:
            changes.append(_batch(batch, batch_now))
        changes += _shares(before["recipe"], now["recipe"]) if now["streamed"] else []
        before = {"found": now["found"], **before}  # as records before 0.1.0 are without it
        files = [line for kind in ("files", "found", "pictures") for line in _altered(before[kind], now[kind])]
        if not changes and not files and before["samples"] != now["samples"]:
            counts = before["samples"]["count"], now["samples"]["count"]
            files = ["the training samples' text" + (": {} then, {} now".format(*counts) if len(set(counts)) > 1 else "")]
        versions_then, code_then = dict(before["versions"]), dict(before.get("code") or now["code"])
        count = batch["processes"] if batch is not None else batch_now["processes"]
    except FileNotFoundError as error:
        raise TrainingError(f"{folder}: has checkpoints but no {RECORD}, which says what they belong to") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise TrainingError(f"{file}: cannot be read: {error}") from error
    if changes or files:
        lines = [f"{folder}: the run was begun with other settings or data; put them back, or name another folder"]
        raise TrainingError("\n".join([*lines, *(f"  {line}" for line in [*changes, *_few(files)])]))
    notes = [
        f"{name} {versions_then.get(name)} then, {version} now"
        for name, version in now["versions"].items()
        if versions_then.get(name) != version
    ]
    names = dict.fromkeys([*code_then, *now["code"]])
    notes += [f"the code of {name} changed" for name in names if code_then.get(name) != now["code"].get(name)]
    return notes + ([f"processes: {count} then, {batch_now['processes']} now"] if count != batch_now["processes"] else [])


def _batch(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What to do where a step sees more or fewer samples than it did: the steps that are left would be others."""
    wanted = before["samples_per_step"]
    return (
        f"samples per step: {wanted} then (processes: {before['processes']}), {now['samples_per_step']} now (processes: "
        f"{now['processes']}); start as many processes as then, or make batch_size x gradient_accumulation x processes {wanted}"
    )


def _shares(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Another number of data workers, each of which takes its share of a stream: a resumed run would not be where it was."""
    then, present = (int(recipe["training"]["num_workers"]) for recipe in (before, now))
    changed = max(1, then) != max(1, present)
    return [f"training.num_workers, which share a stream: {then} then, {present} now"] if changed else []


def _batches(record: Mapping[str, Any]) -> tuple[int, int]:
    """Data workers, and where they are several the rows that one of them hands over at a time to all processes."""
    training = record["recipe"]["training"]
    workers = max(1, int(training["num_workers"]))
    return workers, int(training["batch_size"]) * int(record["batch"]["processes"]) if workers > 1 else 0


def _with_new_fields(before: Mapping[str, Any]) -> Mapping[str, Any]:
    """A record's recipe with the defaults of fields that are newer than it; as it is where it is no recipe any more."""
    try:
        return dict(json.loads(json.dumps(as_recipe(before).resolved(), default=str)))
    except RecipeError:
        return before


def _fields(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    old, new = dict(flat(before)), dict(flat(now))
    for name in dict.fromkeys([*old, *new]):
        free = any(name == one or name.startswith(f"{one}.") for one in FREE)
        if not free and old.get(name) != new.get(name):
            yield f"{name}: {shown(old.get(name))} then, {shown(new.get(name))} now"


def _altered(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    for name in dict.fromkeys([*before, *now]):
        if name not in now:
            yield f"{name}: is no longer read"
        elif name not in before:
            yield f"{name}: was not read then"
        elif before[name] not in (now[name], NOT_READ):
            yield f"{name}: changed since the run began"


def _few(lines: Sequence[str]) -> list[str]:
    return [*lines[:NAMED], *([f"and {len(lines) - NAMED} more files"] if len(lines) > NAMED else [])]


def _files(recipe: Recipe) -> list[Path]:
    """Files among the settings of the data section, except the test split's."""
    settings = recipe.resolved()["data"] or {}
    found = [Path(value) for name, value in flat(settings) if isinstance(value, str | Path) and name != "test"]
    return [path for path in found if len(str(path)) < 4096 and _is_file(path)]


def _found(recipe: Recipe) -> Sequence[Path]:
    """Files that a list, a `*` or a folder stands for; none where they are not there, which whoever reads them reports."""
    with contextlib.suppress(DataError):
        return recipe.data.files() if recipe.data is not None else ()
    return ()


def _is_file(path: Path) -> bool:
    try:
        return os.path.isfile(path)
    except (OSError, ValueError):
        return False


def _head(image: Path) -> str:
    """Sixteen hexadecimal digits; NOT_READ where it cannot be read, which training reports itself."""
    try:
        with image.open("rb") as opened:
            head = opened.read(HEAD_BYTES)
            size = image.stat().st_size
    except OSError:
        return NOT_READ
    return hashlib.sha256(f"{size} ".encode() + head).hexdigest()[:16]


def _text(samples: Sequence[Sample]) -> str:
    digest = hashlib.sha256()
    for sample in samples:
        images = map(str, sample.images or (None,))
        digest.update(json.dumps([sample.id, sample.question, sample.answer, *images]).encode())
    return digest.hexdigest()


DEAD_WORKER = re.compile(r"DataLoader worker \(pid\(?s?\)? ?[\d, ]+\)|DataLoader worker .*exited unexpectedly")


@contextlib.contextmanager
def training_errors(folder: RunFolder) -> Iterator[None]:
    """Inside, a dead data worker, an error raised in one, and a disk that cannot be written become the kit's errors.

    What a tracker's thread meets at a full disk is not printed: the thread of the run meets it too.
    """
    printed, threading.excepthook = threading.excepthook, _other_than_disk
    try:
        yield
    except DehvfError as error:
        original = _from_worker(error)
        if isinstance(original or error, ImageError):
            raise _curable(folder, str(original or error)) from None
        if original is None:
            raise
        raise original from None
    except RuntimeError as error:
        if not DEAD_WORKER.search(str(error)):
            raise
        raise TrainingError(
            f"a data worker died ({str(error).splitlines()[0]}): often the machine was out of memory or shared memory; "
            f"{_last(folder)}, with a lower training.num_workers if it comes again"
        ) from error
    except OSError as error:
        before, after = ("cannot be written: ", "; make room") if error.errno in atomic.FULL else ("", "")
        place = os.fsdecode(error.filename or folder.place)  # a tracker names its file in bytes
        raise TrainingError(f"{place}: {before}{error.strerror or error}{after}; {_last(folder)}") from error
    finally:
        threading.excepthook = printed


def _curable(folder: RunFolder, message: str) -> ImageError:
    """The message of an image that cannot be read, with what would do. One in a file of its own may be another on resuming."""
    file = re.search(r"image '(.*?)'", message)
    mended = ""
    if file and (os.path.lexists(file[1]) or "there is no image" in message):
        mended = f"put a readable image there; {_last(folder)}; or "
        if folder.writes:
            _forget_image(folder.place / RECORD, file[1])
    return ImageError(f"{message}; {mended}begin a run with data.on_bad_sample=skip, which leaves such samples out")


def _forget_image(record: Path, image: str) -> None:
    """Note in a run's record that an image was not read, so that another in its place is none that the run was begun with."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
        found = json.loads(record.read_text(encoding="utf-8"))
        if image in found["pictures"]:
            found["pictures"][image] = NOT_READ
            write_record(record.parent, found)


def _other_than_disk(raised: threading.ExceptHookArgs) -> None:
    if not (isinstance(raised.exc_value, OSError) and raised.exc_value.errno in atomic.FULL):
        threading.__excepthook__(raised)


def _last(folder: RunFolder) -> str:
    """How to go on with a run that ended early."""
    kept = checkpoints(folder.checkpoints)
    if kept:
        return f"{kept[0]} is whole: go on from it by --resume"
    return f"there is no checkpoint yet: run the command again{' with --resume' if exists(folder.place / RECORD) else ''}"


def _from_worker(error: DehvfError) -> DehvfError | None:
    """The error as it was raised in a worker: torch hands it over with the worker's traceback as its text."""
    text = str(error)
    if "in DataLoader worker process" not in text:
        return None
    found = re.findall(r"^dehvf_kit[\w.]*\.\w+: ", text, re.MULTILINE)
    if not found:
        return DataError(text.splitlines()[-1])
    message = text.rpartition(found[-1])[2].strip()
    kind = getattr(errors, found[-1].rpartition(".")[2].removesuffix(": "), DataError)
    return kind(message) if issubclass(kind, (DataError, TrainingError)) else DehvfError(message)
