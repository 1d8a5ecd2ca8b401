"""LLaMA as Meta released it: `params.json` and `consolidated.NN.pth`, read into transformers' LlamaForCausalLM.

The shards are the parts of a model-parallel run: some maps are cut by rows, some by columns. Rotary positions pair
neighbours (0 with 1, 2 with 3) there and halves (0 with d/2) in transformers, so query and key rows are put in another order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dehvf_kit.backbones.base import first_line
from dehvf_kit.errors import DehvfError, listing
from dehvf_kit.utils.atomic import is_file
from dehvf_kit.utils.plain_data import parse_json

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

# Name in a shard, name in transformers, and the axis along which shards are joined (None: every shard holds it whole).
LAYER = (
    ("attention.wq", "self_attn.q_proj", 0),
    ("attention.wk", "self_attn.k_proj", 0),
    ("attention.wv", "self_attn.v_proj", 0),
    ("attention.wo", "self_attn.o_proj", 1),
    ("feed_forward.w1", "mlp.gate_proj", 0),
    ("feed_forward.w2", "mlp.down_proj", 1),
    ("feed_forward.w3", "mlp.up_proj", 0),
    ("attention_norm", "input_layernorm", None),
    ("ffn_norm", "post_attention_layernorm", None),
)
WHOLE = (("tok_embeddings", "model.embed_tokens", 1), ("norm", "model.norm", None), ("output", "lm_head", 0))
UNUSED = ("rope.freqs", "inner_attention.rope.freqs")  # recomputed from the config
CONTEXT = 2048


def shard_files(folder: Path) -> list[Path]:
    """The shards in order. Raises: DehvfError where there are none, or one in the middle is missing."""
    files = sorted(folder.glob("consolidated.*.pth"))
    wanted = [folder / f"consolidated.{number:02d}.pth" for number in range(max(1, len(files)))]
    if files != wanted:
        raise DehvfError(f"{folder}: holds {listing(f.name for f in files)}; wants consolidated.00.pth, .01.pth, ... in a row")
    return files


def original_config(folder: str | Path) -> LlamaConfig:
    """The transformers config of `params.json`. Raises: DehvfError for a field that is missing or not understood."""
    from transformers import LlamaConfig

    place = Path(folder)
    path = place / "params.json"
    try:
        given = parse_json(path.read_bytes())
        dim, heads, layers = (int(given[name]) for name in ("dim", "n_heads", "n_layers"))
        eps, multiple = float(given["norm_eps"]), int(given["multiple_of"])
        factor, shared = given.get("ffn_dim_multiplier"), int(given.get("n_kv_heads") or heads)
        inner = int(2 * 4 * dim / 3)
        inner = inner if factor is None else int(float(factor) * inner)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise DehvfError(
            f"{path}: cannot be read ({error}); wants JSON with dim, n_heads, n_layers, norm_eps and multiple_of"
        ) from error
    if given.get("use_scaled_rope"):
        raise DehvfError(f"{path}: scaled rotary positions are not read from this layout; use the model in transformers' format")
    words = given.get("vocab_size", -1)
    if not isinstance(words, int) or words < 1:
        words = _vocabulary(place)
    return LlamaConfig(
        hidden_size=dim,
        intermediate_size=multiple * -(-inner // multiple),
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=shared,
        vocab_size=words,
        rms_norm_eps=eps,
        max_position_embeddings=CONTEXT,
        rope_theta=float(given.get("rope_theta", 10000.0)),
        tie_word_embeddings=False,
    )


def load_original(
    folder: str | Path, dtype: torch.dtype | str = "auto", attn_implementation: str | None = None
) -> LlamaForCausalLM:
    """The decoder with its weights, merged from its shards. dtype "auto": as saved.

    Raises: DehvfError listing every weight that is missing, left over or misshapen; for a file that holds more than tensors.
    """
    import torch
    from transformers import GenerationConfig, LlamaForCausalLM

    place = Path(folder)
    config = original_config(place)
    merged = merge_shards([_read(file) for file in shard_files(place)], config, place)
    with torch.device("meta"):
        model = LlamaForCausalLM._from_config(config, attn_implementation=attn_implementation)
    wanted = model.state_dict()
    faults = [f"missing: {name}" for name in sorted(set(wanted) - set(merged))]
    faults += [
        f"{name} is {tuple(merged[name].shape)}, params.json makes it {tuple(wanted[name].shape)}"
        for name in sorted(set(wanted) & set(merged))
        if merged[name].shape != wanted[name].shape
    ]
    if faults:
        raise DehvfError(f"{place}: {'; '.join(faults)}")
    kind = merged["model.embed_tokens.weight"].dtype if dtype == "auto" else dtype
    model.load_state_dict({name: tensor.to(kind) for name, tensor in merged.items()}, assign=True)
    # Buffers that no checkpoint holds (rotary frequencies) are still on the meta device: take them from a model that has them.
    model.model.rotary_emb = type(model.model.rotary_emb)(config)
    model.config.dtype = kind
    model.generation_config = GenerationConfig.from_model_config(config)
    return model.eval().requires_grad_(True)


def merge_shards(shards: Sequence[Mapping[str, Tensor]], config: LlamaConfig, place: Path) -> dict[str, Tensor]:
    """Weights of all shards joined, named and ordered as transformers has them. Raises: DehvfError listing all faults."""
    import torch

    table = {f"{old}.weight": (f"{new}.weight", axis) for old, new, axis in WHOLE}
    for layer in range(config.num_hidden_layers):
        for old, new, axis in LAYER:
            table[f"layers.{layer}.{old}.weight"] = f"model.layers.{layer}.{new}.weight", axis
    known = {name for shard in shards for name in shard if not name.endswith(UNUSED)}
    faults = [f"missing: {name}" for name in sorted(set(table) - known)]
    faults += [f"unexpected: {name}" for name in sorted(known - set(table))]
    faults += [
        f"missing in shard {number}: {name}"
        for number, shard in enumerate(shards)
        for name in sorted((known & set(table)) - set(shard))
    ]
    if faults:
        raise DehvfError(f"{place}: {'; '.join(faults)}")
    merged = {}
    for old, (new, axis) in table.items():
        parts = [shard[old] for shard in shards]
        if old == "tok_embeddings.weight" and parts[0].shape[-1] == config.hidden_size:
            axis = 0  # LLaMA 3 cuts the vocabulary
        try:
            tensor = parts[0] if axis is None or len(parts) == 1 else torch.cat(parts, axis)
            if new.endswith(("q_proj.weight", "k_proj.weight")):
                tensor = by_halves(tensor, config.hidden_size // config.num_attention_heads)
        except RuntimeError:
            faults.append(f"{old} is {', '.join(str(tuple(part.shape)) for part in parts)}, which do not join")
            continue
        merged[new] = tensor
    if faults:
        raise DehvfError(f"{place}: {'; '.join(faults)}")
    return merged


def by_halves(weight: Tensor, head_dim: int) -> Tensor:
    """Rows of a query or key map [head * head_dim, hidden]: within each head the even ones first, then the odd ones."""
    return weight.view(-1, head_dim // 2, 2, weight.shape[-1]).transpose(1, 2).reshape(weight.shape)


def original_tokenizer(folder: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer of `tokenizer.model`, in the folder or above it, where Meta put it. Raises: DehvfError."""
    from transformers import LlamaTokenizer

    place = Path(folder)
    home = next((where for where in (place, place.parent) if is_file(where / "tokenizer.model")), None)
    if home is None:
        raise DehvfError(f"{place}: there is no tokenizer.model in it, nor in the folder above")
    try:
        return LlamaTokenizer.from_pretrained(home, add_bos_token=True)  # every LLaMA prompt begins with it
    except Exception as error:  # whatever is in the file, or a library that is not installed
        raise DehvfError(f"{home / 'tokenizer.model'}: cannot be read: {error}") from error


def _vocabulary(folder: Path) -> int:
    """Words of a model whose params.json leaves them open, as LLaMA's does: rows of its output map."""
    return sum(int(_read(file)["output.weight"].shape[0]) for file in shard_files(folder))


def _read(file: Path) -> Mapping[str, Any]:
    """One shard, mapped from disk and not copied. Raises: DehvfError for a file that is not one."""
    import torch

    try:
        shard = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # a payload, half a file, or anything else that torch stumbles over
        raise DehvfError(f"{file}: not a file of tensors alone, so it is not read: {first_line(error)}") from error
    if not isinstance(shard, Mapping) or not all(isinstance(value, torch.Tensor) for value in shard.values()):
        raise DehvfError(f"{file}: not a mapping of names to tensors")
    return shard
