"""Tiny baselines, and a LLaMA written out in plain torch, one sample at a time, that shares no code with the components."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    Dinov2Config,
    Dinov2Model,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

import dehvf_kit
from dehvf_kit.model.model import DehvfModel
from dehvf_kit.recipe.files import merge

PAD, BOS, EOS, VOCAB, HIDDEN, LAYERS, HEADS, KEY_HEADS = 0, 1, 2, 60, 32, 4, 4, 2
WIDTH, BLOCKS, PATCHES, SLOTS = 24, 8, 16, 20
LLAMA = {
    "hidden_size": HIDDEN,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KEY_HEADS,
    "vocab_size": VOCAB,
    "pad_token_id": PAD,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
    "max_position_embeddings": 128,
    "initializer_range": 0.15,
}
VIT = {"hidden_size": WIDTH, "num_hidden_layers": BLOCKS, "num_attention_heads": 4, "image_size": 32, "patch_size": 8}
GRAPHS: dict[str, dict[str, Any]] = {
    "memvp": {
        "vision_adapter": {"type": "parallel", "bottleneck_size": 3, "dropout": 0.0},
        "grouper": {"type": "listed", "groups": [[-2]]},
        "projector": {"type": "bottleneck_mlp", "bottleneck_size": 8},
        "fuser": {"type": "mean"},
        "position": {"type": "learned", "num_slots": SLOTS},
        "injector": {"type": "ffn_memory", "visual_scale": 0.5, "dropout": 0.0},
    },
    "lavin": {
        "vision_adapter": {"type": "mixture_of_modality", "width": 4, "temperature": 2.0, "dropout": 0.0},
        "reader": {"type": "global_tokens", "num_tokens": 3},
        "projector": {"type": "bottleneck_mlp", "bottleneck_size": 8, "inputs": {"patches": "reader"}},
        "visual_tokens": {"type": "visual_tokens", "words_before": "Image :", "words_without": "Image : N/A"},
        "decoder_adapter": {"type": "mixture_of_modality", "width": 4, "temperature": 2.0, "dropout": 0.0},
    },
    "llama_adapter": {
        "reader": {"type": "global_tokens", "num_tokens": 1},
        "projector": {"type": "bottleneck_mlp", "bottleneck_size": 8, "inputs": {"patches": "reader"}},
        "decoder_adapter": {"type": "gated_prefix", "num_prompts": 5, "num_layers": 3, "scale": 0.7},
    },
    "llava_lora": {
        "vision_adapter": {"type": "parallel", "bottleneck_size": 3, "dropout": 0.0},
        "reader": {"type": "patch_tokens", "layer": -2},
        "projector": {"type": "bottleneck_mlp", "bottleneck_size": 8, "inputs": {"patches": "reader"}},
        "visual_tokens": {"type": "visual_tokens"},
        "lora": {"role": "decoder_adapter", "type": "peft", "settings": {"r": 3, "lora_alpha": 6}, "targets": ["query", "value"]},
    },
}
ZOO: dict[str, dict[str, Any]] = {
    "flamingo": {
        "last": {"role": "reader", "type": "patch_tokens", "layer": -1, "inputs": {"patches": "vision"}},
        "reader": {
            "type": "perceiver",
            "num_latents": 3,
            "num_blocks": 2,
            "num_heads": 2,
            "head_size": 4,
            "expansion": 2,
            "inputs": {"patches": "last"},
        },
        "decoder_adapter": {
            "type": "gated_cross_attention",
            "every": 2,
            "num_heads": 2,
            "head_size": 3,
            "expansion": 2,
            "inputs": {"patches": "reader"},
        },
    },
    "adem_vl": {
        "vision_adapter": {"type": "parallel", "bottleneck_size": 3, "dropout": 0.0},
        "reader": {"type": "grids", "layer": -2, "sides": [4, 2], "inputs": {"patches": "vision"}},
        "token_reader": {"role": "reader", "type": "global_tokens", "num_tokens": 1, "layer": -2},
        "projector": {"type": "bottleneck_mlp", "bottleneck_size": 8, "inputs": {"patches": "reader"}},
        "token_projector": {
            "role": "projector",
            "type": "bottleneck_mlp",
            "bottleneck_size": 8,
            "inputs": {"patches": "token_reader"},
        },
        "position": {"type": "learned", "num_slots": SLOTS},
        "visual_tokens": {
            "type": "visual_tokens",
            "words_before": "Image :",
            "words_without": "Image : N/A",
            "inputs": {"codes": "token_projector", "readout": "token_projector"},
        },
        "injector": {"type": "adaptive_memory", "visual_scale": 0.5, "inputs": {"codes": "projector", "readout": "projector"}},
    },
    "dense_connector": {
        "reader": {"type": "channels", "layers": [[-2], [1], [0, 2]], "norm": True},
        "projector": {"type": "bottleneck_mlp", "bottleneck_size": 8, "activation": "gelu", "inputs": {"patches": "reader"}},
        "visual_tokens": {"type": "visual_tokens"},
    },
    "igva": {
        "reader": {"type": "instruction_groups", "num_groups": 3, "hidden_size": 8, "num_blocks": 2, "num_heads": 2},
        "projector": {"type": "bottleneck_mlp", "bottleneck_size": 8, "activation": "gelu", "inputs": {"patches": "reader"}},
        "visual_tokens": {"type": "visual_tokens"},
    },
    "deepstack": {
        "reader": {"type": "subgrids", "layer": -2, "side": 2},
        "projector": {"type": "bottleneck_mlp", "bottleneck_size": 8, "inputs": {"patches": "reader"}},
        "visual_tokens": {"type": "visual_tokens", "words_before": "Image :", "level": 0},
        "decoder_adapter": {"type": "stacked_tokens", "first": 0, "skip": 1},
    },
    "vlora": {
        "reader": {"type": "patch_tokens", "layer": -2},
        "decoder_adapter": {
            "type": "perceptual_weights",
            "rank": 2,
            "alpha": 3.0,
            "every": 2,
            "targets": ["query", "value", "output", "ffn"],
            "width": 8,
            "num_blocks": 2,
            "num_heads": 2,
            "inputs": {"patches": "reader"},
        },
    },
    "tuners": {
        "dora": {
            "role": "decoder_adapter",
            "type": "peft",
            "settings": {"r": 2, "use_dora": True, "lora_alpha": 4},
            "targets": ["query", "value", "down"],
        },
        "norms": {"role": "decoder_adapter", "type": "peft", "method": "ln_tuning"},
        "grouper": {"type": "listed", "groups": [[-2]]},
        "projector": {"type": "bottleneck_mlp", "bottleneck_size": 8},
        "fuser": {"type": "mean"},
        "position": {"type": "learned", "num_slots": SLOTS},
        "injector": {"type": "ffn_memory", "visual_scale": 0.5, "dropout": 0.0},
    },
    "llama_adapter_v2": {
        "lora": {"role": "decoder_adapter", "type": "peft", "settings": {"r": 2, "lora_alpha": 2}},
        "norms": {"role": "decoder_adapter", "type": "peft", "method": "ln_tuning"},
        "maps": {"role": "decoder_adapter", "type": "affine_maps", "scales": ["query", "up"]},
        "reader": {"type": "query_transformer", "num_queries": 5, "hidden_size": 8, "num_blocks": 2, "num_heads": 2},
        "tokens": {"role": "projector", "type": "normed_linear", "inputs": {"patches": "reader"}},
        "decoder_adapter": {"type": "gated_prefix", "num_prompts": 5, "num_layers": 3, "scale": 0.7, "layer_scale": True},
    },
    "blip2": {
        "vision_adapter": {"type": "adaptformer", "bottleneck_size": 3, "dropout": 0.0},
        "reader": {
            "type": "qformer",
            "num_queries": 3,
            "hidden_size": 8,
            "num_layers": 3,
            "num_heads": 2,
            "intermediate_size": 12,
            "dropout": 0.0,
        },
        "projector": {"type": "linear", "inputs": {"patches": "reader"}},
        "visual_tokens": {"type": "visual_tokens"},
    },
    "clipcap": {"visual_tokens": {"type": "clipcap", "num_tokens": 3, "image_tokens": 2, "num_blocks": 2, "num_heads": 4}},
}
"""Later methods, at which the contract runs every night."""
POST_NORM = {"memvp": True, "lavin": False, "llama_adapter": True, "llava_lora": False}
WORDS = ["<pad>", "<s>", "</s>", "<unk>", "Image", ":", "N", "/", "A", *(f"w{number}" for number in range(9, VOCAB))]


def tokenizer() -> PreTrainedTokenizerFast:
    """Word by word, with a beginning-of-sequence token in front, as LLaMA's."""
    core = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def decoder(seed: int = 0, **settings: Any) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(**{**LLAMA, **settings})).eval()


