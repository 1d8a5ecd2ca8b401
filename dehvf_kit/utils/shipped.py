"""The folder of what comes with the kit beside its code: `recipes`, `launch` and `docs`."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]
# A wheel has them inside the package, a clone of the repository beside it.
HOME = _PACKAGE if (_PACKAGE / "recipes").is_dir() else _PACKAGE.parent
