"""LaVIN in the decoder: a mixture-of-modality adapter before the attention of every layer, routed by a modality token.

In LaVIN's sequence the modality token stands first, attends to itself alone and is seen by itself alone. So what it is in
each layer depends on the layer and the modality, not on the text: here the two tokens pass the decoder once a batch, on
their own, and each sample takes the weights of its modality. The result is the same, and no mask or cache is touched.
Source: LaVIN, arXiv:2305.15023.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from dehvf_kit.api import BuildContext, ConfigMismatchError, Cost, DecoderComponent, DecoderError, ShapeError
from dehvf_kit.backbones.decoder import decoder_spec
from dehvf_kit_baselines.attention_hooks import attention_modules, before_attention
from dehvf_kit_baselines.decoder_outline import modules_of
from dehvf_kit_baselines.mixture import EXPERTS, MixtureAdapter, MixtureConfig, check_groups, mixture_params


class MixtureDecoderAdapterConfig(MixtureConfig):
    """h = x + attention(adapter(norm x)) in every decoder layer, the adapter's two halves mixed by the sample's modality."""

    role: ClassVar[str] = "decoder_adapter"
    takes: ClassVar[tuple[str, ...]] = ("codes?: batch layer patch code", "has_image?: batch")
    attaches: ClassVar[str] = "decoder"
    strength: ClassVar[str] = "scale"
    type: Literal["mixture_of_modality"] = "mixture_of_modality"

    def resolve(self, context: BuildContext) -> dict[str, int | None]:
        if len(attention_modules(modules_of(context.decoder))) != context.decoder.num_layers:
            raise ConfigMismatchError(
                "some of this decoder's layers have no attention with a query map, which the adapters stand before"
            )
        check_groups(context.decoder.hidden_size, self.width, self.groups)
        return {}

    def num_params(self, context: BuildContext) -> dict[str, int]:
        hidden = context.decoder.hidden_size
        return {
            "modality": EXPERTS * hidden,
            "adapters": context.decoder.num_layers * mixture_params(hidden, self.width, self.groups),
        }

    def cost(self, context: BuildContext) -> Cost:
        hidden, layers = context.decoder.hidden_size, context.decoder.num_layers
        maps = self.width * hidden + EXPERTS * self.width * hidden // self.groups
        return Cost(per_token=2 * layers * maps)

    def build(self, context: BuildContext) -> MixtureDecoderAdapter:
        adapters = [
            MixtureAdapter(
                context.decoder.hidden_size,
                width=self.width,
                groups=self.groups,
                temperature=self.temperature,
                scale=self.scale,
                dropout=self.dropout,
            )
            for _ in range(context.decoder.num_layers)
        ]
        return MixtureDecoderAdapter(context.decoder.hidden_size, adapters)


@dataclass(frozen=True)
class Routing:
    """A batch's weights: those of each layer and modality [2, 2], and each row's modality [batch] (1: has an image)."""

    modality: Tensor
    weights: Mapping[int, Tensor]

    def of(self, layer: int, rows: int) -> Tensor:
        """[rows, 2]. Raises: ShapeError for rows that are no multiple of the batch."""
        batch = len(self.modality)
        if rows % batch:
            raise ShapeError(f"{rows} rows of text for {batch} samples (rows may only be repeated whole, as beams are)")
        return self.weights[layer].index_select(0, self.modality).repeat_interleave(rows // batch, 0)


class Recording(dict[int, Tensor]):
    """What is held while the modality tokens pass the decoder: each layer's weights, as they come."""


class MixtureDecoderAdapter(DecoderComponent):
    """forward: codes (their presence says that the batch has images) and has_image [batch] -> the batch's `Routing`.

    Cost: 2 * layer * hidden * width * (1 + 2 / groups) FLOPs a token, and two tokens through the decoder once a batch.
    """

    def __init__(self, hidden_size: int, adapters: list[MixtureAdapter]) -> None:
        super().__init__()
        self.modality = nn.Embedding(EXPERTS, hidden_size)
        self.layers = nn.ModuleList(adapters)
        self._decoder: list[nn.Module] = []  # in a list: the decoder is no part of this module

    def hook(self, decoder: nn.Module) -> Iterator[RemovableHandle]:
        """Hook the attention of every layer. Raises: DecoderError for a decoder of another depth."""
        paths = attention_modules(decoder_spec(decoder).modules)
        if len(paths) != len(self.layers):
            raise DecoderError(f"adapters built for {len(self.layers)} layers; the decoder has {len(paths)}")
        self._decoder = [decoder]
        for layer, path in enumerate(paths):
            change = lambda x, layer=layer: self._adapt(layer, x)  # noqa: E731
            yield before_attention(decoder.get_submodule(path), change)

    def forward(self, codes: Tensor | None = None, has_image: Tensor | None = None) -> Routing:
        device = self.modality.weight.device
        if codes is None:
            modality = torch.zeros(1, dtype=torch.long, device=device)
        elif has_image is None:
            modality = torch.ones(codes.shape[0], dtype=torch.long, device=device)
        else:
            modality = has_image.long().to(device)
        recording, decoder = Recording(), self._decoder[0]
        tokens = self.modality.weight[:, None].to(decoder.get_input_embeddings().weight.dtype)
        with self.holding(recording):
            decoder.base_model(inputs_embeds=tokens, use_cache=False)
        return Routing(modality, dict(recording))

    def _adapt(self, layer: int, x: Tensor) -> Tensor | None:
        memory, adapter = self.memory, self.layers[layer]
        if memory is None:
            return None
        if isinstance(memory, Recording):
            memory[layer] = adapter.weigh(x[:, 0])
            return adapter(x, memory[layer])
        return adapter(x, memory.of(layer, x.shape[0]))
