"""Recipe files: parents by `extends:`, merging, and `key=value` overrides, on plain data."""

from __future__ import annotations

import copy
import glob
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dehvf_kit.errors import Fault, RecipeError, did_you_mean, listing, shown
from dehvf_kit.utils.plain_data import MAX_DEPTH, parse_yaml, read_yaml
from dehvf_kit.utils.shipped import HOME

MAX_PARENTS = 16
SINGLE = "vision"
"""The name of an encoder that a recipe does not name."""
Steps = tuple[str, ...]
"""The place of a value in nested mappings, key by key."""


def read_with_parents(file: Path, source: str, seen: Sequence[Path] = (), needless: list[Steps] | None = None) -> dict[str, Any]:
    """A recipe file's data merged over its parents'. Raises: RecipeError for what cannot be read, or a circle.

    needless: gains the places of nulls that removed nothing, for `refuse_needless`.
    """
    try:
        file = or_shipped(file)
        place = file.resolve()
    except (OSError, ValueError, RuntimeError) as error:
        raise RecipeError([Fault("", f"cannot be read: {error}")], source) from error
    if place in seen:
        circle = " -> ".join(path.name for path in [*seen[seen.index(place) :], place])
        raise RecipeError([Fault("extends", f"recipes extend each other in a circle: {circle}")], source)
    if len(seen) >= MAX_PARENTS:
        raise RecipeError([Fault("extends", f"more than {MAX_PARENTS} parents in a row")], source)
    raw = read_yaml(file, source)
    parent = raw.pop("extends", None)
    if parent is None:
        beside_recipe(raw, file.parent, {})
        return raw
    if not isinstance(parent, str) or not parent:
        raise RecipeError([Fault("extends", f"given {shown(parent)}; name one .yaml file, as a path beside this one")], source)
    above = or_shipped(file.parent / parent, Path(parent))
    if not os.path.isfile(above):
        beside = above.parent.glob("*.yaml") if os.path.isdir(above.parent) else ()
        near = sorted(path.name for path in beside if path.resolve() != place)
        raise RecipeError([Fault("extends", f"there is no recipe '{parent}'{did_you_mean(above.name, near)}")], source)
    parents = read_with_parents(above, str(above), [*seen, place], needless)
    beside_recipe(raw, file.parent, parents)
    return merge(parents, raw, source, (), needless)


def or_shipped(file: Path, asked: Path | None = None) -> Path:
    """`file`, or where there is none, the kit's own recipe if it was asked for as `recipes/NAME`."""
    asked = asked or file
    if os.path.lexists(file) or asked.parts[:1] != ("recipes",) or not os.path.isfile(HOME / asked):
        return file
    return HOME / asked


def parents_of(file: Path, source: str) -> tuple[str, ...]:
    """The names of the files that a recipe extends, the nearest first; `read_with_parents` has read them all before."""
    file = or_shipped(file)
    parent = read_yaml(file, source).get("extends")
    if parent is None:
        return ()
    return (Path(parent).name, *parents_of(or_shipped(file.parent / parent, Path(parent)), source))


def merge(
    parent: Mapping[str, Any],
    child: Mapping[str, Any],
    source: str = "recipe",
    path: Steps = (),
    needless: list[Steps] | None = None,
) -> dict[str, Any]:
    """A child recipe over its parent: mappings merge, lists and values replace, null removes.

    A new `type` starts that mapping afresh (a node keeps its `role`), and so does going from one encoder to several by
    name or back. needless: gains the places of nulls that removed nothing.
    Raises: RecipeError where null removes a node that the parent has not.
    """
    merged = copy.deepcopy(dict(parent))
    for key, value in child.items():
        known = merged.get(key)
        if value is None:
            if path == ("graph",) and key not in merged:
                near = did_you_mean(key, merged)
                raise RecipeError(
                    [Fault(f"graph.{key}", f"null removes a node, but none is named so{near} Nodes: {listing(merged)}")], source
                )
            if key not in merged and needless is not None:
                needless.append((*path, str(key)))
            merged.pop(key, None)
        elif isinstance(value, Mapping) and isinstance(known, Mapping) and key not in ("inputs", "config"):
            retyped = "type" in value and value["type"] != known.get("type", value["type"])
            if retyped:
                role = {"role": known["role"]} if "role" in known else {}
                left = {name: given for name, given in value.items() if given is not None or name not in known}
                merged[key] = role | copy.deepcopy(left)
            elif key == "vision" and not path and by_name(value) != by_name(known) and (by_name(value) or "model" in value):
                merged[key] = copy.deepcopy(dict(value))
            else:
                merged[key] = merge(known, value, source, (*path, str(key)), needless)
        else:
            merged[key] = copy.deepcopy(value)
    return merged


