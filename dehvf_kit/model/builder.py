"""Recipe -> DehvfModel, step by step: towers, graph on their sizes, components, attachment."""

from __future__ import annotations

import inspect
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from dehvf_kit.api.components import CONTRACT
from dehvf_kit.api.config import MAX_PARAMETERS, too_many
from dehvf_kit.api.registry import plugin_code
from dehvf_kit.backbones.decoder import decoder_spec, prepare_tokenizer
from dehvf_kit.backbones.vision.tower import VisionTower
from dehvf_kit.data.processing import DehvfProcessor, build_image_processor
from dehvf_kit.errors import DehvfError, Fault, PluginError, listing
from dehvf_kit.model.model import DehvfModel
from dehvf_kit.recipe.files import encoder_path
from dehvf_kit.recipe.graph import DECODER, Graph
from dehvf_kit.recipe.plugin_manager import plugins
from dehvf_kit.recipe.recipe import Recipe, as_recipe

if TYPE_CHECKING:
    from transformers import BaseImageProcessor, PreTrainedModel, PreTrainedTokenizerBase

Vision = nn.Module | Mapping[str, nn.Module]


def build(
    recipe: Recipe | Mapping[str, Any] | str | Path,
    decoder: PreTrainedModel | None = None,
    vision: Vision | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    image_processor: BaseImageProcessor | None = None,
    expected_parameters: int | None = None,
    device_map: Any = None,
    overrides: Sequence[str] = (),
) -> DehvfModel:
    """Build a recipe's model on its base models, or on modules that are already in memory.

    The initial weights follow `training.seed`.

    Args:
        recipe: what to build: a recipe, its plain data, or a file's path.
        decoder: a decoder in memory.
        vision: an encoder in memory, or several by name where the recipe has several.
        tokenizer: the decoder's; a decoder handed over without one gives a model without a processor.
        image_processor: used in place of the recipe's.
        expected_parameters: a graph with more than twice as many trained parameters is refused before any is made.
        device_map: where the decoder is loaded, in transformers' terms; encoders and components go to its first device.
        overrides: `key=value` changes to the recipe.

    Raises:
        RecipeError: where the graph does not fit the towers.
        DehvfError: where a base model is not on this machine.
    """
    recipe = as_recipe(recipe, overrides)
    sources = plugins().registry.sources
    towers = _towers(recipe, vision, meta=False)
    if decoder is None:
        with plugin_code(recipe.decoder, DECODER):
            placed = {} if device_map is None else {"device_map": device_map}
            decoder = recipe.decoder.load(sources, **placed)
            tokenizer = tokenizer or recipe.decoder.tokenizer(sources)
    if device_map is not None:
        for tower in towers.values():
            tower.to(next(decoder.parameters()).device)
    processor = None
    if tokenizer is not None:
        image_processor = image_processor or build_image_processor({name: tower.image for name, tower in recipe.vision.items()})
        processor = DehvfProcessor(image_processor, prepare_tokenizer(tokenizer), prompt=prompt_of(recipe))
    return assemble(recipe, decoder, towers, processor, expected_parameters)


def build_on_meta(recipe: Recipe, processor: Any = None) -> DehvfModel:
    """The recipe's model with real components on base models without weights: for counting, drawing and checking."""
    with plugin_code(recipe.decoder, DECODER):
        decoder = recipe.decoder.meta(plugins().registry.sources)
    return assemble(recipe, decoder, _towers(recipe, None, meta=True), processor)


def assemble(
    recipe: Recipe, decoder: nn.Module, towers: Mapping[str, VisionTower], processor: Any, expected_parameters: int | None = None
) -> DehvfModel:
    """Components wired onto towers. Raises: RecipeError where they do not fit."""
    graph = recipe.check({name: tower.spec for name, tower in towers.items()}, decoder_spec(decoder))
    _refuse_more(graph, expected_parameters, recipe.source)
    for name, tower in towers.items():
        tower.layers = graph.layers[name]
    nodes = build_nodes(graph, recipe.training.seed)
    device = next(decoder.parameters()).device
    if device.type != "meta":
        for node in nodes.values():
            node.to(device)
    return DehvfModel(decoder, towers=towers, graph=graph, nodes=nodes, recipe=recipe, processor=processor)


