"""Words pydantic's validation errors for people: what was given, what fits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from dehvf_kit.api.config import REASONS
from dehvf_kit.errors import did_you_mean, listing, shown


def wording(detail: Mapping[str, Any], schema: type[BaseModel]) -> str:
    """One of pydantic's errors as a message: what was given, what fits."""
    given = detail.get("input")
    kind = detail["type"]
    if kind == "extra_forbidden":
        fields = _fields_at(schema, detail["loc"])
        return f"unknown field{did_you_mean(str(detail['loc'][-1]), fields)} Fields: {listing(fields)}"
    if kind == "missing":
        return "missing"
    if kind == "literal_error":
        options = detail["ctx"]["expected"].replace("'", "").replace(" or ", ", ").split(", ")
        return f"given {shown(given)}{did_you_mean(str(given), options)} One of: {listing(options)}"
    if kind == "value_error":
        return str(detail["msg"]).removeprefix("Value error, ")
    if kind in _WANTED:
        limits = {
            name: f"{limit:,.0f}" if limit == int(limit) else f"{limit:g}"
            for name, limit in detail.get("ctx", {}).items()
            if isinstance(limit, (int, float))
        }
        reason = REASONS.get(detail["ctx"]["le"]) if kind == "less_than_equal" else None
        because = f": {reason}" if reason else ""
        return f"given {shown(given)}; wants {_WANTED[kind].format(**limits)}{because}"
    for ending, wanted in _KINDS.items():
        if kind.startswith(ending):
            return f"given {shown(given)}; wants {wanted}"
    return f"given {shown(given)}; {detail['msg']}"


# What fits, for pydantic's error types and for the beginnings of their names.
_WANTED = {
    "greater_than": "more than {gt}",
    "greater_than_equal": "{ge} or more",
    "less_than": "less than {lt}",
    "less_than_equal": "{le} or less",
    "finite_number": "a finite number",
    "too_short": "{min_length} or more of them",
    "too_long": "{max_length} or fewer of them",
}
_KINDS = {
    "int_": "a whole number",
    "float_": "a number",
    "bool_": "true or false",
    "string_": "a text",
    "path_": "a path",
    "list_": "a list",
    "tuple_": "a list",
    "model_": "a mapping of fields",
    "dict_": "a mapping",
}


def _fields_at(schema: type[BaseModel], location: Sequence[int | str]) -> list[str]:
    """Names of the fields beside the one at `location`."""
    for step in location[:-1]:
        info = schema.model_fields.get(str(step))
        if info is None or not isinstance(info.annotation, type) or not issubclass(info.annotation, BaseModel):
            break
        schema = info.annotation
    return list(schema.model_fields)
