"""The memory injector: writes the fused image into the feed-forward network of every decoder layer.

Source: DEHVF, equations 10 to 13; the factored form is method.md's identity, proved by the tests.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from dehvf_kit.api.components import DecoderComponent
from dehvf_kit.api.config import BuildContext, ComponentConfig, ConfigMismatchError
from dehvf_kit.api.shapes import KV, Cost, Readout
from dehvf_kit.backbones.ffn.memory_hooks import FfnHooks, hook_ffns
from dehvf_kit.backbones.ffn.sites import FfnSite, ffn_sites
from dehvf_kit.errors import ShapeError
from dehvf_kit.ops.ffn_memory import (
    Form,
    JoinedTable,
    LayerMemory,
    build_keys_values,
    built_memory,
    choose_form,
    factored_memory,
    join_tables,
)

Watch = Callable[[int, Tensor, "ActiveMemory", FfnSite], None]


class FfnMemoryInjectorConfig(ComponentConfig):
    """FFN'(x) = FFN(x) + output_scale * dropout(act(x K^T)) M with the decoder's own activation and ungated slots.

    `visual_in` says whether the image is written into keys, values or both; `form` picks how the product is computed (`auto` counts
    FLOPs per call); scales and dropout as in the official MemVP runs, which DEHVF follows (**choice**).
    """

    role: ClassVar[str] = "injector"
    takes: ClassVar[tuple[str, ...]] = (
        "fused?: batch decoder_layer kv patch code",
        "readout?: code decoder_hidden",
        "position_keys?: slot decoder_hidden",
        "position_values?: slot decoder_hidden",
        "has_image?: batch",
        "text_row?: batch",
        "order_keys?: image decoder_hidden",
        "order_values?: image decoder_hidden",
    )
    attaches: ClassVar[str] = "decoder"
    strength: ClassVar[str] = "output_scale"
    type: Literal["ffn_memory"] = "ffn_memory"
    visual_scale: float = Field(0.01, gt=0, description="scale of the projected image")
    output_scale: float = Field(0.1, gt=0, description="scale of what the memory adds to the FFN")
    dropout: float = Field(0.1, ge=0, lt=1, description="dropout on the slot activations, in training")
    visual_in: tuple[Literal["key", "value"], ...] = Field(
        KV, min_length=1, description="what the image goes into: keys, values or both"
    )
    form: Form = Field("auto", description="auto, factored or built")

    def resolve(self, context: BuildContext) -> dict[str, int | None]:
        wired = set(context.wires)
        if "fused" in wired and "readout" not in wired:
            raise ConfigMismatchError("has fused codes but no readout; wire a projector's readout to it", "inputs")
        if "readout" in wired and "fused" not in wired:
            raise ConfigMismatchError("has a readout but no fused codes; wire a fuser to it, or remove the projector", "inputs")
        if ("position_keys" in wired) != ("position_values" in wired):
            raise ConfigMismatchError("needs both position_keys and position_values, or neither", "inputs")
        if not wired & {"fused", "position_keys"}:
            raise ConfigMismatchError("has nothing to inject; wire a fuser, a position table, or both", "inputs")
        if "position_keys" not in wired and set(self.visual_in) != set(KV):
            raise ConfigMismatchError(
                "without position tables the one not named is zero and the memory adds nothing; name key and value both",
                "visual_in",
            )
        slots, patches = context.axes.get("slot"), context.axes.get("patch")
        if slots is not None and patches is not None and patches > slots:
            raise ConfigMismatchError(
                f"{patches} patches do not fit into {slots} slots; set the position table's num_slots to {patches} or more"
            )
        return {}

    def cost(self, context: BuildContext) -> Cost:
        hidden, layers = context.decoder.hidden_size, context.decoder.num_layers
        patches, code, slots = (context.axes.get(axis) or 0 for axis in ("patch", "code", "slot"))
        num_kv = len(self.visual_in) if "fused" in context.wires else 0
        return Cost(per_token=layers * (4 * hidden * slots + 2 * num_kv * code * (hidden + patches)))

    def build(self, context: BuildContext) -> FfnMemoryInjector:
        return FfnMemoryInjector(
            self.visual_scale, output_scale=self.output_scale, dropout=self.dropout, visual_in=tuple(self.visual_in), form=self.form
        )


class FfnMemoryInjector(DecoderComponent):
    """Adds the memory it holds in every FFN of the decoder it is attached to.

    forward: fused [batch, decoder_layer, kv, patch, code], a readout, position tables [slot, decoder_hidden] and has_image
    [batch] (True: has one), text_row [batch] where rows have several images, tables by an image's number [image,
    decoder_hidden] (see `LayerMemory`) -> the batch's memory; `with injector.holding(memory):` lets the decoder read it. No
    parameters of its own.
    Cost: per text token and layer 4 * hidden * slot + 4 * code * (hidden + patch) FLOPs in the factored form.
    Raises: ShapeError for rows that are no multiple of the memory's batch, or more patches than slots.
    Source: DEHVF, equations 10 to 13.
    """

    def __init__(
        self,
        visual_scale: float = 0.01,
        output_scale: float = 0.1,
        dropout: float = 0.1,
        visual_in: tuple[str, ...] = KV,
        form: Form = "auto",
    ) -> None:
        super().__init__()
        self.visual_scale, self.output_scale, self.dropout = visual_scale, output_scale, dropout
        self.visual_in, self.form = visual_in, form
        self.sites: list[FfnSite] = []
        self._watch: Watch | None = None

    def hook(self, decoder: nn.Module) -> Iterator[FfnHooks]:
        """Hook every FFN of the decoder. Raises: DecoderError if it has none."""
        self.sites = ffn_sites(decoder)
        yield hook_ffns(decoder, self.sites, self._delta)

    def forward(
        self,
        fused: Tensor | None = None,
        readout: Readout | None = None,
        position_keys: Tensor | None = None,
        position_values: Tensor | None = None,
        has_image: Tensor | None = None,
        text_row: Tensor | None = None,
        order_keys: Tensor | None = None,
        order_values: Tensor | None = None,
    ) -> ActiveMemory:
        if fused is not None and position_keys is not None and fused.shape[3] > position_keys.shape[0]:
            raise ShapeError(f"{fused.shape[3]} patches do not fit into {position_keys.shape[0]} memory slots")
        memory = ActiveMemory(
            self, fused=fused, readout=readout, position_keys=position_keys, position_values=position_values, has_image=has_image
        )
        if fused is not None:
            memory.number_images(text_row, order_keys, order_values)
        return memory

    @contextmanager
    def watching(self, watch: Watch) -> Iterator[None]:
        """Inside, `watch(layer, x, memory, site)` is called with each FFN's input before the memory is read there."""
        before, self._watch = self._watch, watch
        try:
            yield
        finally:
            self._watch = before

    def _delta(self, index: int, x: Tensor) -> Tensor | None:
        if self.memory is None:
            return None
        if self._watch is not None:
            self._watch(index, x, self.memory, self.sites[index])
        return self.memory.read(index, x, self.sites[index], self.dropout if self.training else 0.0)


