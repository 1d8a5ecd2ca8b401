"""Adapters on disk: trained weights alone, the resolved recipe, and the identity of the base models they belong to.

A folder holds `adapter_model.safetensors`, `dehvf_config.json`, `config.json` (which tells transformers whose it is),
`generation_config.json`, the processor's files and a card `README.md`. No pickle is ever read.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from dehvf_kit._version import __version__
from dehvf_kit.adapter.card import about, card, read_measured, write_measured
from dehvf_kit.adapter.files import (
    BUFFERS,
    CONFIG,
    DIGEST,
    FORMAT,
    OWNED,
    TRAINERS,
    WEIGHTS,
    adapter_folder,
    buffer_names,
    config_file,
    finish_saving,
    of_run,
    read_config,
    read_weights,
)
from dehvf_kit.adapter.identity import (
    FINGERPRINT,
    TOKENIZER,
    base_identities,
    check_bases,
    check_tokenizer,
    fingerprint,
    saved_identities,
    tokenizer_identity,
)
from dehvf_kit.errors import AdapterError, did_you_mean, listing, shown
from dehvf_kit.recipe.files import by_name, override
from dehvf_kit.recipe.plugin_manager import needs, plugins
from dehvf_kit.recipe.recipe import Recipe, parse_recipe
from dehvf_kit.utils.atomic import exists, files_replaced, is_file, is_folder, sha256, whole_folder, write_file, write_text, writing

if TYPE_CHECKING:
    from dehvf_kit.model.model import DehvfModel

log = logging.getLogger(__name__)
KIT, PLUGINS = "dehvf-kit", "plugins"
OF_ONE_FILE = ("max_shard_size", "safe_serialization", "save_function", "save_original_format", "save_peft_format", "token")
"""Keywords of transformers' `save_pretrained` that change nothing about an adapter: one safetensors file, written here."""
FROM_AUTO_CLASSES = (
    "config",
    "adapter_kwargs",
    "trust_remote_code",
    "code_revision",
    "_from_auto",
    "_commit_hash",
    "_from_pipeline",
)
"""Keywords that transformers' Auto classes and pipelines add by themselves."""
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def save(model: DehvfModel, folder: Path, overwrite: bool = True, **from_trainer: Any) -> None:
    """Write an adapter. It appears whole or not at all, also in place of an older one; a folder's other files stay.

    from_trainer: `state_dict`, which transformers' Trainer gives: the trained weights are then written as `model.safetensors` too,
    the file that it looks for when it resumes or loads the best checkpoint. The values given are not read.

    Raises: AdapterError where the folder is a run's, or cannot be written; an older adapter is then as it was.
    """
    if model.recipe is None:
        raise AdapterError("this model was made without a recipe; save the components' state_dict yourself")
    if exists(folder) and not is_folder(folder):
        raise AdapterError(f"{folder}: is a file; name a folder")
    if of_run(folder) != folder:
        raise AdapterError(f"{folder}: holds a run already, whose adapter would be hidden; name another folder")
    if not overwrite:
        finish_saving(folder)
        if exists(folder / WEIGHTS):
            raise AdapterError(f"{folder}: holds an adapter already; name another folder")
    replaced = files_replaced(folder, OWNED) if exists(folder) else whole_folder(folder)
    with writing(folder, AdapterError), replaced as place:
        _fill(model, place)
        if from_trainer:
            trained = {f"nodes.{name}": tensor for name, tensor in saved_tensors(model).items()}
            save_file({name: tensor.detach().cpu().contiguous() for name, tensor in trained.items()}, place / TRAINERS)


