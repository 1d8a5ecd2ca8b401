"""Records of base models on disk: a checkpoint whose files did not change is digested once, not by every command.

    $DEHVF_KIT_CACHE/bases / <sha256 of what the record depends on>.json

That is every file of the checkpoint (path, size, times, inode), the class, names, shapes and dtypes of the loaded model, and the
versions of the kit and of the libraries that load it. Only a model that comes straight from its files may be looked up here: what
was done to one in memory shows in its weights alone.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from typing import Any

import torch
import transformers
from torch import nn
from torch.distributed.tensor import DTensor

from dehvf_kit._version import __version__
from dehvf_kit.adapter import base_weights
from dehvf_kit.adapter.base_tensors import checkpoint_folder
from dehvf_kit.model.feature_files import default_folder
from dehvf_kit.utils import atomic

FORMAT = 1
STARTED = time.time_ns()
"""Files that changed later may have changed after the model was loaded."""


def kept_record(model: nn.Module) -> dict[str, str] | None:
    """`base_weights.record` of a model that was just loaded: from the cache where its files are known, else read and kept there."""
    key = _key(model)
    if key is None:
        return base_weights.record(model)
    file = default_folder().parent / "bases" / f"{key}.json"
    with contextlib.suppress(OSError, ValueError, RecursionError):
        kept: Any = json.loads(file.read_text(encoding="utf-8"))
        if base_weights.is_record(kept) and kept:
            return dict(kept)
    made = base_weights.record(model)
    if made is not None:
        with contextlib.suppress(OSError):  # a cache that cannot be written keeps nothing
            file.parent.mkdir(parents=True, exist_ok=True)
            atomic.write_text(file, json.dumps(made))
    return made


def _key(model: nn.Module) -> str | None:
    """The name of a model's record; None where its files are not known, where some weights are trained (they are not the
    files'), and where it is split over processes that must read together.
    """
    place = checkpoint_folder(model)
    tensors = [*model.named_parameters(), *model.named_buffers()]
    if place is None or any(isinstance(tensor, DTensor) or tensor.requires_grad for _, tensor in tensors):
        return None
    try:
        stats = [(str(file.resolve()), file.stat()) for file in sorted(place.iterdir()) if file.is_file()]
    except OSError:
        return None
    if not any(path.endswith((".safetensors", ".bin")) for path, _ in stats) or any(one.st_ctime_ns >= STARTED for _, one in stats):
        return None
    decides = {
        "format": FORMAT,
        "versions": [__version__, torch.__version__, transformers.__version__],
        "files": [(path, one.st_size, one.st_mtime_ns, one.st_ctime_ns, one.st_ino) for path, one in stats],
        "class": f"{type(model).__module__}.{type(model).__qualname__}",
        "tensors": [(name, type(tensor).__name__, str(tensor.dtype), tuple(tensor.shape)) for name, tensor in tensors],
        "unloaded": sorted(getattr(model, "unloaded_weights", ())),
        "quantization": str(getattr(model.config, "quantization_config", None)),
    }
    return hashlib.sha256(json.dumps(decides).encode()).hexdigest()[:32]