class ActiveMemory:
    """One batch's memory for all decoder layers; casts to the decoder's dtype once, not once a layer."""

    def __init__(
        self,
        injector: FfnMemoryInjector,
        fused: Tensor | None,
        readout: Readout | None,
        position_keys: Tensor | None,
        position_values: Tensor | None,
        has_image: Tensor | None,
    ) -> None:
        self.visual_scale, self.output_scale, self.form = injector.visual_scale, injector.output_scale, injector.form
        self.visual_in = injector.visual_in
        codes = None if fused is None or readout is None else fused
        self._codes = [] if codes is None else self._by_layer(codes, readout.activation)
        self._tensors: dict[str, Tensor | None] = {
            "weight": None if codes is None else readout.weight,
            "bias": None if codes is None else readout.bias,
            "position_keys": position_keys,
            "position_values": position_values,
            "has_image": None if codes is None else has_image,
        }
        self._text_row: Tensor | None = None
        self.batch = 1 if codes is None else codes.shape[0]
        self._cast: dict[tuple, tuple[dict[str, Tensor | None], list[dict[str, Tensor]]]] = {}
        self._joined: dict[tuple, tuple[JoinedTable | None, JoinedTable | None]] = {}

    def number_images(self, text_row: Tensor | None, order_keys: Tensor | None, order_values: Tensor | None) -> None:
        """Say whose images these are, where rows have several, and what an image's number in its row adds.

        Raises: ShapeError for more images in a row than there are numbers.
        """
        entries = self.batch
        if text_row is not None:
            self._text_row, self.batch = text_row, int(text_row[-1]) + 1
        if order_keys is None:
            return
        row = torch.arange(entries) if text_row is None else text_row.cpu()
        number = torch.arange(entries) - torch.searchsorted(row, row)
        if int(number.max()) >= len(order_keys):
            raise ShapeError(f"{int(number.max()) + 1} images in a row; the order table has numbers for {len(order_keys)}")
        order = nn.functional.one_hot(number, len(order_keys)).to(order_keys)
        seen = self._tensors["has_image"]
        order = order if seen is None else order * seen.to(order)[:, None]
        self._tensors |= {"order": order, "order_keys": order_keys, "order_values": order_values}

    def layer(self, index: int, x: Tensor) -> LayerMemory:
        """The memory of one site in the dtype and on the device of x."""
        place = (x.dtype, x.device)
        cast = self._cast.get(place)
        if cast is None:
            tensors = {name: None if t is None else t.to(x.device, x.dtype) for name, t in self._tensors.items()}
            layers = [{kv: code.to(x.device, x.dtype) for kv, code in codes.items()} for codes in self._codes]
            cast = self._cast[place] = tensors, layers
        shared, layers = cast
        codes = layers[index] if layers else {}
        text_row = None if self._text_row is None else self._text_row.to(x.device)
        return LayerMemory(codes.get("key"), codes.get("value"), visual_scale=self.visual_scale, text_row=text_row, **shared)

    def _tables(self, memory: LayerMemory, x: Tensor) -> tuple[JoinedTable | None, JoinedTable | None]:
        """The joined tables, the same for all layers: made for the first that asks."""
        place = (x.dtype, x.device)
        if place not in self._joined:
            self._joined[place] = join_tables(memory, self.output_scale)
        return self._joined[place]

    def _by_layer(self, fused: Tensor, activate: Callable[[Tensor], Tensor]) -> list[dict[str, Tensor]]:
        """Activated codes of each decoder layer, for keys and for values.

        Taken apart by layers before the activation: in backward, slices of the whole would each fill it, and passes over
        pieces that stay in a cache cost less than passes over the whole.
        """
        num_kv = fused.shape[2]
        places = {kv: min(place, num_kv - 1) for place, kv in enumerate(KV) if kv in self.visual_in}
        if len(set(places.values())) < num_kv:  # keys alone, or values alone
            (place,) = set(places.values())
            fused, places = fused[:, :, place : place + 1], dict.fromkeys(places, 0)
        layers = [activate(layer).unbind(1) for layer in fused.unbind(1)]
        return [{kv: layer[place] for kv, place in places.items()} for layer in layers]

    def read(self, index: int, x: Tensor, site: FfnSite, dropout: float) -> Tensor | None:
        """What this memory adds to FFN(x) at one site. Shapes: x [rows, token, hidden], rows a multiple of the batch."""
        rows, tokens, _ = x.shape
        if rows % self.batch:
            raise ShapeError(
                f"decoder layer {site.layer_idx}: {rows} rows of text for {self.batch} images; "
                "give one image a row (rows may only be repeated whole, as beams are)"
            )
        memory = self.layer(index, x)
        grouped = x.reshape(self.batch, -1, x.shape[-1])
        if self._form(memory, grouped.shape[1]) == "built":
            seen, tables = memory.by_image(grouped), build_keys_values(memory)
            added = built_memory(seen, *tables, site.activation, self.output_scale, dropout)
            added = memory.by_row(added, self.batch)
        else:
            tables = self._tables(memory, x)
            added = factored_memory(grouped, memory, site.activation, self.output_scale, dropout, tables)
        return None if added is None else added.reshape(x.shape)

    def _form(self, memory: LayerMemory, tokens: int) -> str:
        codes = memory.key_codes if memory.key_codes is not None else memory.value_codes
        if codes is None:
            return "factored"
        if self.form != "auto":
            return self.form
        if memory.text_row is not None:  # the text's products with the tables serve all images of a row
            return "factored"
        return choose_form(tokens, codes.shape[1], codes.shape[2], memory.weight.shape[0])
