"""An official MemVP adapter checkpoint (.pth) read into the kit's adapter format, all of it and nothing else.

Source: MemVP's public code: what its checkpoints call each weight.
"""

from __future__ import annotations

import argparse
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from dehvf_kit.adapter.checkpoint import restore, save
from dehvf_kit.api import AdapterError
from dehvf_kit.backbones.base import first_line
from dehvf_kit.errors import listing
from dehvf_kit.model.builder import build_on_meta
from dehvf_kit.model.model import DehvfModel
from dehvf_kit.recipe.recipe import Recipe
from dehvf_kit.utils.atomic import is_file

UNUSED = "adapter_modality_embedding.weight"  # a table that MemVP's code trains and nothing reads
HALVES = {"fc1": "down", "fc2": "up"}
ROLES = {"position": "learned", "projector": "bottleneck_mlp", "vision_adapter": "parallel"}


@dataclass(frozen=True)
class Imported:
    """What was read: the model with its weights, the adapter's folder, and entries left out on purpose."""

    model: DehvfModel
    folder: Path
    dropped: tuple[str, ...]


def import_memvp(file: Path, recipe: Recipe, folder: Path, overwrite: bool = False) -> Imported:
    """Read a checkpoint's weights into a MemVP recipe's adapter and save it to `folder`. Needs no base weights.

    Raises: AdapterError for a recipe that is not MemVP, a file with more than tensors in it, and for all entries at once
    that are unknown, missing or of another shape.
    """
    model = build_on_meta(recipe)
    nodes = _memvp_nodes(model)
    entries = read_entries(file)
    weights, dropped = translate(entries, model, nodes, str(file))
    restore(model, weights, str(file))
    save(model, folder, overwrite)
    return Imported(model, folder, dropped)


def read_entries(file: Path) -> dict[str, Tensor]:
    """The entries below `model`, without the prefix of distributed training. Raises: AdapterError; no pickle is run."""
    if not is_file(file):
        raise AdapterError(f"{file}: there is no such file")
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):  # the run's arguments, which stand beside the weights
            data = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise AdapterError(f"{file}: holds Python objects besides tensors, which could run code; it is not read") from error
    except Exception as error:  # whatever half a file or another one makes torch stumble over
        raise AdapterError(f"{file}: not a checkpoint that torch can read: {first_line(error)}") from error
    entries = data.get("model") if isinstance(data, Mapping) else None
    if not isinstance(entries, Mapping):
        raise AdapterError(f"{file}: has no entry 'model'; an official MemVP checkpoint keeps its weights there")
    others = [str(name) for name, value in entries.items() if not isinstance(value, Tensor)]
    if others:
        raise AdapterError(f"{file}: no tensors: {listing(others)}")
    return {str(name).removeprefix("module."): value for name, value in entries.items()}


def translate(
    entries: Mapping[str, Tensor], model: DehvfModel, nodes: Mapping[str, str], where: str
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The model's weights by name, and what is left out. Raises: AdapterError listing every fault."""
    wanted = expected_entries(model, nodes)
    known = [name for name in entries if name != UNUSED]
    faults = [f"missing: {name}" for name in wanted if name not in entries]
    faults += [f"unknown: {name}" for name in sorted(set(known) - set(wanted))]
    faults += [
        f"'{name}' is {list(entries[name].shape)}, the recipe makes it {list(shape)}"
        for name, shape in wanted.items()
        if name in entries and entries[name].shape != shape
    ]
    hidden = model.graph.contexts[nodes["position"]].decoder.hidden_size
    if UNUSED in entries and entries[UNUSED].shape != (2, hidden):
        faults.append(f"'{UNUSED}' is {list(entries[UNUSED].shape)}, it should be {[2, hidden]}")
    if faults:
        lines = "\n".join(f"  {fault}" for fault in faults)
        raise AdapterError(f"{where}: does not fit the recipe:\n{lines}")
    position, projector, adapter = nodes["position"], nodes["projector"], nodes["vision_adapter"]
    weights = {f"{position}.keys": entries["adapter_emb1"][0], f"{position}.values": entries["adapter_emb2"][0]}
    for part in ("fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"):
        weights[f"{projector}.{part}"] = entries[f"adapter_proj.{part}"]
    blocks = len(model.nodes[adapter].down)
    for half, name in HALVES.items():
        rows = [entries[_vision_name(block, half)] for block in range(blocks)]
        weights[f"{adapter}.{name}"] = torch.stack(rows)
    weights = {name: tensor.float() for name, tensor in weights.items()}
    return weights, (UNUSED,) if UNUSED in entries else ()


def expected_entries(model: DehvfModel, nodes: Mapping[str, str]) -> dict[str, torch.Size]:
    """Names and shapes that the official checkpoint of this recipe has, without the table that nothing reads."""
    position, projector, adapter = (model.nodes[nodes[role]] for role in ("position", "projector", "vision_adapter"))
    shapes = {"adapter_emb1": torch.Size([1, *position.keys.shape]), "adapter_emb2": torch.Size([1, *position.values.shape])}
    shapes |= {f"adapter_proj.{name}": tensor.shape for name, tensor in projector.named_parameters()}
    for block in range(len(adapter.down)):
        for half, name in HALVES.items():
            shapes[_vision_name(block, half)] = getattr(adapter, name)[block].shape
    return shapes


def _vision_name(block: int, half: str) -> str:
    return f"backbone.visual.transformer.resblocks.{block}.adapter_mlp.{half}.weight"


def _memvp_nodes(model: DehvfModel) -> dict[str, str]:
    """The recipe's nodes by role. Raises: AdapterError for a recipe that trains anything else than MemVP does."""
    trained = {name for name, node in model.nodes.items() if any(True for _ in node.parameters())}
    found = {
        node.config.role: name
        for name, node in model.graph.nodes.items()
        if ROLES.get(node.config.role) == node.config.type and name in trained
    }
    groups = [getattr(node.config, "groups", None) for node in model.graph.nodes.values() if node.config.role == "grouper"]
    if set(found) != set(ROLES) or trained != set(found.values()) or groups != [[[-2]]]:
        raise AdapterError(
            f"{model.recipe.source}: not a MemVP recipe: it trains {listing(trained)}; wants {listing(ROLES)} alone, and a "
            "grouper `listed` with groups [[-2]]; take plugins/dehvf-kit-baselines/recipes/memvp_7b.yaml"
        )
    return found
