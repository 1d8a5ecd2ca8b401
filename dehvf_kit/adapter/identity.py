"""What tells base models and tokenizers apart: an adapter answers only on those it was trained with.

A base model is known by its architecture and a digest of every weight, a tokenizer by its vocabulary and by how it cuts a text.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml
from torch import Tensor, nn

from dehvf_kit.adapter.base_weights import all_names, compare, is_record, record
from dehvf_kit.adapter.files import config_file
from dehvf_kit.adapter.kept_records import kept_record
from dehvf_kit.backbones.text_config import config_value, text_config
from dehvf_kit.errors import AdapterError, listing
from dehvf_kit.recipe.plugin_manager import plugins

if TYPE_CHECKING:
    from dehvf_kit.model.model import DehvfModel

WEIGHTS = "weights"
PROBED_VALUES = 4
NAMED = 3
LARGEST = torch.finfo(torch.float32).max
ARCHITECTURE_FIELDS = (
    "model_type",
    "hidden_size",
    "num_hidden_layers",
    "intermediate_size",
    "num_attention_heads",
    "vocab_size",
    "patch_size",
)
ROUNDING = {"float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8, "float64": 0.0}
"""Largest relative error of rounding a weight to each dtype: half a unit in the last place."""
README_BYTES = 65_536
"""Bytes of a README.md that are read for its licence."""
TOKENIZER = "tokenizer"
log = logging.getLogger(__name__)
PROBE = "What is in the picture? 12 of 3.5 naïve 图像\n  (A) red"


def base_identities(model: DehvfModel, loaded: bool = False) -> dict[str, Any]:
    """The identity of each base model of an adapter, by its name in the recipe. loaded: as in `identity`."""
    with model.hooks_disabled():
        bases = {"decoder": identity(model.decoder, model.recipe.decoder.model, loaded)}
        for name, tower in model.towers.items():
            bases[name] = identity(tower.model, model.recipe.vision[name].model, loaded)
        return bases


def identity(model: nn.Module, name: str, loaded: bool = False) -> dict[str, Any]:
    """What tells a base model from another: its name, its architecture, and a record of its weights.

    The record is `base_weights.record`'s; None for a model without weights (meta device). Every weight is read once.
    loaded: the model was just loaded from files, so that an earlier record of the same files will do.
    """
    weights = kept_record(model) if loaded else record(model)
    return {**_architecture(model), "name": name, WEIGHTS: weights, "license": licence_of(name, model)}


def _architecture(model: nn.Module) -> dict[str, Any]:
    config = text_config(model)
    fields = {key: value for key in ARCHITECTURE_FIELDS if (value := config_value(config, key)) is not None}
    return {
        "revision": getattr(config, "_commit_hash", None),
        "architecture": {key: list(value) if isinstance(value, tuple) else value for key, value in fields.items()},
        "dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
    }


def _values(parameter: Tensor) -> list[float]:
    flat = parameter.detach().reshape(-1)
    places = [place * (flat.numel() - 1) // (PROBED_VALUES - 1) for place in range(PROBED_VALUES)]
    return flat[places].float().cpu().tolist()


def check_bases(model: DehvfModel, config: Mapping[str, Any], folder: Path, loaded: bool = False) -> None:
    """Raises: AdapterError where a model's base models are not those that an adapter's config names. loaded: as in `identity`."""
    bases = saved_identities(config, ["decoder", *model.towers], folder)
    with model.hooks_disabled():
        check_identity(bases["decoder"], model.decoder, "decoder", loaded)
        for name, tower in model.towers.items():
            check_identity(bases[name], tower.model, "vision" if name == "vision" else f"vision.{name}", loaded)


def saved_identities(config: Mapping[str, Any], names: Sequence[str], folder: Path) -> dict[str, Any]:
    """The identities of the base models. Raises: AdapterError where one is missing or garbled."""
    for name in names:
        base = config["bases"].get(name)
        where = f"{config_file(folder)}: bases: '{name}'"
        if not isinstance(base, dict):
            raise AdapterError(f"{where} is missing")
        for key, kind in (("architecture", dict), ("dtype", str)):
            if not isinstance(base.get(key), kind):
                raise AdapterError(f"{where} has no '{key}'")
        probe = base.get("probe")
        if probe is not None and not (isinstance(probe, dict) and all(map(_is_values, probe.values()))):
            raise AdapterError(f"{where} has a garbled 'probe'")
        if base.get(WEIGHTS) is not None and not is_record(base[WEIGHTS]):
            raise AdapterError(f"{where} has a garbled '{WEIGHTS}'")
    return dict(config["bases"])


def _is_values(values: Any) -> bool:
    whole = isinstance(values, list) and len(values) == PROBED_VALUES
    return whole and all(isinstance(value, float | int) and abs(value) <= LARGEST for value in values)


def check_identity(saved: Mapping[str, Any], model: nn.Module, what: str, loaded: bool = False) -> None:
    """Raises: AdapterError where a base model is not the one an adapter was trained on.

    Weights that cannot be compared, or were added since, are counted in a warning. Of a model that is sharded over processes, each
    of them must call this. loaded: as in `identity`.
    """
    found = _architecture(model)
    wanted = saved.get("architecture", {})
    for key in wanted:
        if found["architecture"].get(key) != wanted[key]:
            raise AdapterError(
                f"{what}: the adapter was trained on {_called(saved)} with {key} {wanted[key]}; "
                f"this one has {key} {found['architecture'].get(key)}"
            )
    if saved.get(WEIGHTS) is None:
        _check_probe(saved, model, what, found["dtype"])
        return
    now = kept_record(model) if loaded else record(model)
    if now is None:
        return
    difference = compare(saved[WEIGHTS], now)
    if difference.missing:
        raise AdapterError(_has_none(saved, what, difference.missing[0]))
    if difference.other:
        more = f" and {len(difference.other) - NAMED} more" if len(difference.other) > NAMED else ""
        raise AdapterError(
            f"{what}: other weights than the adapter was trained on ({_called(saved)}): "
            f"{listing(map(repr, difference.other[:NAMED]))}{more} differ, of {difference.compared} compared; "
            "load the base model it names"
        )
    if difference.uncompared:
        log.warning(
            "%s: %d weights could not be compared with those the adapter was trained on (quantised in memory, unreadable, or added "
            "since); %d are the same",
            what,
            difference.uncompared,
            difference.compared,
        )


def _has_none(saved: Mapping[str, Any], what: str, name: str) -> str:
    return f"{what}: the adapter was trained on {_called(saved)}, which has a weight '{name}'; this one has none"


def _check_probe(saved: Mapping[str, Any], model: nn.Module, what: str, dtype: str) -> None:
    """Check the probe of an adapter saved before every weight was recorded: a few values of a few weights."""
    held = all_names(model)
    tolerance = 0.0
    if saved["dtype"] != dtype:
        tolerance = 2 * max(ROUNDING.get(name, 2.0**-8) for name in (saved["dtype"], dtype))
    for name, values in (saved.get("probe") or {}).items():
        parameter = held.get(name)
        if parameter is None or (isinstance(parameter, Tensor) and parameter.numel() < 1):
            raise AdapterError(_has_none(saved, what, name))
        if type(parameter) not in (Tensor, nn.Parameter) or not parameter.is_floating_point():
            continue  # quantised here, and not there: the weights around it tell
        if parameter.device.type == "meta":
            continue
        for expected, value in zip(values, _values(parameter), strict=True):
            if abs(expected - value) > tolerance * max(abs(expected), 2.0**-14):
                raise AdapterError(
                    f"{what}: other weights than the adapter was trained on ({_called(saved)}): '{name}' holds {value:.6g} "
                    f"where {expected:.6g} is expected; load the base model it names"
                )


def _called(saved: Mapping[str, Any]) -> str:
    return f"'{saved['name']}'" if saved.get("name") else "a model handed over in memory"


def tokenizer_identity(tokenizer: Any) -> dict[str, Any]:
    """{"words", "sha256" of the vocabulary with its ids, "probe": the token ids of a fixed text}."""
    vocabulary = hashlib.sha256()
    for word, number in sorted(tokenizer.get_vocab().items()):
        vocabulary.update(f"{number} {word}\n".encode("utf-8", "surrogatepass"))
    return {"words": len(tokenizer.get_vocab()), "sha256": vocabulary.hexdigest(), "probe": list(tokenizer(PROBE)["input_ids"])}


def check_tokenizer(saved: Any, tokenizer: Any, where: str) -> None:
    """Raises: AdapterError where a tokenizer is not the one an adapter was trained with; None is known of old adapters."""
    if saved is None:
        return
    if not isinstance(saved, Mapping) or not {"words", "sha256", "probe"} <= set(saved):
        raise AdapterError(f"{where}: its '{TOKENIZER}' is garbled")
    found = tokenizer_identity(tokenizer)
    if found["sha256"] != saved["sha256"]:
        raise AdapterError(
            f"{where}: trained with another tokenizer, of {saved['words']} words; this one has {found['words']}"
            + (", other ones or in another order" if found["words"] == saved["words"] else "")
            + "; load the tokenizer that belongs to its decoder"
        )
    if found["probe"] != saved["probe"]:
        raise AdapterError(
            f"{where}: trained with a tokenizer that cuts texts otherwise: {PROBE!r} became {saved['probe']}, "
            f"and becomes {found['probe']} now; load the tokenizer that belongs to its decoder"
        )


def licence_of(name: str, model: Any) -> str | None:
    """A licence as its owner writes it (`apache-2.0`); None where nothing on this machine says it.

    name: as the recipe calls the model. Looked at are the plugin's own word, and the front matter of the README.md that lies
    beside the weights. Nothing is fetched.
    """
    source = plugins().registry.sources.get(name)
    if source is not None and source.licence:
        return source.licence
    place = getattr(getattr(model, "config", None), "_name_or_path", None)
    file = _readme(place) if isinstance(place, str) and place else None
    return _front_matter_licence(file) if file is not None else None


def _readme(place: str) -> Path | None:
    """The README.md of a folder, or of a hub id in the hub's own cache."""
    if os.path.isdir(place) or place.count("/") != 1:
        return Path(place) / "README.md"
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(place, "README.md")
    return Path(found) if isinstance(found, str) else None


def _front_matter_licence(file: Path) -> str | None:
    try:
        with file.open("rb") as opened:
            text = opened.read(README_BYTES).decode("utf-8", "replace")
    except OSError:
        return None
    if not text.startswith("---\n"):
        return None
    try:
        found = yaml.safe_load(text[4:].partition("\n---")[0])
    except (yaml.YAMLError, ValueError, RecursionError):
        return None
    licence = found.get("license") if isinstance(found, dict) else None
    return licence if isinstance(licence, str) and licence.isprintable() and len(licence) < 100 else None
