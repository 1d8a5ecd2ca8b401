"""What is wrong with a data set, all of it at once, grouped by kind."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dehvf_kit.errors import DataError
from dehvf_kit.utils.atomic import is_file

SHOWN = 3
PREPARE = "dehvf-kit prepare lists all of it"


@dataclass(frozen=True)
class Issue:
    """One thing worth knowing of a data set: its `kind` (`missing image`), its place (a sample's id, a line), details.

    fatal: False for what is handled, as the documentation of the reader says.
    """

    kind: str
    place: str
    detail: str = ""
    fatal: bool = True

    def __str__(self) -> str:
        return f"{self.place} ({self.detail})" if self.detail else self.place


def grouped(issues: Iterable[Issue]) -> dict[str, list[Issue]]:
    """Issues by kind, in the order in which the kinds first appear."""
    found: dict[str, list[Issue]] = {}
    for issue in issues:
        found.setdefault(issue.kind, []).append(issue)
    return found


def refuse(source: str, issues: Sequence[Issue], advice: str = "") -> None:
    """Raises: DataError with a line for each kind of fatal issue, how many there are and the first few, and the advice."""
    lines = []
    for kind, group in grouped(issue for issue in issues if issue.fatal).items():
        places = ", ".join(str(issue) for issue in group[:SHOWN])
        more = f" and {len(group) - SHOWN} more" if len(group) > SHOWN else ""
        lines.append(f"{source}: {kind}: {places}{more}")
    if lines:
        raise DataError("\n".join([*lines, f"{source}: {advice}"] if advice else lines))


def require_file(file: str | Path, field: str, advice: str = "") -> None:
    """Raises: DataError where a file that the recipe's `field` names is not there, with the places where it was looked for."""
    if not is_file(Path(file)):
        raise DataError(f"{field}: there is no file '{file}'{looked_in(file)}{advice}")


def looked_in(path: str | Path) -> str:
    """Where a relative path was looked for, as the end of a message."""
    return "" if Path(path).is_absolute() else f"; looked beside the recipe and in '{Path.cwd()}'"


def note(issues: list[Issue] | None, issue: Issue, error: DataError) -> None:
    """Add an issue to `issues`, the error's message as its detail. Raises: the error, where there is no such list."""
    if issues is None:
        raise error
    issues.append(replace(issue, detail=str(error).removeprefix(f"{issue.place}: ")))
