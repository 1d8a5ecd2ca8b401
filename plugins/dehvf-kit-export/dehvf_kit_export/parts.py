"""A model in two parts that can be exported: pixels -> memory, and tokens with memory and cache -> logits and cache.

The cut is where components hand values to those that are attached to the decoder, so that it fits every method of the kit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from dehvf_kit.errors import DehvfError
from dehvf_kit.model.attachment import MemoryScope
from dehvf_kit.model.model import DehvfModel
from dehvf_kit.model.run import reads_prompt
from dehvf_kit.recipe.files import alone

FULL = "full_attention"
ROWS = ("has_image", "text_row")
"""Ports that say which rows have images; the exported decoder takes the first as an input and knows one image a row."""
EMPTY = 2
"""Columns of an empty cache, masked out: torch.export takes a length of 0 or 1 for a constant."""


@dataclass(frozen=True)
class Slot:
    """Where one tensor of the memory goes: the component, its port, the field of a value of several tensors."""

    node: str
    port: str
    field: str = ""
    by_row: bool = False

    @property
    def name(self) -> str:
        return "_".join(part for part in (self.node, self.port, self.field) if part)


def attached(model: DehvfModel) -> list[str]:
    """The components at the decoder. Raises: DehvfError for a model that cannot be cut in two."""
    places = {name: model.graph.nodes[name].config.attaches for name in model.nodes}
    inserting = [name for name, place in places.items() if place == "input"]
    if inserting:
        raise DehvfError(f"graph.{inserting[0]}: puts tokens into the decoder's input, which export does not support")
    if reads_prompt(model.graph):
        raise DehvfError("export: this graph reads the question (port prompt), so its memory cannot be made from the image alone")
    if not model.reads_images:
        raise DehvfError("export: this model reads no images; export its decoder with transformers")
    config = model.decoder.config.get_text_config()
    others = [kind for kind in getattr(config, "layer_types", None) or () if kind != FULL]
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    if others or window:
        raise DehvfError(
            f"export: the decoder has {others[0] if others else 'sliding_attention'}; full attention alone is exported"
        )
    return [name for name, place in places.items() if place == "decoder"]


@contextmanager
def arguments(model: DehvfModel, names: Sequence[str]) -> Iterator[dict[str, dict[str, Any]]]:
    """Inside, what the named components are called with is noted."""
    found: dict[str, dict[str, Any]] = {}

    def noting(name: str) -> Any:
        return lambda module, args, kwargs: found.__setitem__(name, dict(kwargs))

    with ExitStack() as stack:
        for name in names:
            handle = model.nodes[name].register_forward_pre_hook(noting(name), with_kwargs=True)
            stack.callback(handle.remove)
        yield found


class Encoder(nn.Module):
    """Pixels of each encoder [image, 3, height, width] -> the tensors of the memory, in the order of `slots`."""

    def __init__(self, model: DehvfModel, example: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.towers = nn.ModuleDict(dict(model.towers.items()))
        self.nodes = model.nodes
        self._model, self._names = [model], attached(model)
        self.slots, self.found = self._look(example)

    def _look(self, example: Mapping[str, Tensor]) -> tuple[list[Slot], dict[str, dict[str, Any]]]:
        """The tensors that reach the components at the decoder, and all that does."""
        found = self._run(tuple(example.values()))
        slots = []
        for name, ports in found.items():
            for port, value in ports.items():
                rows = "batch" in self._model[0].graph.nodes[name].takes[port].axes
                if isinstance(value, Tensor) and port not in ROWS:
                    slots.append(Slot(name, port, by_row=rows))
                elif is_dataclass(value):
                    tensors = [one.name for one in fields(value) if isinstance(getattr(value, one.name), Tensor)]
                    slots += [Slot(name, port, field, rows) for field in tensors]
                elif value is not None and port not in ROWS:
                    raise DehvfError(f"graph.{name}: takes a {type(value).__name__} as '{port}', which export does not support")
        return slots, found

    def _run(self, pixels: Sequence[Tensor]) -> dict[str, dict[str, Any]]:
        model = self._model[0]
        with arguments(model, self._names) as found:
            model.run_graph(pixels[0].shape[0], pixel_values=alone(dict(zip(model.towers, pixels, strict=True))))
        return found

    def forward(self, *pixels: Tensor) -> tuple[Tensor, ...]:
        found = self._run(pixels)
        values = [(found[slot.node][slot.port], slot.field) for slot in self.slots]
        return tuple(getattr(value, field) if field else value for value, field in values)


class Decoder(nn.Module):
    """The next tokens' scores, with the memory that an `Encoder` wrote.

    input_ids [row, token]; attention_mask [row, cached + token]; has_image [row]; memory: the encoder's tensors, those of rows for
    each row; past: keys and values of each layer in turn, [row, head, cached, width], with `EMPTY` masked columns at first
    -> logits [row, token, vocabulary], and keys and values with the new columns.
    """

    def __init__(self, model: DehvfModel, encoder: Encoder) -> None:
        super().__init__()
        self.decoder, self.nodes = model.decoder, model.nodes
        self.slots, self._found = encoder.slots, encoder.found

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, has_image: Tensor, memory: Sequence[Tensor], past: Sequence[Tensor]
    ) -> tuple[Tensor, ...]:
        given = {
            name: {**ports, **({"has_image": has_image} if "has_image" in ports else {})} for name, ports in self._found.items()
        }
        for slot, tensor in zip(self.slots, memory, strict=True):
            whole = given[slot.node][slot.port]
            given[slot.node][slot.port] = replace(whole, **{slot.field: tensor}) if slot.field else tensor
        states = {name: self.nodes[name](**ports) for name, ports in given.items()}
        new, total = input_ids.shape[1], attention_mask.shape[1]
        columns = torch.arange(total, device=input_ids.device)
        allowed = (columns <= columns[total - new :, None]) & attention_mask[:, None, None, :].bool()
        dtype = self.decoder.get_input_embeddings().weight.dtype
        mask = torch.zeros((), dtype=dtype, device=input_ids.device).masked_fill(~allowed, torch.finfo(dtype).min)
        places = (attention_mask.cumsum(-1) - 1).clamp(min=0)[:, total - new :]
        cache = DynamicCache(ddp_cache_data=list(zip(past[::2], past[1::2], strict=True)))
        with MemoryScope(self.nodes, states):
            output = self.decoder(
                input_ids=input_ids, attention_mask=mask, position_ids=places, past_key_values=cache, use_cache=True
            )
        return (output.logits, *(one for layer in output.past_key_values.layers for one in (layer.keys, layer.values)))


def empty_cache(model: DehvfModel, rows: int) -> list[Tensor]:
    """Keys and values of every layer with `EMPTY` columns of zeros, found by running one token."""
    device = next(model.decoder.parameters()).device
    with torch.no_grad():
        found = model.decoder(input_ids=torch.zeros(1, 1, dtype=torch.long, device=device), use_cache=True).past_key_values
    if not isinstance(found, DynamicCache) or not all(hasattr(layer, "keys") for layer in found.layers):
        raise DehvfError(f"export: the decoder keeps a {type(found).__name__}, not keys and values of every layer")
    kept = [one for layer in found.layers for one in (layer.keys, layer.values)]
    return [one.new_zeros(rows, one.shape[1], EMPTY, one.shape[3]) for one in kept]
