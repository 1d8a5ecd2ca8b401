"""The subjects of `compare.py`, all on one and the same frozen decoder: text only, DEHVF, and seven others.

DEHVF, ADEM-VL and gated cross-attention are the kit's own models, built from recipes; LoRA is peft's, placed by the kit's plugin.
MemVP is written here in the form its official code computes, LLaVA's tokens as plainly as they can be. Vision features are given:
no encoder runs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from compare_shapes import Shapes, frozen_decoder, shell
from dehvf_kit_baselines.peft_tuner import PeftConfig
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM

import dehvf_kit
from dehvf_kit.api import BuildContext
from dehvf_kit.backbones.decoder import decoder_spec
from dehvf_kit.backbones.ffn.sites import ffn_sites
from dehvf_kit.components.projector.bottleneck_mlp import BottleneckMlpProjector
from dehvf_kit.model.attachment import MemoryScope
from dehvf_kit.ops.ffn_memory import build_keys_values

PATCH_SIZE = 14
PUBLISHED_LAYERS, EVERY = 32, 6
"""Layers at 7B, and the layers from one block of gated cross-attention to the next."""


class Method:
    """A subject: `prepare` turns an image's features into what is held, `logits` reads it."""

    name = "text only"

    def __init__(self, decoder: LlamaForCausalLM, shapes: Shapes) -> None:
        self.decoder, self.shapes = decoder, shapes

    def prepare(self, features: Tensor) -> Any:
        """What a batch of images becomes, once a forward pass or generation."""

    def logits(self, text: Tensor, held: Any, cache: Any = None) -> Tensor:
        """Logits [batch, token, vocabulary] of a text's embeddings [batch, token, hidden]."""
        return self.decoder(inputs_embeds=text, past_key_values=cache, use_cache=cache is not None).logits

    def forward(self, text: Tensor, features: Tensor) -> Tensor:
        """Both in one: what a training step and a prefill run."""
        return self.logits(text, self.prepare(features))

    def train(self, mode: bool) -> None:
        """Dropout as in training, or none."""

    def trained(self) -> Iterator[nn.Parameter]:
        """Its parameters that get gradients."""
        for part in vars(self).values():
            if isinstance(part, nn.Parameter):
                yield part
            elif isinstance(part, nn.Module):
                yield from (parameter for parameter in part.parameters() if parameter.requires_grad)

    def prepared(self, features: Tensor) -> list[Tensor]:
        """What `prepare` computes with gradients, for timing it alone."""
        held = self.prepare(features)
        return [] if held is None else [held]

    def held_bytes(self, held: Any) -> int:
        """Bytes that are kept for the images while their text is computed."""
        return 0

    @property
    def input_tokens(self) -> int:
        """Tokens that an image adds to the sequence."""
        return 0


class OfTheKit(Method):
    """A method of the kit as its recipe's graph builds it, without vision adapter, which belongs to the encoder."""

    def __init__(self, decoder: LlamaForCausalLM, shapes: Shapes) -> None:
        super().__init__(decoder, shapes)
        self.model = kit_model(shapes, self.graph(shapes), decoder)
        self.layers = list(self.model.graph.layers["vision"])

    def graph(self, shapes: Shapes) -> dict[str, Any]:
        """The nodes of its recipe."""
        raise NotImplementedError

    def read(self, features: Tensor) -> Tensor:
        """Features of the vision layers that it reads."""
        return features if len(self.layers) == features.shape[1] else features[:, self.layers]

    def prepare(self, features: Tensor) -> dict[str, Any]:
        return self.model.memory(features.shape[0], vision_features=self.read(features))

    def logits(self, text: Tensor, held: Any, cache: Any = None) -> Tensor:
        with MemoryScope(self.model.nodes, held):
            return super().logits(text, held, cache)

    def forward(self, text: Tensor, features: Tensor) -> Tensor:
        return self.model(inputs_embeds=text, vision_features=self.read(features), use_cache=False).logits

    def train(self, mode: bool) -> None:
        self.model.train(mode)

    def prepared(self, features: Tensor) -> list[Tensor]:
        return [tensor for tensor in _tensors(self.prepare(features)) if tensor.requires_grad]

    def held_bytes(self, held: Any) -> int:
        return sum(map(_bytes, _tensors(held)))


