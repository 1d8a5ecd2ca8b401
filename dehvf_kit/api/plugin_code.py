"""Where the kit calls code that a plugin brought: whatever is raised there becomes one line that names the plugin's own place.

The kit's own components, towers and data sets keep their tracebacks, since what goes wrong in them is the kit's to mend.
"""

from __future__ import annotations

import inspect
import os
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from dehvf_kit.errors import DehvfError, PluginError

DEBUG = "DEHVF_KIT_DEBUG"
"""The environment variable under which errors of plugins are left as they were raised."""


@contextmanager
def plugin_code(owner: object, where: str = "") -> Iterator[None]:
    """Inside, an exception out of a plugin's code becomes a PluginError; the kit's own (DehvfError, ConfigMismatchError) pass.

    Args:
        owner: the config whose code is called.
        where: its place in the recipe (`graph.fuser`), where the caller does not say it.
    """
    try:
        yield
    except (Exception, SystemExit) as error:
        wrapped = wrapped_as(error, owner, where)
        if wrapped is None:
            raise
        raise wrapped from error


def raised(error: BaseException) -> str:
    """An exception in one line: its class and message; of `sys.exit` its exit code."""
    if isinstance(error, SystemExit):
        return f"SystemExit: it calls sys.exit({error.code!r}), which would end every command"
    reason = " ".join(str(error).split())
    return f"{type(error).__name__}: {reason}" if reason else type(error).__name__


def wrapped_as(error: BaseException, owner: object, where: str = "") -> PluginError | None:
    """The PluginError to raise from an exception; None where it should go on as it is."""
    kind = type(owner)
    package, kit = kind.__module__.partition(".")[0], __name__.partition(".")[0]
    ours = isinstance(error, DehvfError) or kit in (package, type(error).__module__.partition(".")[0])
    if ours or _out_of_memory(error) or os.environ.get(DEBUG):
        return None
    name = getattr(owner, "type", kind.__name__)
    place = _place(error, kind, package)
    message = f"the plugin's '{name}' raised {raised(error)} ({place}); {DEBUG}=1 shows the traceback"
    return PluginError(f"{where}: {message}" if where else message)


def _place(error: BaseException, kind: type, package: str) -> str:
    """`file.py:12, in build`: the innermost frame in the plugin, else the file of its config class."""
    frames = [
        (frame.f_code, line)
        for frame, line in traceback.walk_tb(error.__traceback__)
        if str(frame.f_globals.get("__name__")).partition(".")[0] == package
    ]
    if frames:
        code, line = frames[-1]
        return f"{code.co_filename}:{line}, in {code.co_name}"
    try:
        return inspect.getfile(kind)
    except (TypeError, OSError):
        return kind.__module__


def _out_of_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
