"""A first recipe from three answers: a decoder, a vision encoder, and data."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from dehvf_kit.data.inspection import recognise
from dehvf_kit.errors import DataError, DehvfError, did_you_mean, listing
from dehvf_kit.recipe.files import override
from dehvf_kit.recipe.plugin_manager import plugins
from dehvf_kit.recipe.recipe import Recipe, parse_recipe
from dehvf_kit.utils.atomic import exists, writing
from dehvf_kit.utils.plain_data import to_yaml

NO_DATA = "none"
HELD_OUT = 0.1  # of the images, where the data have no test split
LARGEST_IMAGE = 256  # encoders made for larger images start at 224 where no image processor says otherwise
HEAD = "# Written by dehvf-kit init. Fields that are not named have their defaults, which `dehvf-kit show` prints.\n"


def starter_recipe(name: str, decoder: str, vision: str, data: str, overrides: tuple[str, ...] = ()) -> dict[str, Any]:
    """Plain data of a recipe with the paper's graph, sized for both models. It has been checked.

    decoder: a name from `dehvf-kit list`, a folder or a hub id; vision: likewise, or `TYPE:MODEL` for another library's; data: a
    file, a folder, a data set's type, or `none`. Raises: RecipeError, DataError or DehvfError for what cannot be used.
    """
    tower = _vision(vision)
    raw: dict[str, Any] = {
        "name": name,
        "description": f"{_last(vision)} seen by {_last(decoder)}",
        "vision": tower,
        "decoder": {"model": decoder},
        "graph": {
            "grouper": {"type": "contiguous"},
            "layer_query": {"type": "embedding_mlp"},
            "projector": {"type": "bottleneck_mlp", "bottleneck_size": 128},
            "fuser": {"type": "cross_attention"},
            "position": {"type": "learned", "num_slots": 1},
            "injector": {"type": "ffn_memory"},
        },
        "training": {
            "epochs": 5,
            "warmup_epochs": 0.2,
            "batch_size": 16,
            "base_learning_rate": 0.02,
            "max_grad_norm": 1.0,
            "cache_features": True,
        },
    }
    if data != NO_DATA:
        raw["data"] = _data(data)
    raw["generation"] = {"max_new_tokens": 16}
    _size(raw)
    for text in overrides:
        override(raw, text)
    recipe = parse_recipe(raw, name)
    recipe.check()
    if recipe.data is not None and not recipe.data.parts():
        fields = listing(field for field in type(recipe.data).model_fields if field not in ("type", "prompt"))
        raise DataError(
            f"data: '{data}' does not say where its data are; name the file or folder itself, or set data.FIELD=... ({fields})"
        )
    if recipe.data is not None and "test" not in recipe.data.parts() and "validation" in type(recipe.data).model_fields:
        held_out = {**raw, "data": {**raw["data"], "validation": HELD_OUT}}
        with suppress(DataError):  # of one image none can be held out
            parse_recipe(held_out, name).data.samples("test")
            return held_out
    return raw


def write_starter(file: Path, raw: dict[str, Any]) -> None:
    """Write a recipe that is not there yet. Raises: DehvfError where the file exists or cannot be written."""
    text = HEAD + to_yaml(raw)
    part = file.with_name(f".{file.name}.part")
    try:
        with writing(file):
            part.write_text(text, encoding="utf-8")
            os.link(part, file)  # unlike a rename, refuses a name that is taken
    except DehvfError as error:
        if isinstance(error.__cause__, FileExistsError):
            raise DehvfError(f"{file}: exists already; name another with --output") from error
        raise
    finally:
        part.unlink(missing_ok=True)


def _vision(given: str) -> dict[str, Any]:
    kind, colon, model = given.partition(":")
    if colon and kind in plugins().registry.types("vision"):
        return {"type": kind, "model": model}
    return {"model": given}


def _data(given: str) -> dict[str, Any]:
    """The data section for a file or folder that a data set knows as its own, or for a data set's type."""
    registry = plugins().registry
    types = registry.types("data")
    if given in types:
        return {"type": given}
    place = Path(given)
    if not exists(place):
        raise DataError(
            f"data: there is no file or folder '{given}', and no data set of that name{did_you_mean(given, types)} "
            f"Data sets: {listing(types)}; or {NO_DATA}"
        )
    return recognise(place, [config for (role, _), config in registry.configs.items() if role == "data"])


def _size(raw: dict[str, Any]) -> None:
    """Fill in what depends on both models: how the encoder's own processor prepares images, groups, slots."""
    (tower,) = _probe(raw).vision.values()
    reads = getattr(tower, "own_images", None)
    own = reads(plugins().registry.sources) if reads is not None else None
    image = own.fields() if own is not None else {}
    native = None if "size" in image or "type" in raw["vision"] else _native_size(tower)
    if native is not None:
        image = {"size": native if native <= LARGEST_IMAGE else 224, **image}
    if image:
        raw["vision"]["image"] = image
    probe = _probe(raw)
    faults: list[Any] = []
    specs, decoder = probe.vision_specs(faults), probe.decoder_spec(faults)
    if faults or decoder is None:
        raise DehvfError("\n".join(map(str, faults)))
    (spec,) = specs.values()
    raw["graph"]["grouper"]["num_groups"] = min(4, spec.num_layers, decoder.num_layers)
    raw["graph"]["position"]["num_slots"] = spec.num_patches or 256


def _probe(raw: dict[str, Any]) -> Recipe:
    """The recipe with the smallest graph, which lets it be read before its sizes are known."""
    graph = {"position": {"type": "learned", "num_slots": 1}, "injector": {"type": "ffn_memory"}}
    return parse_recipe({key: raw[key] for key in ("name", "vision", "decoder")} | {"graph": graph}, raw["name"])


def _native_size(tower: Any) -> int | None:
    """The side of the images an encoder was made for, by its config."""
    from dehvf_kit.backbones.base import vision_config

    try:
        size = getattr(vision_config(tower.hf_config(plugins().registry.sources)), "image_size", None)
    except DehvfError:
        return None
    if isinstance(size, (list, tuple)):
        size = min(size)
    return size if isinstance(size, int) else None


def _last(model: str) -> str:
    return model.rstrip("/").rpartition("/")[2] or model
