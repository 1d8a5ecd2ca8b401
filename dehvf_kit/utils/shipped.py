"""Files that come with the kit beside its code, in a clone of the repository and in an installed wheel alike."""

from __future__ import annotations

import os
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]
# The folder that holds `recipes` and `docs`: a wheel has them inside the package, a clone beside it.
HOME = _PACKAGE if (_PACKAGE / "recipes").is_dir() else _PACKAGE.parent


def or_shipped(file: Path, asked: Path | None = None) -> Path:
    """`file`, or where there is none, the kit's own recipe if it was asked for as `recipes/NAME`."""
    asked = asked or file
    if os.path.lexists(file) or asked.parts[:1] != ("recipes",) or not os.path.isfile(HOME / asked):
        return file
    return HOME / asked
