"""The two files of an adapter, its config and its weights, read as untrusted input."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load as load_tensors
from torch import Tensor

from dehvf_kit.errors import AdapterError, shown
from dehvf_kit.utils.atomic import finish_replacing, is_file, is_folder
from dehvf_kit.utils.strict_json import NotJson, parse_json

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
FORMAT = 1
DIGEST, BUFFERS = "weights_sha256", "buffers"
MAX_CONFIG_BYTES, MAX_CONFIG_DEPTH = 4_000_000, 32


def read_config(folder: Path) -> dict[str, Any]:
    """`adapter_config.json`; a save that was killed after its files were whole is finished first.

    Raises: AdapterError where it is missing, not ours, or of a newer format.
    """
    if not is_folder(folder):
        raise AdapterError(f"{folder}: there is no such folder")
    finish_saving(folder)
    path = folder / CONFIG
    if not is_file(path):
        raise AdapterError(f"{folder}: not an adapter of dehvf-kit, it has no {CONFIG}")
    try:
        size = path.stat().st_size
        if size > MAX_CONFIG_BYTES:
            raise AdapterError(f"{path}: has {size:,} bytes, {MAX_CONFIG_BYTES:,} at most are read; it is no {CONFIG}")
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
        raise AdapterError(f"{path}: not the weights that {CONFIG} was saved with; it was altered, or copied in part")
    return weights
