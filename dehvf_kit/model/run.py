"""One batch through a model: features per encoder into the graph's modules, what they return into the decoder.

Each row reads one, several or no images, from pixels or features given, and, for nodes that read it (ports `prompt` and
`prompt_mask`), the question as embeddings.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import GenerationConfig

from dehvf_kit.api.registry import wrapped_as
from dehvf_kit.api.shapes import Unprojected
from dehvf_kit.data.processing import padded_index
from dehvf_kit.errors import DehvfError, PluginError, ShapeError
from dehvf_kit.model.input_tokens import IGNORED
from dehvf_kit.recipe.files import SINGLE, alone
from dehvf_kit.recipe.graph import BATCH, Graph, Wire

if TYPE_CHECKING:
    from dehvf_kit.backbones.vision.tower import VisionTower
    from dehvf_kit.recipe.recipe import Recipe

Prompt = tuple[Tensor, Tensor]
"""Embeddings [row, token, decoder_hidden] and mask [row, token]."""
Features = Tensor | Mapping[str, Tensor]
_ABSENT = object()
# Settings of a base model that say nothing without sampling or beams; transformers refuses to save them then.
SAMPLING = ("temperature", "top_p", "top_k", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff")
BEAMS = ("early_stopping", "length_penalty")


def to_device(value: Any, device: torch.device) -> Any:
    """A tensor on a device, or a mapping with every tensor in it there: a batch, or one tensor per encoder."""
    if isinstance(value, Mapping):
        return {name: to_device(inner, device) for name, inner in value.items()}
    return value.to(device) if isinstance(value, Tensor) else value


def by_encoder(value: Features) -> Mapping[str, Tensor]:
    """Tensors by encoder; that of an encoder without a name is called `vision`."""
    return value if isinstance(value, Mapping) else {SINGLE: value}


def per_encoder(function: Callable[[Tensor], Any], value: Features) -> Any:
    """A function of one encoder's tensor, applied to that, or to each encoder's by name."""
    return alone({name: function(tensor) for name, tensor in by_encoder(value).items()})


def by_tower(given: Features, towers: Mapping[str, nn.Module], what: str) -> dict[str, Tensor]:
    """One tensor per encoder, from a mapping or, where there is one encoder, from its tensor. Raises: ShapeError."""
    names = list(towers)
    if isinstance(given, Tensor):
        if len(names) != 1:
            raise ShapeError(f"{what}: one tensor for {len(names)} encoders; give a mapping with {', '.join(names)}")
        return {names[0]: given}
    if not isinstance(given, Mapping):
        raise ShapeError(f"{what} is a {type(given).__name__}; give a tensor, or a mapping with {', '.join(names)}")
    if set(given) != set(names):
        raise ShapeError(f"{what}: given for {sorted(given)}; wants {sorted(names)}")
    return dict(given)


def one_a_row(
    features: Mapping[str, Tensor], towers: Mapping[str, VisionTower], rows: int, has_image: Tensor | None
) -> dict[str, Tensor]:
    """Features [row, layer, 1 + patch, vision_hidden] of every encoder, zero in rows that have no image.

    Images may be given for all rows, or for those flagged in has_image [row] only. Raises: ShapeError where they do
    not fit the encoder or the rows.
    """
    placed = {}
    for name, tensor in features.items():
        layers, width = len(towers[name].layers), towers[name].spec.hidden_size
        if tensor.ndim != 4 or tensor.shape[1] != layers or tensor.shape[3] != width:
            raise ShapeError(
                f"vision_features of '{name}' is {tuple(tensor.shape)}; wants [images, {layers}, 1 + patches, {width}]"
            )
        if tensor.shape[0] != rows:
            owners = None if has_image is None else has_image.nonzero().squeeze(1).to(tensor.device)
            if owners is None or len(owners) != tensor.shape[0]:
                flagged = "" if owners is None else f", of which {len(owners)} have an image by has_image"
                raise ShapeError(f"{tensor.shape[0]} images for {rows} rows of text{flagged}")
            tensor = tensor.new_zeros(rows, *tensor.shape[1:]).index_copy(0, owners, tensor)
        placed[name] = tensor
    return placed


def image_entries(image_index: Tensor, rows: int) -> tuple[Tensor | None, Tensor | None, Tensor]:
    """Which images each row has -> text_row [entry] or None, has_image [entry] or None, image_index [entry with an image].

    An entry is an image of a row, or a row without one. image_index [row, image]: -1 where a row has fewer; text_row is None
    where none has more than one. Raises: ShapeError for another number of rows.
    """
    if image_index.shape[0] != rows:
        raise ShapeError(f"image_index is {tuple(image_index.shape)}; wants a row for each of {rows} rows of text")
    given = image_index.cpu() >= 0
    counts = given.sum(1)
    text_row = torch.arange(rows).repeat_interleave(counts.clamp(min=1))
    has_image = (counts > 0)[text_row]
    single = int(counts.max()) <= 1
    return None if single else text_row, None if has_image.all() else has_image, image_index.cpu()[given]


def run_nodes(
    graph: Graph,
    nodes: Mapping[str, nn.Module],
    features: Mapping[str, Tensor] | None,
    has_image: Tensor | None,
    seen: set[str] | None = None,
    text_row: Tensor | None = None,
    prompt: tuple[Tensor, Tensor] | None = None,
) -> dict[str, Any]:
    """Every node's output by name: one value, or a tuple in the order of its ports.

    A node that needs what this batch has not (features, where there is no image) does not run.
    seen: nodes whose outputs were compared with their ports before; those that are compared now are added.
    Raises: PluginError for a component that does not return one value a port, or raises something of its own; ShapeError
    for one whose output has another number of axes than its port, or another size where that is known.
    """
    values: dict[tuple[str, str], Any] = {(BATCH, "has_image"): has_image, (BATCH, "text_row"): text_row}
    if prompt is not None:
        prompt = prompt if text_row is None else (prompt[0][text_row], prompt[1][text_row])
        values |= {(BATCH, "prompt"): prompt[0], (BATCH, "prompt_mask"): prompt[1]}
    for name, tensor in (features or {}).items():
        values[name, "globals"], values[name, "patches"] = tensor[:, :, 0], tensor[:, :, 1:]
    outputs = {}
    for name in graph.order:
        arguments = _arguments(graph, name, values)
        if arguments is None:
            continue
        config = graph.nodes[name].config
        try:
            outputs[name] = nodes[name](**arguments)
        except Exception as error:
            wrapped = wrapped_as(error, config, f"graph.{name}")
            if wrapped is None:
                raise
            raise wrapped from error
        ports = list(graph.nodes[name].gives)
        results = outputs[name] if len(ports) > 1 else (outputs[name],)[: len(ports)]
        if not isinstance(results, tuple) or len(results) != len(ports):
            given = f"{len(results)} values" if isinstance(results, tuple) else f"a {type(results).__name__}"
            raise PluginError(f"node '{name}' returned {given} for its ports {', '.join(ports)}; return one value a port")
        if seen is not None and name not in seen:
            _compare(graph, name, arguments, results)
            seen.add(name)
        values |= {(name, port): value for port, value in zip(ports, results, strict=True)}
    return outputs


def _compare(graph: Graph, name: str, arguments: Mapping[str, Any], results: tuple[Any, ...]) -> None:
    """Raises: ShapeError where a node's tensors are not what its ports say.

    Left open are axes of no known size, and those of which the node was given another size than the graph knows.
    """
    free = {BATCH}
    for port, given in arguments.items():
        several = given if graph.nodes[name].takes[port].many else [given]
        for wire, value in zip(graph.wires[name][port], several, strict=True):
            axes, sizes = graph.nodes[name].takes[port].axes, graph.sizes[wire.node, wire.port]
            if isinstance(value, Tensor) and value.ndim == len(axes):
                free |= {axis for axis, size in zip(axes, value.shape, strict=True) if sizes.get(axis) != size}
    for port, value in zip(graph.nodes[name].gives.values(), results, strict=True):
        if not isinstance(value, Tensor):
            continue
        sizes = graph.sizes[name, port.name]
        wanted = [None if axis in free else sizes.get(axis) for axis in port.axes]
        fits = value.ndim == len(wanted) and all(
            size is None or not isinstance(given, int) or given == size for given, size in zip(value.shape, wanted, strict=True)
        )
        if not fits:
            declared = graph.shape(Wire(name, port.name), port.axes)
            raise ShapeError(f"node '{name}' returned {list(value.shape)} for its port {port.name} [{declared}]")


def _arguments(graph: Graph, name: str, values: Mapping[tuple[str, str], Any]) -> dict[str, Any] | None:
    """A node's inputs, or None where one that it needs is absent. A wire to a tower itself carries nothing at run time."""
    node = graph.nodes[name]
    arguments = {}
    for port, wires in graph.wires[name].items():
        if wires[0].port == "tower":
            continue
        found = [values.get((wire.node, wire.port), _ABSENT) for wire in wires]
        if any(value is _ABSENT for value in found):
            if not node.takes[port].optional:
                return None
            continue
        if not node.config.takes_unprojected:
            found = [one.project(one.patches) if isinstance(one, Unprojected) else one for one in found]
        arguments[port] = found if node.takes[port].many else found[0]
    return arguments