def _refuse_more(graph: Graph, expected: int | None, where: str) -> None:
    """Raises: DehvfError where a graph makes far more trained parameters than are expected, or than any machine holds."""
    count = sum(sum(graph.num_params(name).values()) for name in graph.order)
    if count > MAX_PARAMETERS:
        raise DehvfError(f"{where}: {too_many(count)}")
    if expected is not None and count > 2 * expected:
        raise DehvfError(f"{where}: makes {count:,} trained parameters where there are weights for {expected:,}")


def component_faults(graph: Graph) -> list[Fault]:
    """What `check` finds wrong with the modules of a graph's plugins, which it builds: parameters, ports, what `attaches` needs."""
    faults = []
    for name in graph.order:
        if not type(graph.nodes[name].config).__module__.startswith("dehvf_kit."):
            try:
                build_nodes(graph, names=(name,))
            except DehvfError as error:
                faults.append(Fault(f"graph.{name}", str(error).removeprefix(f"graph.{name}").removeprefix(":").lstrip()))
    return faults


def build_nodes(graph: Graph, seed: int = 0, names: Sequence[str] | None = None) -> dict[str, nn.Module]:
    """The graph's components, or those named, with float32 weights; each node's depend on the seed and its name alone."""
    nodes = {}
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        for name in graph.order if names is None else names:
            torch.manual_seed(seed + zlib.crc32(name.encode()))
            with plugin_code(graph.nodes[name].config, f"graph.{name}"):
                nodes[name] = graph.nodes[name].config.build(graph.contexts[name])
            _refuse_miscount(graph, name, nodes[name])
            _refuse_unfit(graph, name, nodes[name])
    return nodes


def _refuse_unfit(graph: Graph, name: str, module: nn.Module) -> None:
    """Raises: PluginError for a module that lacks what its `attaches` needs, or whose forward does not take its ports."""
    node = graph.nodes[name]
    where, attaches = f"graph.{name} ({node.config.type})", node.config.attaches
    lacking = [method for method in CONTRACT.get(attaches, ()) if not hasattr(module, method)]
    if lacking:
        raise PluginError(
            f"{where}: attaches = {attaches!r}, but its module has no {', '.join(lacking)}; make it a subclass of "
            f"dehvf_kit.api.{'VisionComponent' if attaches == 'vision' else 'DecoderComponent'}, which has them"
        )
    given = dict.fromkeys(port for port, wires in graph.wires[name].items() if wires[0].port != "tower")
    try:
        inspect.signature(module.forward).bind(**given)
    except TypeError as error:
        raise PluginError(
            f"{where}: its ports here are {listing(given)}, which forward{inspect.signature(module.forward)} does not take as "
            f"keywords: {error}; name the parameters after the ports, an optional port's with a default"
        ) from error


def _refuse_miscount(graph: Graph, name: str, module: nn.Module) -> None:
    """Raises: PluginError where `num_params`, which every count of the kit goes by, is not what the module trains."""
    said = sum(graph.num_params(name).values())
    made = sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
    if said != made:
        raise PluginError(
            f"graph.{name} ({graph.nodes[name].config.type}): num_params says {said:,}, the module has {made:,} trained "
            "parameters; return them from num_params"
        )


def prompt_of(recipe: Recipe) -> dict[str, Any] | None:
    """The prompt settings that travel with an adapter."""
    return recipe.data.prompt.model_dump() if recipe.data is not None else None


def _towers(recipe: Recipe, vision: Vision | None, meta: bool) -> dict[str, VisionTower]:
    sources = plugins().registry.sources
    given: Mapping[str, nn.Module] = {}
    if vision is not None:
        given = vision if isinstance(vision, Mapping) else dict.fromkeys(recipe.vision, vision)
        if not isinstance(vision, Mapping) and len(recipe.vision) > 1:
            raise DehvfError(f"the recipe has {len(recipe.vision)} encoders; hand them over by name: {', '.join(recipe.vision)}")
        if set(given) != set(recipe.vision):
            raise DehvfError(f"vision handed over for {sorted(given)}; the recipe names {sorted(recipe.vision)}")
    towers = {}
    for name, config in recipe.vision.items():
        model = given.get(name)
        with plugin_code(config, encoder_path(name)):
            if model is None:
                model = config.meta(sources) if meta else config.load(sources)
            towers[name] = model if isinstance(model, VisionTower) else config.tower(model)
    return towers