def _fill(model: DehvfModel, folder: Path) -> None:
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in saved_tensors(model).items()}
    if model.processor is not None:
        model.processor.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)
    write_file(folder / WEIGHTS, lambda path: save_file(weights, path, metadata={"format": "pt"}))
    digest = sha256(folder / WEIGHTS)
    config = {**adapter_config(model), DIGEST: digest}
    write_text(folder / CONFIG, json.dumps(config, indent=2) + "\n")
    known = about(model.measured, folder)
    write_measured(folder, known, digest)
    sizes = {name: parameter.numel() for name, parameter in model.named_trainable_parameters().items()}
    write_text(folder / "README.md", card(config, sizes, known))
    write_text(folder / "config.json", json.dumps({"model_type": "dehvf", "architectures": ["DehvfModel"]}, indent=2) + "\n")


def adapter_config(model: DehvfModel) -> dict[str, Any]:
    """What an adapter says of itself."""
    import transformers

    recipe = model.recipe.resolved()
    return {
        "format": FORMAT,
        "kit": KIT,
        "versions": {KIT: __version__, "torch": torch.__version__, "transformers": transformers.__version__},
        "trainable_parameters": model.num_trainable_parameters(),
        BUFFERS: [name for name in saved_tensors(model) if name not in model.named_trainable_parameters()],
        "bases": model.bases or base_identities(model),
        "base_model_name_or_path": model.recipe.decoder.model,
        "recipe": recipe,
        "recipe_parents": list(model.recipe.parents),
        PLUGINS: _plugins_of(recipe),
        FINGERPRINT: fingerprint(model.recipe, getattr(model.processor, "tokenizer", None)),
        TOKENIZER: tokenizer_identity(model.processor.tokenizer) if model.processor is not None else None,
    }


def _plugins_of(recipe: Mapping[str, Any]) -> dict[str, str]:
    """Of what a recipe names that which plugins supply: the plugin with its version, or its file's name."""
    supplied = plugins().supplied
    found = {what: supplied[what] for what in sorted(needs(recipe) & supplied.keys()) if supplied[what] != KIT}
    return {what: Path(origin).name if origin.endswith(".py") else origin for what, origin in found.items()}


def _refuse_missing_plugins(config: Mapping[str, Any], recipe: Mapping[str, Any], folder: Path) -> None:
    """Raises: AdapterError naming the plugins that the adapter was saved with and that are not installed here."""
    saved = config.get(PLUGINS)
    saved = saved if isinstance(saved, Mapping) else {}
    missing: dict[str, list[str]] = {}
    for what in sorted(needs(recipe) & saved.keys() - plugins().supplied.keys()):
        missing.setdefault(str(saved[what]), []).append(what)
    if missing:
        lines = [f"{shown(origin)}, for {listing(names)}" for origin, names in missing.items()]
        files = any(origin.endswith(".py") for origin in missing)
        how = "load a .py file with --plugin FILE before the command, pip install the others" if files else "pip install them"
        how += plugins().registry.unloaded()
        raise AdapterError(f"{folder}: was saved with plugins that are not installed here: {'; '.join(lines)}; {how}")