def generation_config(decoder: nn.Module, recipe: Recipe | None, tokenizer: Any = None) -> GenerationConfig:
    """The decoder's own settings, over them the recipe's, and the tokenizer's padding and end tokens.

    An answer ends at the token that labels end with, which is the tokenizer's, and at every one that the decoder ends at.
    """
    known = getattr(decoder, "generation_config", None)
    config = GenerationConfig(**known.to_dict()) if known is not None else GenerationConfig()
    if recipe is not None:
        wanted = recipe.generation.model_dump()
        if not wanted["do_sample"]:
            wanted |= dict.fromkeys(SAMPLING)
        if wanted["num_beams"] == 1:
            wanted |= dict.fromkeys(BEAMS)
        for name, value in wanted.items():
            setattr(config, name, value)
    end = getattr(tokenizer, "eos_token_id", None)
    if end is not None:
        known = config.eos_token_id
        others = [known] if isinstance(known, int) else list(known or ())
        ends = [end, *(token for token in others if token != end)]
        config.eos_token_id = ends if len(ends) > 1 else end
    pad = getattr(tokenizer, "pad_token_id", None)
    if pad is not None:
        config.pad_token_id = pad
    return config


class RowFeatures(NamedTuple):
    """features: of each encoder [row, layer, 1 + patch, vision_hidden], None without images; has_image [row];
    text_row [row]: which row of text an image belongs to, None where each has at most one."""

    features: dict[str, Tensor] | None = None
    has_image: Tensor | None = None
    text_row: Tensor | None = None