def encoder(kind: str = "clip", seed: int = 1) -> nn.Module:
    torch.manual_seed(seed)
    if kind == "clip":
        model: nn.Module = CLIPVisionModel(CLIPVisionConfig(**VIT, intermediate_size=48))
    else:
        model = Dinov2Model(Dinov2Config(**VIT, mlp_ratio=2))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and "position" not in name:
                parameter.normal_(std=0.2)
    return model.eval()


def recipe(kind: str, base: Any = None, **graph: Any) -> dehvf_kit.Recipe:
    """A tiny recipe of a baseline; `graph` is merged over its nodes, `base` the decoder whose config it names (None: LLaMA)."""
    raw = {
        "name": kind,
        "vision": {
            "config": {"model_type": "clip_vision_model", **VIT, "intermediate_size": 48},
            "image": {"size": 32},
            "apply_post_norm": POST_NORM.get(kind, True),
        },
        "decoder": {"config": {"model_type": "llama", **LLAMA} if base is None else base.config.to_dict()},
        "graph": merge({**GRAPHS, **ZOO}[kind], graph),
    }
    return dehvf_kit.parse_recipe(raw)


def baseline(kind: str, random: bool = True, base: Any = None, vision: Any = None, **graph: Any) -> DehvfModel:
    """A tiny baseline on random towers, its trained weights random too unless told otherwise."""
    model = dehvf_kit.build(
        recipe(kind, base, **graph),
        decoder=decoder() if base is None else base,
        vision=encoder() if vision is None else vision,
        tokenizer=tokenizer(),
    )
    if random:
        randomise(model.nodes)
    return model


