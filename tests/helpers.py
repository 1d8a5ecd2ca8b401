"""Tiny base models, a tiny recipe, and slow plain-torch re-computations that share no code with the kit's components."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    Dinov2Config,
    Dinov2Model,
    LlamaConfig,
    LlamaForCausalLM,
    SiglipVisionConfig,
    SiglipVisionModel,
    ViTConfig,
    ViTModel,
)

import dehvf_kit
from dehvf_kit.api.config import BuildContext
from dehvf_kit.api.shapes import DecoderSpec, VisionSpec
from dehvf_kit.model.model import DehvfModel
from dehvf_kit.recipe.files import merge
from dehvf_kit.recipe.recipe import Recipe

VOCAB, HIDDEN, LAYERS = 99, 32, 4
VISION_HIDDEN, VISION_LAYERS, PATCHES, SLOTS = 24, 8, 16, 20
MIXED = torch.tensor([True, False, True])  # has_image of a batch whose middle row has no picture
LLAMA = {
    "hidden_size": HIDDEN,
    "intermediate_size": 64,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "vocab_size": VOCAB,
    "max_position_embeddings": 64,
}
VIT = {
    "hidden_size": VISION_HIDDEN,
    "intermediate_size": 48,
    "num_hidden_layers": VISION_LAYERS,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
}
DINOV2 = {**{key: value for key, value in VIT.items() if key != "intermediate_size"}, "mlp_ratio": 2}
VISION_CLASSES = {
    "clip": (CLIPVisionModel, CLIPVisionConfig, VIT),
    "vit": (ViTModel, ViTConfig, VIT),
    "siglip": (SiglipVisionModel, SiglipVisionConfig, VIT),
    "dinov2": (Dinov2Model, Dinov2Config, DINOV2),
}


def tiny_decoder(seed: int = 0, **settings: Any) -> LlamaForCausalLM:
    """A random LLaMA of 4 layers, 32 wide, in evaluation mode."""
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(**{**LLAMA, **settings})).eval()


def tiny_vision(kind: str = "clip", seed: int = 1, **settings: Any) -> nn.Module:
    """A random vision transformer of 8 blocks, 24 wide, 16 patches, in evaluation mode; weights large enough to matter."""
    model_class, config_class, base = VISION_CLASSES[kind]
    torch.manual_seed(seed)
    model = model_class(config_class(**{**base, **settings}))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and "position" not in name:
                parameter.normal_(std=0.2)
    return model.eval()


def raw_recipe(**sections: Any) -> dict[str, Any]:
    """A complete tiny recipe as plain data; `sections` are merged over it as a child recipe's would be."""
    base = {
        "name": "tiny",
        "vision": {"config": {"model_type": "clip_vision_model", **VIT}, "image": {"size": 32}},
        "decoder": {"config": {"model_type": "llama", **LLAMA}},
        "graph": {
            "vision_adapter": {"type": "parallel", "bottleneck_size": 3, "dropout": 0.0},
            "grouper": {"type": "contiguous", "num_groups": 2},
            "layer_query": {"type": "embedding_mlp", "embedding_size": 8, "query_size": 8},
            "projector": {"type": "bottleneck_mlp", "bottleneck_size": 8},
            "fuser": {"type": "cross_attention", "hidden_size": 8, "num_blocks": 2, "num_heads": 2, "intermediate_size": 16},
            "position": {"type": "learned", "num_slots": SLOTS},
            "injector": {"type": "ffn_memory", "visual_scale": 0.5, "output_scale": 0.7, "dropout": 0.0},
        },
    }
    return merge(base, sections)


def tiny_recipe(**sections: Any) -> Recipe:
    return dehvf_kit.parse_recipe(raw_recipe(**sections))


def tiny_model(
    decoder: nn.Module | None = None,
    vision: nn.Module | Mapping[str, nn.Module] | None = None,
    random: bool = True,
    **sections: Any,
) -> DehvfModel:
    """The tiny recipe's model on tiny towers, its trained weights random (an untrained memory adds nothing to see)."""
    model = dehvf_kit.build(
        tiny_recipe(**sections),
        decoder=tiny_decoder() if decoder is None else decoder,
        vision=tiny_vision() if vision is None else vision,
    )
    if random:
        randomise(model.nodes)
    return model


