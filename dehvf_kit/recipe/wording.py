"""Words pydantic's validation errors for people: what was given, what fits."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from dehvf_kit.api.config import REASONS
from dehvf_kit.errors import did_you_mean, listing, shown


def faults(errors: Sequence[Mapping[str, Any]], given: Any, schema: type[BaseModel]) -> dict[tuple[str, ...], str]:
    """pydantic's errors on what was given, by their places in it: one message for all kinds that a field may be of."""
    at: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
    for detail in errors:
        at.setdefault(_place(detail, given), []).append(detail)
    inner = {place[:end] for place in at for end in range(len(place))}  # what is inside says more
    return {place: _wording(details, schema) for place, details in at.items() if place not in inner}


def _place(detail: Mapping[str, Any], inside: Any) -> tuple[str, ...]:
    """Where an error is, without the names that pydantic gives to the kinds of a union."""
    steps = []
    for step in detail["loc"]:
        if (step in inside) if isinstance(inside, Mapping) else isinstance(inside, list) and step in range(len(inside)):
            inside = inside[step]
        elif detail["type"] != "missing" or step != detail["loc"][-1]:
            continue
        steps.append(str(step))
    return tuple(steps)


def _wording(details: Sequence[Mapping[str, Any]], schema: type[BaseModel]) -> str:
    """The errors at one place as a message: what was given, what fits."""
    kind, place, given = details[0]["type"], details[0]["loc"], details[0].get("input")
    if kind == "extra_forbidden":
        fields = _fields_at(schema, place)
        return f"unknown field{did_you_mean(str(place[-1]), fields)} Fields: {listing(fields)}"
    if kind == "missing":
        return "missing"
    if kind == "value_error":
        return str(details[0]["msg"]).removeprefix("Value error, ")
    literals = [one["ctx"]["expected"] for one in details if one["type"] == "literal_error"]
    options = re.findall(r"'([^']*)'", " ".join(literals))
    wants = " or ".join(_wants(one) for one in details if one["type"] != "literal_error")
    if options:
        return f"given {shown(given)}{did_you_mean(str(given), options)} One of: {listing(options)}{wants and f'; or {wants}'}"
    return f"given {shown(given)}; wants {wants}"


def _wants(detail: Mapping[str, Any]) -> str:
    kind, context = detail["type"], detail.get("ctx", {})
    if kind in _WANTED:
        limits = {name: f"{limit:,.15g}" for name, limit in context.items() if isinstance(limit, (int, float))}
        reason = REASONS.get(context["le"]) if kind == "less_than_equal" else None
        return _WANTED[kind].format(**limits) + (f": {reason}" if reason else "")
    return next(
        (wanted for beginning, wanted in _KINDS.items() if kind.startswith(beginning)),
        detail["msg"].removeprefix("Input should be "),
    )


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