def randomise(nodes: nn.Module, seed: int = 7, std: float = 0.3) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in nodes.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)


def ids(batch: int = 3, length: int = 7, seed: int = 2) -> Tensor:
    """Random words after a beginning-of-sequence token."""
    found = torch.randint(9, VOCAB, (batch, length), generator=torch.Generator().manual_seed(seed))
    found[:, 0] = BOS
    return found


def pixels(batch: int = 3, seed: int = 3) -> Tensor:
    return torch.randn(batch, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


def literal_llama(
    model: LlamaForCausalLM,
    embeds: Tensor,
    visible: Tensor | None = None,
    before: Callable[[int, Tensor], Tensor] = lambda layer, x: x,
    beside: Callable[[int, Tensor], Tensor | float] = lambda layer, queries: 0.0,
    update: Callable[[int, str, Tensor], Tensor | float] = lambda layer, name, x: 0.0,
    ffn: Callable[[int, Tensor], Tensor | float] = lambda layer, x: 0.0,
    between: Callable[[int, Tensor], Tensor | float] = lambda layer, h: 0.0,
) -> Tensor:
    """Logits [token, vocabulary] of one sample's embeddings [token, hidden], written out.

    visible [token, token]: who sees whom (None: causal). before: what happens to the attention's input; beside: what is
    added to its heads' output [head, token, width], given the rotated queries; update: what is added to a projection's
    output; ffn: what is added to FFN(x); between: what is added to the states that enter a layer.
    """
    config, length = model.config, embeds.shape[0]
    width = config.hidden_size // config.num_attention_heads
    if visible is None:
        visible = torch.ones(length, length, dtype=torch.bool).tril()
    theta = config.rope_parameters["rope_theta"]
    angles = torch.arange(length)[:, None] / theta ** (torch.arange(0, width, 2) / width)
    h = embeds
    for index, layer in enumerate(model.model.layers):
        h = h + between(index, h)
        x = before(index, norm(h, layer.input_layernorm))
        maps = {}
        for name in ("q_proj", "k_proj", "v_proj"):
            out = x @ getattr(layer.self_attn, name).weight.T + update(index, name, x)
            maps[name] = out.view(length, -1, width).transpose(0, 1)
        q, k = rotate(maps["q_proj"], angles), rotate(maps["k_proj"], angles)
        share = config.num_attention_heads // config.num_key_value_heads
        k, v = k.repeat_interleave(share, 0), maps["v_proj"].repeat_interleave(share, 0)
        scores = (q @ k.transpose(1, 2)) / width**0.5
        heads = scores.masked_fill(~visible, -torch.inf).softmax(-1) @ v + beside(index, q)
        joined = heads.transpose(0, 1).reshape(length, -1)
        h = h + joined @ layer.self_attn.o_proj.weight.T + update(index, "o_proj", joined)
        x = norm(h, layer.post_attention_layernorm)
        mlp = layer.mlp
        inner = F.silu(x @ mlp.gate_proj.weight.T) * (x @ mlp.up_proj.weight.T)
        h = h + inner @ mlp.down_proj.weight.T + ffn(index, x)
    return norm(h, model.model.norm) @ model.lm_head.weight.T


def norm(x: Tensor, module: nn.Module) -> Tensor:
    return x / torch.sqrt((x**2).mean(-1, keepdim=True) + module.variance_epsilon) * module.weight


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Rotary positions as LLaMA's in transformers: number i is paired with number i + width / 2."""
    first, second = x.chunk(2, -1)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


def worst(a: Tensor, b: Tensor) -> float:
    """Largest absolute difference."""
    assert a.shape == b.shape, f"{tuple(a.shape)} and {tuple(b.shape)}"
    return (a - b).abs().max().item()


def relative(mine: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """Largest difference of two sets of gradients, as a share of each tensor's largest number."""
    assert set(mine) == set(other)
    return max(worst(mine[name], other[name]) / max(other[name].abs().max().item(), 1e-12) for name in other)


def gradients(model: DehvfModel, loss: Tensor) -> dict[str, Tensor]:
    """Gradients of the trained weights by name, then forgotten."""
    names = model.named_trainable_parameters()
    found = torch.autograd.grad(loss, list(names.values()), allow_unused=True)
    return {name: gradient for name, gradient in zip(names, found, strict=True) if gradient is not None}
