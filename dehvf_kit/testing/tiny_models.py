"""Tiny random models of any transformers architecture, for tests that need a real model and no download.

Every size a configuration holds is recognised by its field's name and shrunk; nothing is known about a family but
what `EXTRA_SETTINGS` says of the few whose sizes depend on one another in ways that names do not tell.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import nn
from transformers import CONFIG_MAPPING, AutoConfig, PretrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from dehvf_kit.errors import DecoderError, did_you_mean

HIDDEN_SIZE, NUM_HEADS, HEAD_DIM, NUM_LAYERS, VOCAB_SIZE = 32, 4, 8, 2, 96
TOKEN_IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}

# Field name -> size; the first match wins, None keeps the default.
SIZES: tuple[tuple[re.Pattern[str], int | None], ...] = tuple(
    (re.compile(pattern), size)
    for pattern, size in (
        (r"ngram_size|vocab_offset|heads_per_ngram|seed|num_experts_per_group|shared_intermediate_size", None),
        (r"codebook_size|audio_vocab_size|split_ngram_parts|hop_length", 64),
        (r".*vocab_size.*|.*_vocab|ngram_vocab_size_base", VOCAB_SIZE),
        (r"(num_)?(hidden_|decoder_|encoder_)?layers|n_layers?|depth|num_blocks|num_layers_per_stack", NUM_LAYERS),
        (r"first_k_dense_replace|num_dense_layers|(num_|n_)?shared_experts?|num_mem_blocks", 1),
        (r"num_expert_group|n_group|topk_group|.*n_?groups|.*query_groups|o_groups", 1),
        (r".*experts_per_tok(en)?|moe_?top_?k|moe_k", 2),
        (r"(n|num|moe)_.*experts|zero_expert_num", 4),
        (r"mamba_(d_head|head_?dim)", 2 * HIDDEN_SIZE // NUM_HEADS),
        (r"mamba_d_ssm", 2 * HIDDEN_SIZE),
        (r".*head_?dim|dim_head|d_kv|kv_channels|.*d_head|attention_head_size|rotary_dim|attn_hidden_dim", HEAD_DIM),
        (r"(.*_)?(intermediate_size|ffn_dim|ffn_hidden_size)(_.*)?|dff|d_ff|d_inner|dim_ff|mlp_dim|n_inner", 80),
        (r"feed_forward_size", 80),
        (r".*heads|n_head", NUM_HEADS),
        (r"(.*_)?(hidden|embedding)_size(_.*)?|d_model|n_embd|emb_dim|embed_dim|.*_embed_dim|embedding_dim", HIDDEN_SIZE),
        (r"word_embed_proj_dim|lru_width|adapter_(in|out)_dim|adapter_input_size|out_hidden_size", HIDDEN_SIZE),
        (r".*_rank|hc_lowrank|d_rel|index_topk", 8),
        (r"(.*_)?sliding_window|.*window_size.*|attention_chunk_size|keep_window_size|local_attention(_.*)?", 64),
        (r"max_position.*|n_positions|n_ctx|max_seq_len|max_.*_positions|context_length|rel_extent|model_max_length", 128),
        (r".*chunk_size|block_size|.*chunk_length", 16),
        (r".*state_size|.*d_state", 8),
        (r"attn_layer_period|layer_group_size", 2),
        (r"attn_layer_offset", 1),
        (r"time_step_rank", 4),
    )
)
# Sizes that a configuration leaves open and the model cannot do without.
OPEN_SIZES = re.compile(r"head_dim|n_routed_experts|num_experts_per_tok|num_key_value_heads|indexer_.*_?(heads|dim)")

ZAMBA_SETTINGS = {
    "num_hidden_layers": 4,
    "layers_block_type": ["linear_attention", "hybrid"] * 2,
    "attention_hidden_size": 2 * HIDDEN_SIZE,
    "attention_head_dim": 2 * HEAD_DIM,
}
EXTRA_SETTINGS: dict[str, dict[str, Any]] = {
    "blt": {"num_hidden_layers": 2},
    "bamba": {"attn_layer_indices": [1]},
    "cohere_compass_text": {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e4}}},
    "dbrx": {"attn_config": {"rope_theta": 1e4, "clip_qkv": 8.0}},
    "dots1": {"n_shared_experts": 1},
    "dots3_note_text": {
        "swa_num_attention_heads": NUM_HEADS,
        "swa_num_key_value_heads": NUM_HEADS,
        "swa_q_lora_rank": 8,
        "swa_kv_lora_rank": 8,
        "swa_head_dim": 2 * HEAD_DIM,
        "swa_qk_nope_head_dim": HEAD_DIM,
        "swa_v_head_dim": HEAD_DIM,
    },
    "dots3_note_vision_encoder": {"mlp_layer_types": ["dense", "sparse"]},
    "gemma3n_text": {"num_kv_shared_layers": 0, "intermediate_size": 48, "activation_sparsity_pattern": None},
    "gemma3n_vision": {"architecture": "test_efficientnet"},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "granitemoehybrid": {"num_hidden_layers": 2, "layer_types": ["linear_attention", "full_attention"]},
    "hrm_text": {"num_layers_per_stack": 2, "num_hidden_layers": 16},
    "kimi_linear": {"num_hidden_layers": 4, "layer_types": ["linear_attention", "full_attention"] * 2},
    "lfm2_moe": {"num_hidden_layers": 2, "layer_types": ["conv", "full_attention"]},
    "longcat_flash": {"qk_head_dim": 16},
    "mamba2": {"head_dim": 16},
    "musicgen_decoder": {"num_codebooks": 1},
    "musicgen_melody_decoder": {"num_codebooks": 1},
    "qwen4_exp_text": {"indexer_budget": 64, "indexer_compress_ratio": 4, "indexer_kv_heads": 1},
    "recurrent_gemma": {"num_hidden_layers": 3},
    "reformer": {"axial_pos_embds": False, "axial_pos_embds_dim": [8, 24], "axial_pos_shape": [16, 8]},
    "xlstm": {"hidden_size": 64, "embedding_dim": 64, "qk_dim_factor": 1.0},
    "xmod": {"default_language": "en_XX"},
    "zamba": ZAMBA_SETTINGS,
    "zamba2": ZAMBA_SETTINGS,
    "zaya": {"num_experts_per_tok": 1},
}


def decoder_types() -> list[str]:
    """The decoder types that transformers' causal-LM mapping knows, in its order, without the kit's own."""
    return [name for name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES if name != "dehvf"]


def tiny_config(model_type: str, **settings: Any) -> PretrainedConfig:
    """A configuration of one architecture with every size shrunk: hidden size 32, 2 to 4 layers, 96 words.

    Args: model_type, as transformers names it; settings, which go over everything else.
    Raises: DecoderError for an unknown type; whatever the configuration class
    raises for sizes that it refuses.
    """
    if model_type not in CONFIG_MAPPING:
        near = did_you_mean(model_type, CONFIG_MAPPING)
        raise DecoderError(f"tiny_config: transformers has no model type '{model_type}'{near}")
    return shrink_config(AutoConfig.for_model(model_type), **settings)


def shrink_config(config: PretrainedConfig, **settings: Any) -> PretrainedConfig:
    """A tiny configuration of the same architecture and the same switches as a real one.

    Lists that say something of each layer are left to the configuration class, as the layers are fewer.

    Args: config, the real one; settings, which go over everything else.
    Raises: whatever the configuration class raises for sizes that it refuses.
    """
    return _shrunk(config, {**EXTRA_SETTINGS.get(config.model_type, {}), **settings})


def tiny_decoder(model_type: str, seed: int = 0, **settings: Any) -> nn.Module:
    """A tiny random causal language model of one architecture, in evaluation mode, on the CPU, in float32.

    Args: seed of its weights; model_type, settings, as in `tiny_config`.
    """
    return random_decoder(tiny_config(model_type, **settings), seed)


def random_decoder(config: PretrainedConfig, seed: int = 0) -> nn.Module:
    """A random causal language model of a configuration, in evaluation mode, on the CPU, in float32."""
    model_class = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    torch.manual_seed(seed)
    return _with_live_weights(model_class(_config_for(model_class, config))).eval()


@torch.no_grad()
def _with_live_weights(model: nn.Module) -> nn.Module:
    """A model whose matrices are none all zero (xLSTM's gates start so), or nothing could be seen to pass them."""
    for weight in model.parameters():
        if weight.ndim > 1 and weight.is_floating_point() and not weight.any():
            weight.normal_(std=0.02)
    return model


def _config_for(model_class: type[nn.Module], config: PretrainedConfig) -> PretrainedConfig:
    """The configuration itself, or the part of it that a model class is for (a text model's, a decoder's)."""
    wanted = getattr(model_class, "config_class", None)
    if wanted is None or isinstance(config, wanted):
        return config
    parts = [part for part in vars(config).values() if isinstance(part, wanted)]
    return parts[0] if parts else config


def _shrunk(default: PretrainedConfig, settings: dict[str, Any]) -> PretrainedConfig:
    sizes: dict[str, Any] = {}
    for name, value in vars(default).items():
        if isinstance(value, PretrainedConfig):
            known = EXTRA_SETTINGS.get(value.model_type, {})
            sizes[name] = _shrunk(value, {**known, **settings.get(name, {})})
        elif name in settings or name.startswith("_"):
            continue
        elif name.endswith(("token_id", "token_index")):
            if value is not None or name in ("pad_token_id", "eos_token_id"):
                sizes[name] = TOKEN_IDS.get(name, 3)
        elif name == "is_decoder":
            sizes[name] = True
        elif isinstance(value, int) and not isinstance(value, bool) and value > 0:
            sizes[name] = _size(name, value, default)
        elif value is None and OPEN_SIZES.fullmatch(name):
            sizes[name] = _size(name, NUM_HEADS, default)
        elif isinstance(value, (bool, str, float)) and name in type(default).__annotations__:
            sizes[name] = value
    sizes = {name: size for name, size in sizes.items() if size is not None}
    sizes.update({name: value for name, value in settings.items() if not isinstance(sizes.get(name), PretrainedConfig)})
    return type(default)(**sizes)


def _size(name: str, value: int, default: PretrainedConfig) -> int | None:
    for pattern, size in SIZES:
        if pattern.fullmatch(name):
            if re.search(r"key_value|kv_(n_)?heads", name):
                heads = vars(default).get("num_attention_heads") or vars(default).get("n_heads") or value
                return NUM_HEADS if value >= heads else min(NUM_HEADS // 2, value)
            if "layers" in name and vars(default).get("layer_types"):
                return 2 * NUM_LAYERS
            return size
    return None