def randomise(nodes: nn.Module, seed: int = 7, std: float = 0.3) -> None:
    """Normal noise in every trained weight."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in nodes.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)


def tokens(batch: int = 3, length: int = 7, seed: int = 2) -> Tensor:
    return torch.randint(3, VOCAB, (batch, length), generator=torch.Generator().manual_seed(seed))


def pixels(batch: int = 3, seed: int = 3, size: int = 32) -> Tensor:
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(seed))


def context(**settings: Any) -> BuildContext:
    """What a component learns when it is wired into the tiny model; `settings` replace fields, `axes` adds to the axes."""
    axes = {
        "batch": None,
        "layer": VISION_LAYERS,
        "patch": PATCHES,
        "vision_hidden": VISION_HIDDEN,
        "group": 2,
        "member": 5,
        "decoder_layer": LAYERS,
        "decoder_hidden": HIDDEN,
        "kv": 2,
        "query": 8,
        "code": 8,
        "slot": SLOTS,
    }
    fields: dict[str, Any] = {
        "decoder": DecoderSpec(hidden_size=HIDDEN, num_layers=LAYERS),
        "vision": VisionSpec(hidden_size=VISION_HIDDEN, num_layers=VISION_LAYERS, num_patches=PATCHES),
        "layers": tuple(range(VISION_LAYERS)),
    }
    return BuildContext(axes={**axes, **settings.pop("axes", {})}, **{**fields, **settings})


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def worst(a: Tensor, b: Tensor) -> float:
    """Largest absolute difference."""
    assert a.shape == b.shape, f"{tuple(a.shape)} and {tuple(b.shape)}"
    return (a - b).abs().max().item()


# The method, read literally: one image, one decoder layer, one role, one member at a time.


def reference_query(node: nn.Module, layer: int, role: int) -> Tensor:
    """z = fc2(SiLU(fc1([e_l ; e_p]))); without roles, z = fc2(SiLU(fc1(e_l)))."""
    embedded = node.layer_embedding.weight[layer]
    if node.kv_embedding is not None:
        embedded = torch.cat([embedded, node.kv_embedding.weight[role]])
    inner = F.silu(node.fc1.weight @ embedded + node.fc1.bias)
    return node.fc2.weight @ inner + node.fc2.bias


def reference_weights(node: nn.Module, query: Tensor, members: Tensor, num_heads: int) -> Tensor:
    """Softmax of a fuser's scores after the blocks. Shapes: query [r], members [member, vision_hidden] -> [member]."""
    keys = members @ node.input.weight.T + node.input.bias
    width = query.shape[0] // num_heads
    for block in node.blocks:
        attended = []
        for head in range(num_heads):
            part = slice(head * width, (head + 1) * width)
            q = (block.to_query.weight @ query + block.to_query.bias)[part]
            k = (keys @ block.to_key.weight.T + block.to_key.bias)[:, part]
            v = (keys @ block.to_value.weight.T + block.to_value.bias)[:, part]
            attended.append(torch.softmax(k @ q / math.sqrt(width), dim=0) @ v)
        mixed = block.to_output.weight @ torch.cat(attended) + block.to_output.bias
        query = reference_norm(block.attention_norm, query + mixed)
        inner = F.gelu(block.fc1.weight @ query + block.fc1.bias)
        query = reference_norm(block.ffn_norm, query + block.fc2.weight @ inner + block.fc2.bias)
    if node.score is not None:  # IGVA's head: the first members' of its outputs
        return torch.softmax((node.score.weight @ query + node.score.bias)[: len(keys)], dim=0)
    if node.cosine:
        apart = [key - sum(keys) / len(keys) for key in keys]
        return torch.softmax(torch.stack([key @ query / (key.norm().clamp(min=1e-3) * query.norm()) for key in apart]), dim=0)
    return torch.softmax(keys @ query / math.sqrt(query.shape[0]), dim=0)


