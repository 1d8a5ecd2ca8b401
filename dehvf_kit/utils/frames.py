"""Rows of plain data as a pandas DataFrame; pandas is imported when one is asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dehvf_kit.errors import DehvfError


def frame(rows: Sequence[Mapping[str, Any]]) -> Any:
    """A DataFrame of some rows. Raises: DehvfError where pandas is not installed."""
    try:
        import pandas
    except ImportError as error:
        raise DehvfError("to_pandas needs pandas: pip install pandas") from error
    return pandas.DataFrame(list(rows))
