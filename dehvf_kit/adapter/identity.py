"""What an adapter was trained with: it answers only on the same base models and tokenizer, prompts and images.

A base model is known by its architecture and a digest of every weight, a tokenizer by its vocabulary and by how it cuts a text, and
prompts and images by a fingerprint: short, readable, and hashed. It travels in `dehvf_config.json`; `dehvf-kit eval` refuses to
score under another one unless it is told to. A model answers a format it was not trained on much worse, and nothing else would
show it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml
from torch import Tensor, nn

from dehvf_kit.adapter.base_weights import all_names, compare, is_record, kept_record, record
from dehvf_kit.adapter.files import config_file
from dehvf_kit.backbones.base import config_value, text_config
from dehvf_kit.errors import AdapterError, listing
from dehvf_kit.recipe.plugin_manager import plugins
from dehvf_kit.recipe.recipe import Recipe

if TYPE_CHECKING:
    from dehvf_kit.model.model import DehvfModel

FINGERPRINT = "prompt_fingerprint"
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
        raise AdapterError(f"{where}: its '{TOKENIZER}' entry is not valid")
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


def fingerprint(recipe: Recipe, tokenizer: Any = None) -> dict[str, Any]:
    """{"text": facts of the data set's prompt or None, "pictures": facts of each encoder's, "tokens", "hash"}.

    tokens: what the tokenizer makes of a prompt, beside its vocabulary; left out without a tokenizer.
    """
    text = recipe.data.prompt_facts() if recipe.data is not None else None
    pictures = {name: tower.image.model_dump(mode="json") for name, tower in recipe.vision.items() if hasattr(tower, "image")}
    facts = {"text": text, "pictures": pictures}
    if tokenizer is not None:
        facts["tokens"] = _tokens(tokenizer, bool(recipe.data is not None and recipe.data.prompt.chat))
    return {**facts, "hash": digest(facts)}


def _tokens(tokenizer: Any, chat: bool) -> dict[str, Any]:
    """The chat template's digest, or the tokens added around a text; the end token, and the digest of the added tokens."""
    facts: dict[str, Any] = {"end": tokenizer.eos_token}
    if chat:
        facts["chat_template"] = _sha(tokenizer.chat_template)
    else:
        plain = tokenizer("a", add_special_tokens=False)["input_ids"]
        full = tokenizer("a", add_special_tokens=True)["input_ids"]
        place = next((n for n in range(len(full)) if full[n : n + len(plain)] == plain), 0)
        facts["added_before"] = tokenizer.convert_ids_to_tokens(full[:place])
        facts["added_after"] = tokenizer.convert_ids_to_tokens(full[place + len(plain) :])
    added = getattr(tokenizer, "added_tokens_decoder", {})
    facts["added_tokens"] = _sha({str(number): str(token) for number, token in sorted(added.items())})
    return facts


def _sha(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


def digest(facts: Mapping[str, Any]) -> str:
    """Twelve hexadecimal digits of the facts."""
    kept = {key: facts.get(key) for key in ("text", "pictures")}
    return _sha(kept | ({"tokens": facts["tokens"]} if "tokens" in facts else {}))


def differences(trained: Mapping[str, Any], asked: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """(field, in training, now) wherever two fingerprints differ; nothing is said of text or tokens that one does not know."""
    before, now = _flat(trained), _flat(asked)
    if not (trained.get("tokens") and asked.get("tokens")):
        before, now = ({name: v for name, v in one.items() if not name.startswith("tokens.")} for one in (before, now))
    if not trained.get("text"):
        now = {name: value for name, value in now.items() if not name.startswith("text.")}
    names = dict.fromkeys([*before, *now])
    return [(name, before.get(name), now.get(name)) for name in names if before.get(name) != now.get(name)]


def check_fingerprint(trained: Mapping[str, Any], asked: Mapping[str, Any], where: str) -> None:
    """Raises: AdapterError showing both sides, field by field, where they differ."""
    different = differences(trained, asked)
    if not different:
        return
    lines = [f"{where}: trained on other prompts or images than it is asked with now; --allow-prompt-mismatch goes on"]
    width = max(len(name) for name, _, _ in different)
    for name, before, now in different:
        lines.append(f"  {name:<{width}}  trained {_shown(before)}")
        lines.append(f"  {'':<{width}}  now     {_shown(now)}")
    raise AdapterError("\n".join(lines))


def saved_fingerprint(config: Mapping[str, Any], recipe: Recipe, where: str) -> Mapping[str, Any]:
    """An adapter's own fingerprint; what was not recorded when it was saved is that of the recipe it carries.

    Raises: AdapterError where the saved one was altered.
    """
    found, carried = config.get(FINGERPRINT), fingerprint(recipe)
    if found is None:
        return carried
    if not isinstance(found, Mapping) or found.get("hash") != digest(found):
        raise AdapterError(f"{where}: its {FINGERPRINT} does not match its hash; it was altered")
    return {**found, "text": {**(carried["text"] or {}), **found["text"]}} if found.get("text") else found


def _flat(facts: Mapping[str, Any]) -> dict[str, Any]:
    flat = {f"text.{name}": value for name, value in (facts.get("text") or {}).items()}
    for tower, values in (facts.get("pictures") or {}).items():
        prefix = "pictures" if len(facts["pictures"]) == 1 else f"pictures.{tower}"
        flat |= {f"{prefix}.{name}": value for name, value in values.items()}
    return flat | {f"tokens.{name}": value for name, value in (facts.get("tokens") or {}).items()}


def _shown(value: Any) -> str:
    return "nothing" if value is None else json.dumps(value, ensure_ascii=False)