def load(
    folder: str | Path,
    decoder: Any = None,
    vision: Any = None,
    tokenizer: Any = None,
    dtype: Any = None,
    overrides: Sequence[str] = (),
    *,
    device: Any = None,
    device_map: Any = None,
    token: bool | str | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool | None = None,
    revision: str | None = None,
) -> DehvfModel:
    """Restore an adapter on its base models, or on `decoder` and `vision` that are in memory already.

    Args:
        folder: the adapter's folder, its run's, or its hub id, `owner/name` or `owner/name@revision`; only an id that is no folder
            here is fetched, into the hub's cache.
        decoder: a decoder in memory, used in place of the one that the adapter names.
        vision: an encoder in memory, or several by name.
        tokenizer: the decoder's; the adapter's own where left out.
        dtype: another dtype for the frozen decoder.
        overrides: `key=value` changes to the recipe, such as another test set.
        device: where the whole model is moved in the end.
        device_map: where the decoder is loaded, in transformers' terms; encoders and components go to its first device.
        token, cache_dir: passed on where the adapter or base models are hub ids.
        local_files_only: True: nothing is fetched from the hub; False: base models are too; None: base models as the recipe's
            `download` says.
        revision: of the adapter on the hub; a folder has none, so that only None is accepted.

    Raises:
        AdapterError: for a missing or unexpected weight, another base model, a revision of a folder, files that are not an
            adapter, or a hub id that cannot be fetched.
    """
    from dehvf_kit.model.builder import build

    place = adapter_folder(folder, revision, token, cache_dir, local_files_only)
    if device_map is not None and decoder is not None:
        raise AdapterError("device_map: the decoder is in memory already; move it with `.to(device)`")
    config = read_config(place)
    recipe = adapter_recipe(config, place, overrides)
    hub = {"token": token, "cache_dir": cache_dir, "local_files_only": local_files_only}
    recipe = _with_hub(recipe, {name: value for name, value in hub.items() if value is not None})
    if dtype not in (None, "auto"):
        name = str(dtype).removeprefix("torch.")
        recipe = _with_dtype(recipe, name)
    if decoder is not None and tokenizer is None and is_file(place / "tokenizer_config.json"):
        from transformers import AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(place, trust_remote_code=False)
        except Exception as error:  # whatever stands in the folder's files
            raise AdapterError(f"{place}: its tokenizer cannot be loaded: {error}") from error
    weights = read_weights(place)
    saved_identities(config, ["decoder", *recipe.vision], place)
    buffers = buffer_names(config)
    held = sum(tensor.numel() for name, tensor in weights.items() if name not in buffers)
    model = build(recipe, decoder=decoder, vision=vision, tokenizer=tokenizer, expected_parameters=held, device_map=device_map)
    try:
        check_bases(model, config, place, loaded=decoder is None and vision is None)
        if model.processor is not None:
            check_tokenizer(config.get(TOKENIZER), model.processor.tokenizer, str(place))
        restore(model, weights, str(place))
        model.measured = read_measured(place)
        if device is not None:
            model.to(device)
    except BaseException:
        model.detach()
        raise
    return model


def from_pretrained_arguments(given: Mapping[str, Any]) -> dict[str, Any]:
    """Of the keywords of `from_pretrained` those that `load` takes. Raises: AdapterError naming one that it does not."""
    accepted = ("device_map", "token", "cache_dir", "local_files_only", "revision")
    unknown = [name for name in given if name not in (*accepted, *FROM_AUTO_CLASSES)]
    if unknown:
        known = ", ".join(("decoder", "vision", "dtype", *accepted))
        raise AdapterError(f"from_pretrained: takes no '{unknown[0]}'; it takes {known}")
    if given.get("trust_remote_code"):
        raise AdapterError(
            "from_pretrained: trust_remote_code is allowed for each base model by itself; use dehvf_kit.load(folder, "
            'overrides=["decoder.trust_remote_code=true"])'
        )
    return {name: value for name, value in given.items() if name in accepted}


def save_pretrained_arguments(given: Mapping[str, Any]) -> dict[str, Any]:
    """Of the keywords of `save_pretrained` those that `save` takes. Raises: AdapterError naming one that asks for more."""
    unknown = [name for name, value in given.items() if value and name not in ("overwrite", "state_dict", *OF_ONE_FILE)]
    if unknown:
        raise AdapterError(f"save_pretrained: takes no '{unknown[0]}'; it takes overwrite; push_to_hub(repo_id) uploads an adapter")
    return {name: value for name, value in given.items() if name in ("overwrite", "state_dict")}


def _with_hub(recipe: Recipe, arguments: Mapping[str, Any]) -> Recipe:
    """The recipe with its base models looked for as `arguments` of `from_pretrained` say."""
    if not arguments:
        return recipe
    vision = {name: tower.with_hub(**arguments) for name, tower in recipe.vision.items() if hasattr(tower, "with_hub")}
    return replace(recipe, decoder=recipe.decoder.with_hub(**arguments), vision={**recipe.vision, **vision})