def reference_norm(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    centred = x - x.mean()
    return centred / torch.sqrt((centred**2).mean() + norm.eps) * norm.weight + norm.bias


def reference_groups(num_layers: int, num_groups: int) -> list[list[int]]:
    """Runs of neighbours, the first ones longer where the count does not divide, each with the penultimate layer."""
    groups, start = [], 0
    for group in range(num_groups):
        size = num_layers // num_groups + (1 if group < num_layers % num_groups else 0)
        groups.append([*range(start, start + size), num_layers - 2])
        start += size
    return groups


def reference_keys_values(model: DehvfModel, features: Tensor | None) -> list[tuple[Tensor, Tensor]]:
    """K and M of each decoder layer for one image (None: a sample without one), every step as method.md words it.

    Shapes: features [layer, 1 + patch, vision_hidden] -> per decoder layer two tables [slot, decoder_hidden].
    """
    nodes, graph = model.nodes, model.graph
    injector = graph.nodes["injector"].config
    num_layers = graph.contexts["injector"].decoder.num_layers
    tables = []
    if features is not None:
        num_groups = graph.nodes["grouper"].config.num_groups
        groups = reference_groups(features.shape[0], num_groups)
        readers = [group for group, run in enumerate(reference_groups(num_layers, num_groups)) for _ in run[:-1]]
    for layer in range(num_layers):
        pair = []
        for role, (name, positions) in enumerate((("key", nodes.position.keys), ("value", nodes.position.values))):
            table = positions
            if features is not None and name in injector.visual_in:
                group = groups[readers[layer]]
                query = reference_query(nodes.layer_query, layer, role)
                members = torch.stack([features[member, 0] for member in group])
                weights = reference_weights(nodes.fuser, query, members, graph.nodes["fuser"].config.num_heads)
                fused = sum(weight * features[member, 1:] for weight, member in zip(weights, group, strict=True))
                fc1, fc2 = nodes.projector.fc1, nodes.projector.fc2
                visual = F.silu(fused @ fc1.weight.T + fc1.bias) @ fc2.weight.T + fc2.bias
                visual = injector.visual_scale * visual
                table = positions + torch.cat([visual, visual.new_zeros(len(positions) - len(visual), visual.shape[1])])
            pair.append(table)
        tables.append(tuple(pair))
    return tables


class LiteralMlp(nn.Module):
    """The paper's equation on a LLaMA FFN: keys beside the gate's rows, values below the down projection's columns."""

    def __init__(self, mlp: nn.Module, keys: Tensor, values: Tensor, output_scale: float) -> None:
        super().__init__()
        self.mlp, self.table, self.output_scale = mlp, (keys, values), output_scale

    def forward(self, x: Tensor) -> Tensor:
        keys, values = self.table
        gate = torch.cat([self.mlp.gate_proj.weight, keys])
        inner = F.silu(x @ gate.T)
        up = torch.cat([x @ self.mlp.up_proj.weight.T, x.new_ones(*x.shape[:-1], len(keys))], dim=-1)
        return (inner * up) @ torch.cat([self.mlp.down_proj.weight.T, self.output_scale * values])


def literal_logits(model: DehvfModel, decoder: nn.Module, input_ids: Tensor, features: list[Tensor | None]) -> Tensor:
    """Logits of a whole model whose FFNs hold the memory in their weights, one sample after the other.

    decoder: an untouched decoder; features: one entry a row, None for a row without image, a list for several images, each with
    slots of its own, to whose keys and values an `image_order` node adds the vectors of its number.
    """
    scale = model.graph.nodes["injector"].config.output_scale
    rows = []
    for row, own in zip(input_ids, features, strict=True):
        twin = copy.deepcopy(decoder).requires_grad_(False)
        images = own if isinstance(own, list) else [own]
        of_each = [reference_keys_values(model, image) for image in images]
        for place, layer in enumerate(twin.model.layers):
            tables = [one[place] for one in of_each]
            if "image_order" in model.nodes and own is not None:
                order = model.nodes["image_order"]
                tables = [(k + order.keys[n], v + order.values[n]) for n, (k, v) in enumerate(tables)]
            keys, values = (torch.cat(several) for several in zip(*tables, strict=True))
            layer.mlp = LiteralMlp(layer.mlp, keys, values, scale)
        rows.append(twin(input_ids=row[None]).logits[0])
    return torch.stack(rows)
