"""The five subjects of `compare.py`, all on one and the same frozen decoder: text only, DEHVF, MemVP, LLaVA-style, LoRA.

DEHVF is the kit's own model, built from a recipe; LoRA is peft's, placed by the kit's plugin. MemVP is written here in the
form its official code computes, LLaVA's tokens as plainly as they can be. Vision features are given: no encoder runs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
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
from dehvf_kit.model.run import MemoryScope
from dehvf_kit.ops.ffn_memory import build_keys_values

PATCH_SIZE = 14


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


class Dehvf(Method):
    """The kit's own model with all its components but the vision adapter, which belongs to the encoder."""

    name = "DEHVF"

    def __init__(self, decoder: LlamaForCausalLM, shapes: Shapes, form: str = "auto") -> None:
        super().__init__(decoder, shapes)
        self.model = dehvf_model(shapes, decoder, form)

    def prepare(self, features: Tensor) -> dict[str, Any]:
        return self.model.memory(features.shape[0], vision_features=features)

    def logits(self, text: Tensor, held: Any, cache: Any = None) -> Tensor:
        with MemoryScope(self.model.nodes, held):
            return super().logits(text, held, cache)

    def forward(self, text: Tensor, features: Tensor) -> Tensor:
        return self.model(inputs_embeds=text, vision_features=features, use_cache=False).logits

    def train(self, mode: bool) -> None:
        self.model.train(mode)

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


def dehvf_model(shapes: Shapes, decoder: LlamaForCausalLM | None = None, form: str = "auto") -> dehvf_kit.DehvfModel:
    """The paper's graph at these sizes; without a decoder, for its components alone. The encoder is never in memory."""
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
            "graph": {
                "grouper": {"type": "contiguous", "num_groups": min(shapes.groups, shapes.layers)},
                "layer_query": {"type": "embedding_mlp"},
                "projector": {"type": "bottleneck_mlp", "bottleneck_size": shapes.code},
                "fuser": {"type": "cross_attention"},
                "position": {"type": "learned", "num_slots": shapes.slots},
                "injector": {"type": "ffn_memory", "form": form},
            },
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
        config = PeftConfig(settings={"r": 6, "lora_alpha": 12}, targets=("query", "value"))
        self.lora = config.build(BuildContext({}, decoder_spec(decoder))).to(shapes.device)
        self.lora.attach(decoder)


METHODS = (Method, Dehvf, MemVp, Llava, LoraAlone)


def subjects(shapes: Shapes, decoder: nn.Module | None = None, methods: tuple[type[Method], ...] = METHODS) -> list[Method]:
    """Every subject on its own shell of one decoder."""
    decoder = frozen_decoder(shapes) if decoder is None else decoder
    return [method(shell(decoder, shapes.layers), shapes) for method in methods]


def _bytes(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.numel() * tensor.element_size()
