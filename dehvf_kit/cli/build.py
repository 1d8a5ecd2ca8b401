"""`dehvf-kit build`: the adapter of a recipe without base weights, saved, with everything that can be counted of it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dehvf_kit.cli.console import print_json, quiet_transformers, stdout, waiting
from dehvf_kit.errors import AdapterError, DehvfError

if TYPE_CHECKING:
    from dehvf_kit.costs.flops import FlopCount
    from dehvf_kit.costs.memory import MemoryUsage
    from dehvf_kit.costs.parameters import ParameterTable
    from dehvf_kit.model.model import DehvfModel

RUNS = Path("runs")
FOLDER_NAME = re.compile(r"\w[\w.-]*")


def run(path: Path, overrides: Sequence[str], output: Path | None, overwrite: bool, save: bool, as_json: bool) -> None:
    """Build, save and report. Raises: RecipeError for a faulty recipe, AdapterError where weights would be lost."""
    with waiting(f"Building {path} without base weights", plain=True):
        from dehvf_kit.backbones.base import NoConfig
        from dehvf_kit.costs.flops import count_flops
        from dehvf_kit.costs.memory import memory_usage
        from dehvf_kit.costs.parameters import parameter_table
        from dehvf_kit.model.builder import build_on_meta
        from dehvf_kit.recipe.recipe import load_recipe

        quiet_transformers()
        recipe = load_recipe(path, overrides)
        folder = (output or default_folder(recipe.name)) if save else None
        try:
            model = build_on_meta(recipe)
        except NoConfig:
            recipe.check()  # says the same with the place in the recipe
            raise
        if folder is not None:
            save_adapter(model, folder, overwrite)
        parameters = parameter_table(model.graph, recipe.published)
        dtypes = {name: tower.dtype for name, tower in recipe.vision.items()}
        with model.unhooked():
            flops = count_flops(model.graph, model.decoder, model.towers)
            quantization = getattr(recipe.decoder, "quantization", None)
            memory = memory_usage(model.graph, model.decoder, model.towers, recipe.decoder.dtype, dtypes, quantization)
    if as_json:
        print_json(facts(model, parameters, flops, memory, folder))
        return
    from dehvf_kit.cli.build_report import print_report

    print_report(stdout(), model, parameters, flops, memory, folder)


def default_folder(name: str) -> Path:
    """`runs/NAME`. Raises: DehvfError for a recipe whose name cannot be a folder's."""
    if not FOLDER_NAME.fullmatch(name):
        raise DehvfError(f"name: '{name}' cannot name a folder; say where the adapter goes with --output")
    return RUNS / name


def save_adapter(model: DehvfModel, folder: Path, overwrite: bool) -> None:
    """Write the adapter. One that stands there is replaced where it holds the same weights, or with `overwrite`.

    Raises: AdapterError where other weights would be lost, or the folder cannot be written.
    """
    from dehvf_kit.adapter.checkpoint import save
    from dehvf_kit.adapter.files import WEIGHTS

    if (folder / WEIGHTS).exists() and not overwrite and not _same_weights(model, folder):
        raise AdapterError(
            f"{folder}: holds an adapter with other weights; name another folder, or replace it with --overwrite"
        )
    save(model, folder)


def _same_weights(model: DehvfModel, folder: Path) -> bool:
    """Whether an adapter on disk holds the initial weights of this model, so that nothing is lost with it."""
    import torch

    from dehvf_kit.adapter.files import read_weights

    try:
        known = read_weights(folder)
    except AdapterError:
        return False
    fresh = model.named_trainable_parameters()
    return set(known) == set(fresh) and all(torch.equal(known[name], tensor.detach()) for name, tensor in fresh.items())


def facts(
    model: DehvfModel, parameters: ParameterTable, flops: FlopCount, memory: MemoryUsage, folder: Path | None
) -> dict[str, Any]:
    """All that the command reports, as plain data."""
    recipe, graph = model.recipe, model.graph
    published = parameters.published
    return {
        "recipe": recipe.name,
        "description": recipe.description,
        "source": recipe.source,
        "saved": str(folder) if folder else None,
        "trainable_parameters": parameters.trainable,
        "trainable_parameters_as_published": parameters.as_published,
        "unused_parameters": parameters.unused,
        "published": published.parameters if published else None,
        "published_source": published.source if published else None,
        "matches_published": parameters.matches,
        "parameters": [asdict(term) for term in parameters.terms],
        "decoder": {"model": recipe.decoder.model, **asdict(graph.contexts[graph.order[0]].decoder)},
        "vision": {
            name: {"model": recipe.vision[name].model, **asdict(tower.spec), "layers_read": list(graph.layers[name])}
            for name, tower in model.towers.items()
        },
        "graph": [
            {
                "node": name,
                "role": graph.nodes[name].config.role,
                "type": graph.nodes[name].config.type,
                "inputs": {port: [str(wire) for wire in wires] for port, wires in graph.wires[name].items()},
                "outputs": {port: dict(graph.sizes[name, port]) for port in graph.nodes[name].gives},
            }
            for name in graph.order
        ],
        "flops": asdict(flops),
        "memory_bytes": asdict(memory),
    }
