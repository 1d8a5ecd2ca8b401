"""The two files of an adapter, its config and its weights, read as untrusted input."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load as load_tensors
from torch import Tensor

from dehvf_kit.errors import AdapterError, shown
from dehvf_kit.utils.atomic import exists, finish_replacing, is_file, is_folder
from dehvf_kit.utils.plain_data import NotJson, parse_json

ADAPTER, WEIGHTS, CONFIG = "adapter", "adapter_model.safetensors", "dehvf_config.json"
OLD_CONFIG = "adapter_config.json"
"""Its name until 0.1.0, still read. transformers and peft take a file of that name for peft's."""
FORMAT = 1
LOG, EVALUATIONS = "log.jsonl", "evaluations.jsonl"
"""In a run's folder: its log, and where `dehvf-kit eval --output` wrote its answers."""
DIGEST, BUFFERS = "weights_sha256", "buffers"
MAX_CONFIG_BYTES, MAX_CONFIG_DEPTH = 4_000_000, 32
TRAINERS, MEASURED = "model.safetensors", "measured.json"
OWNED = (
    TRAINERS,
    MEASURED,
    OLD_CONFIG,
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "preprocessor_config.json",
    "processor_config.json",
)
"""Files that not every adapter has: they go with the adapter that they belong to."""
FILES = (WEIGHTS, CONFIG, "config.json", "generation_config.json", "README.md", *OWNED[1:])
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)


def adapter_folder(
    given: str | Path,
    revision: str | None = None,
    token: bool | str | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool | None = None,
) -> Path:
    """The folder of an adapter that is given as its folder or its run's, or by the hub id `owner/name` or `owner/name@revision`.

    Only an id that is no folder here is looked for on the hub, and only the files of an adapter are fetched; huggingface_hub's
    cache and its offline mode are honoured. Arguments but the first: as `huggingface_hub.snapshot_download` takes them.
    Raises: AdapterError for a revision of a folder, and where the hub has no such adapter or cannot be asked.
    """
    place = Path(given)
    name, _, inside = str(given).partition("@")
    if exists(place) or not HUB_ID.fullmatch(name):
        if revision is not None:
            raise AdapterError(f"{place}: is a folder, which has no revision {shown(revision)}; leave `revision` out")
        return of_run(place)
    from huggingface_hub import snapshot_download

    wanted = {"revision": revision or inside or None, "token": token, "cache_dir": cache_dir}
    try:
        return Path(
            snapshot_download(name, **wanted, local_files_only=bool(local_files_only), allow_patterns=[*FILES])  # type: ignore[arg-type]
        )
    except Exception as error:  # the hub's own errors, and those of the network
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise AdapterError(f"{place}: there is no such folder, and it cannot be fetched from the hub: {reason[0]}") from error


def of_run(folder: Path) -> Path:
    """The adapter in a run's folder, `RUN/adapter`, also where `build` left an untrained one in RUN; any other folder as it is."""
    inner = folder / ADAPTER
    return inner if is_file(config_file(inner)) else folder


def config_file(folder: Path) -> Path:
    """Where an adapter's config is, under its old name where it has no other."""
    old = folder / OLD_CONFIG
    return old if is_file(old) and not exists(folder / CONFIG) else folder / CONFIG


def read_config(folder: Path) -> dict[str, Any]:
    """`dehvf_config.json`, once called `adapter_config.json`; a save killed after its files were whole is finished first.

    Raises: AdapterError where it is missing, not ours, or of a newer format.
    """
    if exists(folder) and not is_folder(folder):
        raise AdapterError(f"{folder}: is a file; an adapter is a folder, name that")
    if not is_folder(folder):
        raise AdapterError(f"{folder}: there is no such folder")
    finish_saving(folder)
    path = config_file(folder)
    if not is_file(path):
        raise AdapterError(f"{folder}: not an adapter of dehvf-kit, it has no {CONFIG}")
    try:
        size = path.stat().st_size
        if size > MAX_CONFIG_BYTES:
            raise AdapterError(f"{path}: has {size:,} bytes, {MAX_CONFIG_BYTES:,} at most are read; it is no {path.name}")
        config = parse_json(path.read_bytes(), max_depth=MAX_CONFIG_DEPTH)
    except NotJson as error:
        raise AdapterError(f"{path}{f':{error.line}' if error.line else ''}: {error}") from error
    except OSError as error:
        raise AdapterError(f"{path}: cannot be read: {error.strerror or error}") from error
    if not isinstance(config, dict) or config.get("kit") != "dehvf-kit":
        raise AdapterError(f"{path}: not written by dehvf-kit")
    if not isinstance(config.get("format"), int) or isinstance(config["format"], bool):
        raise AdapterError(f"{path}: 'format' is missing")
    if config["format"] > FORMAT:
        raise AdapterError(f"{path}: format {shown(config['format'])}, this kit reads up to {FORMAT}; upgrade dehvf-kit")
    for key in ("recipe", "bases"):
        if not isinstance(config.get(key), dict):
            raise AdapterError(f"{path}: '{key}' is missing")
    return config


def buffer_names(config: Mapping[str, Any]) -> set[str]:
    """The names of the weights that are not trained but kept by components, such as batch norm's statistics."""
    names = config.get(BUFFERS)
    return {name for name in names if isinstance(name, str)} if isinstance(names, list) else set()


def finish_saving(folder: Path) -> None:
    """Finish a save that was killed after its files were whole. Raises: AdapterError where the folder cannot be written."""
    try:
        finish_replacing(folder)
    except OSError as error:
        raise AdapterError(
            f"{folder}: saving into it was interrupted, and cannot be finished: {error.strerror or error}; make it writable"
        ) from error


def read_weights(folder: Path) -> dict[str, Tensor]:
    """The trained weights. Raises: AdapterError where the file is missing, cut short or altered since it was saved."""
    path = folder / WEIGHTS
    if not is_file(path):
        raise AdapterError(f"{folder}: incomplete, it has no {WEIGHTS}; weights in another file are not read")
    wanted = read_config(folder).get(DIGEST)
    try:
        data = path.read_bytes()
        weights = load_tensors(data)
    except OSError as error:
        raise AdapterError(f"{path}: cannot be read: {error.strerror or error}") from error
    except Exception as error:  # safetensors raises a KeyError for a dtype that torch lacks
        raise AdapterError(f"{path}: cannot be read: {error}") from error
    if wanted is not None and hashlib.sha256(data).hexdigest() != wanted:
        raise AdapterError(
            f"{path}: not the weights that {config_file(folder).name} was saved with; it was altered, or copied in part"
        )
    return weights