def refuse_needless(places: Sequence[Steps], resolved: Mapping[str, Any], source: str) -> None:
    """Refuse nulls that removed nothing, but for those over a field that is at its default.

    resolved: the recipe with every field filled in. Raises: RecipeError listing them.
    """
    faults = []
    for *above, key in places:
        fields: Any = resolved
        for step in above:
            fields = fields.get(step) if isinstance(fields, Mapping) else None
        if isinstance(fields, Mapping) and key not in fields and key != "inputs":
            near = did_you_mean(key, fields)
            faults.append(
                Fault(".".join([*above, key]), f"null removes a field, but none is named so{near} Fields: {listing(fields)}")
            )
    if faults:
        raise RecipeError(faults, source)


def by_name(vision: Any) -> bool:
    """Whether a `vision` section holds several encoders by name rather than one encoder's settings."""
    if not isinstance(vision, Mapping) or not vision or set(vision) & {"image", "config"}:
        return False
    return all(isinstance(value, Mapping) for value in vision.values())


def encoders_of(vision: Mapping[str, Any]) -> dict[str, Any]:
    """A `vision` section's encoders by name; one that is not named is called `vision`."""
    return dict(vision) if by_name(vision) else {SINGLE: vision}


def alone(encoders: Mapping[str, Any]) -> Any:
    """What belongs to one encoder that is not named, itself; what belongs to several, by name."""
    return encoders[SINGLE] if list(encoders) == [SINGLE] else encoders


def encoder_path(name: str) -> str:
    """Where messages say that an encoder's settings are: `vision`, or `vision.NAME` for one of several."""
    return SINGLE if name == SINGLE else f"{SINGLE}.{name}"


def override(raw: dict[str, Any], text: str, needless: list[Steps] | None = None) -> None:
    """Apply one `section.field=value`; the value is read as YAML, so numbers, lists and null are typed.

    needless: gains the place of a null that removed nothing.
    """
    key, equals, given = text.partition("=")
    steps = key.strip().split(".")
    if not equals or not all(steps) or len(steps) > MAX_DEPTH:
        raise RecipeError([Fault(text, "an override is written key=value, for example training.batch_size=8")], "override")
    value = _value(key, given, f"override {text}") if given else ""
    change: Any = value
    for step in reversed(steps):
        change = {step: change}
    place: Any = raw
    for depth, step in enumerate(steps[:-1]):
        found = place.get(step)
        place = {} if found is None else found
        if not isinstance(place, Mapping):
            message = f"is {shown(place)}, which has no field '{steps[depth + 1]}'"
            raise RecipeError([Fault(".".join(steps[: depth + 1]), message)], f"override {text}")
    merged = merge(raw, change, f"override {text}", (), needless)
    raw.clear()
    raw.update(merged)


def _value(key: str, given: str, source: str) -> Any:
    try:
        return parse_yaml(given, source)
    except RecipeError as error:
        if given.lstrip()[:1] in tuple("[{\"'"):
            raise
        advice = Fault(key, f"if a text is meant, quote it: '{key}=\"{given}\"'")
        raise RecipeError([*error.faults, advice], source) from error


def flat(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every leaf of nested mappings with its dotted path; lists are leaves."""
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from flat(inner, f"{path}.{key}" if path else str(key))
    else:
        yield path, value


PLACES = ("path", "images", "annotations")
FILES = ("train", "validation", "test")
"""Files of a data set, or the names of its splits where `path` is set."""


def beside_recipe(raw: dict[str, Any], folder: Path, parent: Mapping[str, Any]) -> None:
    """Make those relative data paths, and `training.init_from`, absolute that are found in a recipe's folder; in the current
    folder they stay as written.

    raw: a recipe file's own data; parent: its parents', which may name the `path` that its splits belong to.
    """
    if os.path.abspath(folder) == os.getcwd():
        return
    training = raw.get("training")
    if isinstance(training, dict) and isinstance(training.get("init_from"), str):
        training["init_from"] = _found(training["init_from"], folder)
    _data_beside(raw.get("data"), folder, isinstance(above := parent.get("data"), Mapping) and bool(above.get("path")))


def _data_beside(data: Any, folder: Path, has_path: bool = False) -> None:
    """The same for a data section and for the sources in it. has_path: whether a parent names the `path`."""
    if not isinstance(data, dict):
        return
    for source in data["sources"].values() if isinstance(data.get("sources"), dict) else ():
        _data_beside(source, folder)
    for field in PLACES if has_path or data.get("path") else (*PLACES, *FILES):
        if isinstance(data.get(field), str):
            data[field] = _found(data[field], folder)
        elif isinstance(data.get(field), list):
            data[field] = [_found(one, folder) if isinstance(one, str) else one for one in data[field]]


def _found(text: str, folder: Path) -> str:
    place = os.path.abspath(folder / text)
    if not text or "\0" in text or os.path.isabs(text) or not (os.path.exists(place) or glob.glob(place)):
        return text
    return place