class AdemVl(OfTheKit):
    """ADEM-VL: patches in two grids in memory, scores activated on both sides; the class token in the input, without its words."""

    name = "ADEM-VL"

    def graph(self, shapes: Shapes) -> dict[str, Any]:
        side = math.isqrt(shapes.patches)
        bottleneck = {"role": "projector", "type": "bottleneck_mlp", "bottleneck_size": shapes.code}
        return {
            "reader": {"type": "grids", "layer": -2, "sides": [side, side // 2], "inputs": {"patches": "vision"}},
            "token_reader": {"role": "reader", "type": "global_tokens", "num_tokens": 1, "layer": -2},
            "projector": {**bottleneck, "inputs": {"patches": "reader"}},
            "token_projector": {**bottleneck, "inputs": {"patches": "token_reader"}},
            "position": {"type": "learned", "num_slots": side**2 + (side // 2) ** 2},
            "visual_tokens": {"type": "visual_tokens", "inputs": {"codes": "token_projector", "readout": "token_projector"}},
            "injector": {"type": "adaptive_memory", "inputs": {"codes": "projector", "readout": "projector"}},
        }

    @property
    def input_tokens(self) -> int:
        return 1


class GatedCrossAttention(OfTheKit):
    """Flamingo's gated cross-attention without its feed-forward networks: five blocks in 32 layers hold as many weights as DEHVF.

    Below six layers there is one block of the same width, so that a layer pays more than it would at the published depth.
    """

    name = "gated cross-attention"

    def graph(self, shapes: Shapes) -> dict[str, Any]:
        with torch.device("meta"):
            nodes = kit_model(
                replace(shapes, layers=PUBLISHED_LAYERS), Dehvf.graph_of(replace(shapes, layers=PUBLISHED_LAYERS))
            ).nodes
        weights = sum(weight.numel() for weight in nodes.parameters())
        blocks = PUBLISHED_LAYERS // EVERY
        width = (weights // blocks - 2 * shapes.hidden - 1) // (2 * shapes.hidden + 2 * shapes.vision_hidden)
        return {
            "reader": {"type": "patch_tokens", "layer": -2},
            "decoder_adapter": {
                "type": "gated_cross_attention",
                "every": min(EVERY, shapes.layers),
                "num_heads": 3,
                "head_size": width // 3,
                "feed_forward": False,
                "inputs": {"patches": "reader"},
            },
        }


class Dehvf(OfTheKit):
    """The kit's own model with all its components but the vision adapter."""

    name = "DEHVF"

    def __init__(self, decoder: LlamaForCausalLM, shapes: Shapes, form: str = "auto") -> None:
        self.form = form
        super().__init__(decoder, shapes)

    def graph(self, shapes: Shapes) -> dict[str, Any]:
        return self.graph_of(shapes, self.form)

    @staticmethod
    def graph_of(shapes: Shapes, form: str = "auto") -> dict[str, Any]:
        """The paper's graph at these sizes."""
        return {
            "grouper": {"type": "contiguous", "num_groups": min(shapes.groups, shapes.layers)},
            "layer_query": {"type": "embedding_mlp"},
            "projector": {"type": "bottleneck_mlp", "bottleneck_size": shapes.code},
            "fuser": {"type": "cross_attention"},
            "position": {"type": "learned", "num_slots": shapes.slots},
            "injector": {"type": "ffn_memory", "form": form},
        }

    def prepared(self, features: Tensor) -> list[Tensor]:
        held, x = self.prepare(features)["injector"], self.shapes.text(1, 1)
        layers = [held.layer(index, x) for index in range(self.shapes.layers)]
        return [codes for layer in layers for codes in (layer.key_codes, layer.value_codes)]

    def held_bytes(self, held: Any) -> int:
        x = self.shapes.text(1, 1)
        layers = [held["injector"].layer(index, x) for index in range(self.shapes.layers)]
        return sum(_bytes(codes) for layer in layers for codes in (layer.key_codes, layer.value_codes))

    def built_bytes(self, held: Any) -> int:
        """Bytes of the same memory's keys and values, built."""
        x, layers = self.shapes.text(1, 1), range(self.shapes.layers)
        return sum(_bytes(table) for index in layers for table in build_keys_values(held["injector"].layer(index, x)))


def kit_model(shapes: Shapes, graph: dict[str, Any], decoder: LlamaForCausalLM | None = None) -> dehvf_kit.DehvfModel:
    """A graph at these sizes; without a decoder, for its components alone. The encoder is never in memory."""
    side = math.isqrt(shapes.patches)
    vision = {
        "model_type": "clip_vision_model",
        "hidden_size": shapes.vision_hidden,
        "intermediate_size": 4 * shapes.vision_hidden,
        "num_hidden_layers": shapes.vision_layers,
        "num_attention_heads": 8,
        "patch_size": PATCH_SIZE,
        "image_size": PATCH_SIZE * side,
    }
    config = {
        "model_type": "llama",
        "hidden_size": shapes.hidden,
        "intermediate_size": shapes.intermediate,
        "num_hidden_layers": shapes.layers,
        "num_attention_heads": shapes.heads,
        "vocab_size": shapes.vocabulary,
    }
    recipe = dehvf_kit.parse_recipe(
        {
            "name": "compare",
            "vision": {"config": vision, "image": {"size": PATCH_SIZE * side}},
            "decoder": {"config": config, "dtype": shapes.dtype},
            "graph": graph,
        }
    )
    with torch.device("meta"):
        encoder = CLIPVisionModel(CLIPVisionConfig(**{key: vision[key] for key in vision if key != "model_type"}))
        decoder = decoder or LlamaForCausalLM(LlamaConfig(**config))
    return dehvf_kit.build(recipe, decoder=decoder, vision=encoder)


class MemVp(Method):
    """MemVP as its official code computes it: the projected image v once, keys v + P1 and values v + P2 in every FFN call.

    Trained weights are float32 beside a decoder of whatever dtype, v has the decoder's; their sums are float32 and are cast
    for the products, as under autocast. Their second run of the FFN's norm is left out. Source: JieShibo/MemVP, memvp.
    """

    name = "MemVP"
    visual_scale, output_scale, dropout = 0.01, 0.1, 0.1

    def __init__(self, decoder: LlamaForCausalLM, shapes: Shapes) -> None:
        super().__init__(decoder, shapes)
        with torch.device(shapes.device):
            self.projector = BottleneckMlpProjector(shapes.vision_hidden, shapes.code, shapes.hidden)
            self.position_keys = nn.Parameter(0.02 * torch.randn(1, shapes.slots, shapes.hidden))
            self.position_values = nn.Parameter(torch.zeros(1, shapes.slots, shapes.hidden))
        self.visual: Tensor | None = None
        self.training = False
        for site in ffn_sites(decoder):
            decoder.get_submodule(site.path).register_forward_hook(self._add)

    def prepare(self, features: Tensor) -> Tensor:
        visual = self.visual_scale * self.projector.project(features[:, -2, 1:]).to(features.dtype)
        visual = visual * torch.ones(len(visual), 1, 1, dtype=visual.dtype, device=visual.device)
        missing = self.shapes.slots - visual.shape[1]
        return torch.cat([visual, visual.new_zeros(len(visual), missing, visual.shape[2])], 1)

    def _add(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        (x,) = args
        keys = self.visual + self.position_keys
        inner = F.dropout(F.silu(x @ keys.to(x.dtype).permute(0, 2, 1)), self.dropout, self.training)
        values = self.visual + self.position_values
        return output + self.output_scale * (inner @ values.to(x.dtype))

    def logits(self, text: Tensor, held: Any, cache: Any = None) -> Tensor:
        self.visual = held
        return super().logits(text, held, cache)

    def train(self, mode: bool) -> None:
        self.training = mode

    def held_bytes(self, held: Any) -> int:
        return _bytes(held)


class Llava(Method):
    """An image's projected patches before the text, as LLaVA has them; logits of the text alone."""

    name = "LLaVA-style"

    def __init__(self, decoder: LlamaForCausalLM, shapes: Shapes) -> None:
        super().__init__(decoder, shapes)
        with torch.device(shapes.device):
            self.projector = BottleneckMlpProjector(shapes.vision_hidden, shapes.code, shapes.hidden)

    def prepare(self, features: Tensor) -> Tensor:
        return self.projector.project(features[:, -2, 1:]).to(features.dtype)

    def logits(self, text: Tensor, held: Any, cache: Any = None) -> Tensor:
        if cache is not None and cache.get_seq_length() > 0:
            return super().logits(text, held, cache)
        whole = torch.cat([held, text], 1)
        reading = {"past_key_values": cache, "use_cache": cache is not None, "logits_to_keep": text.shape[1]}
        return self.decoder(inputs_embeds=whole, **reading).logits

    def held_bytes(self, held: Any) -> int:
        return 2 * self.shapes.layers * _bytes(held)  # keys and values of these tokens in every layer's cache

    @property
    def input_tokens(self) -> int:
        return self.shapes.patches


class LoraAlone(Method):
    """LoRA of rank 6 on the query and value projections, unmerged, without an image: LLaVA-LoRA pays this and the tokens."""

    name = "LoRA, no image"

    def __init__(self, decoder: LlamaForCausalLM, shapes: Shapes) -> None:
        super().__init__(decoder, shapes)
        self.lora = lora(decoder, shapes)


class LlavaLora(Llava):
    """LLaVA's tokens and this LoRA together, as LLaVA-LoRA trains."""

    name = "LLaVA-LoRA"

    def __init__(self, decoder: LlamaForCausalLM, shapes: Shapes) -> None:
        super().__init__(decoder, shapes)
        self.lora = lora(decoder, shapes)


def lora(decoder: LlamaForCausalLM, shapes: Shapes) -> nn.Module:
    """LoRA placed in a decoder; its trained weights."""
    config = PeftConfig(settings={"r": 6, "lora_alpha": 12}, targets=("query", "value"))
    placed = config.build(BuildContext({}, decoder_spec(decoder))).to(shapes.device)
    placed.attach(decoder)
    return placed


METHODS = (Method, Dehvf, MemVp, AdemVl, GatedCrossAttention, Llava, LoraAlone, LlavaLora)


def subjects(shapes: Shapes, decoder: nn.Module | None = None, methods: tuple[type[Method], ...] = METHODS) -> list[Method]:
    """Every subject on its own shell of one decoder."""
    decoder = frozen_decoder(shapes) if decoder is None else decoder
    return [method(shell(decoder, shapes.layers), shapes) for method in methods]


def _tensors(held: Any) -> Iterator[Tensor]:
    """Every tensor in what a component holds for a batch, however it is kept; those that one holds twice come once."""
    seen: set[int] = set()

    def walk(value: Any) -> Iterator[Tensor]:
        if id(value) in seen or isinstance(value, nn.Parameter | nn.Module):
            return
        seen.add(id(value))
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, dict):
            for one in value.values():
                yield from walk(one)
        elif isinstance(value, list | tuple):
            for one in value:
                yield from walk(one)
        elif hasattr(value, "__dict__"):
            yield from walk(vars(value))

    yield from walk(held)


def _bytes(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.numel() * tensor.element_size()