def _with_dtype(recipe: Recipe, name: str) -> Recipe:
    return replace(recipe, decoder=recipe.decoder.model_copy(update={"dtype": name}))


def adapter_recipe(config: Mapping[str, Any], folder: Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe an adapter was built from, with its defaults filled in, and `key=value` changes to it.

    Raises: AdapterError where it asks to run code that comes with a base model, and no override allows that.
    """
    _refuse_code(config["recipe"], overrides, folder)
    recipe = {key: value for key, value in config["recipe"].items() if value is not None}
    for text in overrides:
        override(recipe, text)
    _refuse_missing_plugins(config, recipe, folder)
    parents = config.get("recipe_parents")
    parents = tuple(name for name in parents if isinstance(name, str)) if isinstance(parents, list) else ()
    return replace(parse_recipe(recipe, f"{config_file(folder)}: recipe"), parents=parents)


def _refuse_code(recipe: Mapping[str, Any], overrides: Sequence[str], folder: Path) -> None:
    """An adapter may come from anybody: that it says `trust_remote_code: true` is not believed until the user says so too."""
    vision = recipe.get("vision")
    named = {f"vision.{name}": tower for name, tower in vision.items()} if by_name(vision) else {"vision": vision}
    said = {text.partition("=")[0].strip() for text in overrides}
    for path, tower in {"decoder": recipe.get("decoder"), **named}.items():
        field = f"{path}.trust_remote_code"
        if isinstance(tower, Mapping) and tower.get("trust_remote_code") and field not in said:
            raise AdapterError(
                f"{folder}: asks to run Python code that comes with {shown(tower.get('model'))}; if you trust it, say so by "
                f"the override {field}=true"
            )


def saved_tensors(model: DehvfModel) -> dict[str, Tensor]:
    """What an adapter holds: the trained parameters, then the components' own buffers (batch norm's statistics)."""
    buffers = {
        f"{path}.{name}": buffer
        for path, module in model.nodes.named_modules()
        for name, buffer in module.named_buffers(recurse=False)
        if name not in module._non_persistent_buffers_set
    }
    return {**model.named_trainable_parameters(), **buffers}


def restore(model: DehvfModel, weights: Mapping[str, Tensor], where: str) -> None:
    """Put weights into a model, all of them and no others. Adapters saved before buffers were have none, which is warned of.

    Raises: AdapterError naming what is missing, left over or misshapen.
    """
    wanted = saved_tensors(model)
    buffers = set(wanted) - set(model.named_trainable_parameters())
    if buffers and not buffers & set(weights):
        log.warning("%s: holds no buffers; %s keep their initial values", where, listing(buffers))
        wanted = {name: tensor for name, tensor in wanted.items() if name not in buffers}
    missing, unexpected = sorted(set(wanted) - set(weights)), sorted(set(weights) - set(wanted))
    if missing or unexpected:
        parts = [f"missing: {listing(missing)}"] if missing else []
        parts += [f"unexpected: {listing(unexpected)}{did_you_mean(unexpected[0], wanted)}"] if unexpected else []
        raise AdapterError(f"{where}: weights do not fit the recipe; {'; '.join(parts)}")
    for name, tensor in wanted.items():
        found = weights[name]
        if tensor.shape != found.shape:
            raise AdapterError(f"{where}: '{name}' is {tuple(found.shape)}, the recipe makes it {tuple(tensor.shape)}")
        if not tensor.is_floating_point() and found.dtype != tensor.dtype:
            raise AdapterError(f"{where}: '{name}' is of {found.dtype}, the recipe makes it {tensor.dtype}")
        if tensor.is_floating_point() and found.dtype not in DTYPES:
            raise AdapterError(f"{where}: '{name}' is of {found.dtype}; expected floating-point values")
        if not torch.isfinite(found).all():
            raise AdapterError(f"{where}: '{name}' holds values that are not finite")
    with torch.no_grad():
        for name, tensor in wanted.items():
            tensor.copy_(weights[name])