def row_features(
    model: Any,
    rows: int,
    pixel_values: Features | None,
    vision_features: Features | None,
    has_image: Tensor | None,
    image_index: Tensor | Sequence[Sequence[int]] | None,
) -> RowFeatures:
    """The features of `rows` rows of text. Args: model, a `DehvfModel`; the others as in its `forward`.

    Raises: ShapeError where images and rows do not match; DehvfError for features where a vision adapter is trained.
    """
    towers = model.towers
    if pixel_values is not None and vision_features is not None:
        raise ShapeError("give pixel_values or vision_features, not both")
    if vision_features is not None and model.training and torch.is_grad_enabled() and model.image_is_trained:
        raise DehvfError(
            "vision_features in training: the vision adapter works inside the encoder and would get no gradient; "
            "give pixel_values, or leave the vision adapter out of the recipe"
        )
    if has_image is not None:
        has_image = torch.as_tensor(has_image).bool()
        if has_image.shape != (rows,):
            raise ShapeError(f"has_image is {tuple(has_image.shape)}; wants one flag for each of {rows} rows")
    if not model.reads_images:
        return RowFeatures(has_image=has_image)
    if pixel_values is not None and any(one.shape[0] for one in by_tower(pixel_values, towers, "pixel_values").values()):
        vision_features = model.vision_features(pixel_values)
    if vision_features is None:
        if has_image is not None and has_image.any():
            raise ShapeError(f"has_image flags {int(has_image.sum())} of {rows} rows, but no images were given")
        return RowFeatures()
    given = by_tower(vision_features, towers, "vision_features")
    text_row = None
    if image_index is not None:
        if not isinstance(image_index, Tensor):
            image_index = padded_index(image_index)
        if image_index.ndim == 2:
            count = max(map(len, given.values()))
            if not torch.compiler.is_compiling() and (named := len(torch.unique(image_index[image_index >= 0]))) < count:
                raise ShapeError(
                    f"{count} images were given, and image_index names {named} of them; where a pipeline of transformers "
                    "puts several conversations together, set batch_size=1"
                )
            text_row, has_image, image_index = image_entries(image_index, rows)
        given = {name: tensor.index_select(0, image_index.to(tensor.device)) for name, tensor in given.items()}
    return RowFeatures(one_a_row(given, towers, rows if text_row is None else len(text_row), has_image), has_image, text_row)


def reads_prompt(graph: Graph) -> bool:
    """Whether a node reads the question."""
    return any(wire.node == BATCH and wire.port.startswith("prompt") for wire, _, _ in graph.edges())


def question(model: Any, text: Tensor, attention_mask: Tensor | None, labels: Tensor | None, cache: Any) -> Prompt | None:
    """The text before a row's first label, which is what generation is given; None where no node reads it.

    Shapes: text [row, token], or its embeddings [row, token, decoder_hidden]; attention_mask and labels [row, token].
    Raises: ShapeError with a filled cache, whose pass is given the last tokens alone.
    """
    if not reads_prompt(model.graph):
        return None
    if cache is not None and cache.get_seq_length() > 0:
        raise ShapeError("past_key_values: this model reads the whole question (port prompt); give the whole text, or use generate")
    mask = torch.ones(text.shape[:2], device=text.device).bool() if attention_mask is None else attention_mask.bool()
    if labels is not None:
        mask = mask & ((labels != IGNORED).cumsum(1) == 0).to(mask.device)
    return (model.get_input_embeddings()(text) if text.ndim == 2 else text).detach(), mask
