"""What can go wrong inside a training loop, in the kit's own words."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from dehvf_kit import errors
from dehvf_kit.errors import DataError, DehvfError, TrainingError
from dehvf_kit.training.checkpoints import checkpoints
from dehvf_kit.training.run_folder import RunFolder

DEAD_WORKER = re.compile(r"DataLoader worker \(pid\(?s?\)? ?[\d, ]+\)|DataLoader worker .*exited unexpectedly")


@contextmanager
def told(folder: RunFolder) -> Iterator[None]:
    """Inside, a data worker that died, an error out of one, and a disk that cannot be written become the kit's errors."""
    try:
        yield
    except DehvfError as error:
        original = _from_worker(error)
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
        raise TrainingError(f"{error.filename or folder.place}: {error.strerror or error}; {_last(folder)}") from error


def _last(folder: RunFolder) -> str:
    kept = checkpoints(folder.checkpoints)
    return (
        f"{kept[0]} is whole: go on from it by --resume"
        if kept
        else "begin again by --resume, there is no checkpoint yet"
    )


def _from_worker(error: DehvfError) -> DehvfError | None:
    """The error as it was raised in a worker: torch hands it over with the worker's traceback as its text."""
    text = str(error)
    if "in DataLoader worker process" not in text:
        return None
    found = re.findall(r"^dehvf_kit\.errors\.(\w+): ", text, re.MULTILINE)
    if not found:
        return DataError(text.splitlines()[-1])
    message = text.rpartition(f"dehvf_kit.errors.{found[-1]}: ")[2].strip()
    kind = getattr(errors, found[-1], DataError)
    return kind(message) if issubclass(kind, (DataError, TrainingError)) else DehvfError(message)
