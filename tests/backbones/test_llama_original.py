"""LLaMA in its original layout: a tiny one is written out in one and two shards and held against Meta's own formulas."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from dehvf_kit.backbones.decoder import HfDecoderConfig, is_original
from dehvf_kit.backbones.llama_original import LAYER, load_original
from dehvf_kit.errors import DehvfError

DIM, HEADS, KEY_HEADS, LAYERS, WORDS, MULTIPLE = 32, 4, 2, 3, 40, 8
INNER = 88  # 2/3 of 4 * 32, up to a multiple of 8
AXES = {old: axis for old, _, axis in LAYER} | {"tok_embeddings": 1, "output": 0, "norm": None}


def weights(key_heads: int = KEY_HEADS) -> dict[str, Tensor]:
    """Random weights under Meta's names."""
    made = torch.Generator().manual_seed(4)
    shared = DIM // HEADS * key_heads
    shapes = {"tok_embeddings": (WORDS, DIM), "output": (WORDS, DIM), "norm": (DIM,)}
    for layer in range(LAYERS):
        sizes = {
            "attention.wq": (DIM, DIM),
            "attention.wk": (shared, DIM),
            "attention.wv": (shared, DIM),
            "attention.wo": (DIM, DIM),
            "feed_forward.w1": (INNER, DIM),
            "feed_forward.w2": (DIM, INNER),
            "feed_forward.w3": (INNER, DIM),
            "attention_norm": (DIM,),
            "ffn_norm": (DIM,),
        }
        shapes |= {f"layers.{layer}.{name}": size for name, size in sizes.items()}
    return {
        f"{name}.weight": torch.randn(size, generator=made) * 0.2 + (1.0 if len(size) == 1 else 0.0)
        for name, size in shapes.items()
    }


def write(folder: Path, tensors: dict[str, Tensor], shards: int, **params: object) -> Path:
    """The layout on disk, cut as a model-parallel run would cut it."""
    folder.mkdir(parents=True)
    given = {"dim": DIM, "n_heads": HEADS, "n_kv_heads": KEY_HEADS, "n_layers": LAYERS, "norm_eps": 1e-5}
    (folder / "params.json").write_text(json.dumps({**given, "multiple_of": MULTIPLE, "vocab_size": -1, **params}))
    for number in range(shards):
        shard = {"rope.freqs": torch.ones(4)}
        for name, tensor in tensors.items():
            axis = AXES[name.removesuffix(".weight").split(".", 2)[2] if name.startswith("layers") else name[:-7]]
            shard[name] = tensor if axis is None else tensor.chunk(shards, axis)[number].clone()
        torch.save(shard, folder / f"consolidated.{number:02d}.pth")
    return folder


def meta_logits(w: dict[str, Tensor], ids: list[int], key_heads: int = KEY_HEADS) -> Tensor:
    """LLaMA as Meta's code computes it: neighbours 2i and 2i + 1 are one complex number, turned by its position."""
    width, count = DIM // HEADS, len(ids)
    angles = torch.outer(torch.arange(count).float(), 10000.0 ** (-torch.arange(0, width, 2).float() / width))
    turn = torch.polar(torch.ones_like(angles), angles)[:, None]

    def turned(x: Tensor) -> Tensor:
        return torch.view_as_real(torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2)) * turn).flatten(2)

    def norm(x: Tensor, name: str) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5) * w[f"{name}.weight"]

    h = w["tok_embeddings.weight"][ids]
    for layer in range(LAYERS):
        p = f"layers.{layer}"
        x = norm(h, f"{p}.attention_norm")
        q, k, v = ((x @ w[f"{p}.attention.w{one}.weight"].T).view(count, -1, width) for one in "qkv")
        q, k = turned(q), turned(k)
        k, v = (one.repeat_interleave(HEADS // key_heads, 1).transpose(0, 1) for one in (k, v))
        scores = q.transpose(0, 1) @ k.transpose(1, 2) / width**0.5
        scores = scores + torch.full((count, count), -torch.inf).triu(1)
        h = h + (scores.softmax(-1) @ v).transpose(0, 1).reshape(count, DIM) @ w[f"{p}.attention.wo.weight"].T
        x = norm(h, f"{p}.ffn_norm")
        gate, up = (x @ w[f"{p}.feed_forward.{one}.weight"].T for one in ("w1", "w3"))
        h = h + (F.silu(gate) * up) @ w[f"{p}.feed_forward.w2.weight"].T
    return norm(h, "norm") @ w["output.weight"].T


@pytest.mark.parametrize("shards", [1, 2])
@pytest.mark.parametrize("key_heads", [HEADS, KEY_HEADS])
def test_it_computes_what_metas_code_computes(shards: int, key_heads: int, tmp_path: Path) -> None:
    """Float32, sums in another order. Worst seen: 3.1e-6 on logits up to 3.1."""
    tensors = weights(key_heads)
    folder = write(tmp_path / "7B", tensors, shards, n_kv_heads=key_heads)
    config = HfDecoderConfig(model=str(folder))
    decoder = config.load({})
    ids = [3, 9, 20, 5, 38, 7]
    logits = decoder(input_ids=torch.tensor([ids])).logits[0]
    expected = meta_logits(tensors, ids, key_heads)
    assert (logits - expected).abs().max() < 2e-5 and expected.abs().max() > 1
    spec = config.spec({})
    assert (spec.hidden_size, spec.intermediate_size, spec.num_layers, spec.vocab_size) == (DIM, INNER, LAYERS, WORDS)
    greedy = decoder.generate(torch.tensor([ids]), max_new_tokens=4, min_new_tokens=4, pad_token_id=0, do_sample=False)
    assert torch.equal(
        greedy, decoder.generate(torch.tensor([ids]), max_new_tokens=4, min_new_tokens=4, pad_token_id=0, use_cache=False)
    )


def test_half_precision_is_kept_unless_told_otherwise(tmp_path: Path) -> None:
    folder = write(tmp_path / "7B", {name: tensor.half() for name, tensor in weights().items()}, 2)
    assert {p.dtype for p in load_original(folder).parameters()} == {torch.float16}
    assert {p.dtype for p in load_original(folder, torch.float32).parameters()} == {torch.float32}


def test_llama_3_cuts_the_vocabulary(tmp_path: Path) -> None:
    tensors = weights()
    folder = write(tmp_path / "8B", tensors, 2)
    for number in range(2):
        file = folder / f"consolidated.{number:02d}.pth"
        shard = torch.load(file, weights_only=True)
        shard["tok_embeddings.weight"] = tensors["tok_embeddings.weight"].chunk(2, 0)[number].clone()
        torch.save(shard, file)
    assert torch.equal(load_original(folder).model.embed_tokens.weight, tensors["tok_embeddings.weight"])


def test_all_faults_of_a_checkpoint_are_named_at_once(tmp_path: Path) -> None:
    tensors = weights()
    del tensors["layers.1.attention.wv.weight"]
    tensors["layers.0.feed_forward.w9.weight"] = torch.zeros(2, 2)
    AXES["feed_forward.w9"] = None
    folder = write(tmp_path / "7B", tensors, 1)
    with pytest.raises(DehvfError, match=r"missing: layers.1.attention.wv.weight; unexpected: layers.0.feed_forward.w9.weight"):
        load_original(folder)
    short = write(tmp_path / "short", {**weights(), "norm.weight": torch.ones(5)}, 1)
    with pytest.raises(DehvfError, match=r"model.norm.weight is \(5,\), params.json makes it \(32,\)"):
        load_original(short)


class Payload:
    def __reduce__(self):
        return (print, ("a pickle was run",))


def test_what_is_no_tensor_is_not_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write(tmp_path / "7B", weights(), 1)
    torch.save({"a": Payload()}, folder / "consolidated.00.pth")
    with pytest.raises(DehvfError, match="not a file of tensors alone"):
        load_original(folder)
    (folder / "consolidated.00.pth").write_bytes(pickle.dumps(Payload()))
    with pytest.raises(DehvfError, match="not a file of tensors alone"):
        load_original(folder)
    assert capsys.readouterr().out == ""


def test_broken_folders_are_named(tmp_path: Path) -> None:
    folder = write(tmp_path / "7B", weights(), 2)
    (folder / "consolidated.00.pth").unlink()
    with pytest.raises(DehvfError, match=r"holds consolidated.01.pth; wants consolidated.00.pth"):
        load_original(folder)
    (folder / "params.json").write_text('{"dim": 32}')
    with pytest.raises(DehvfError, match=r"params.json: cannot be read \('n_heads'\)"):
        load_original(folder)
    scaled = write(tmp_path / "scaled", weights(), 1, use_scaled_rope=True)
    with pytest.raises(DehvfError, match="scaled rotary positions are not read"):
        HfDecoderConfig(model=str(scaled)).spec({})
    with pytest.raises(DehvfError, match=r"there is no tokenizer.model"):
        HfDecoderConfig(model=str(scaled)).tokenizer({})
    (folder / "config.json").write_text("{}")
    assert not is_original(folder) and not is_original(tmp_path / "nowhere")


def test_the_tokenizer_beside_it_begins_with_bos(tmp_path: Path) -> None:
    """Meta put tokenizer.model into the folder above; its pieces are sentencepiece's own, after the id that LLaMA begins with."""
    trainer = pytest.importorskip("sentencepiece")
    lines = tmp_path / "lines.txt"
    lines.write_text("what color is the shape\nis there a red circle\nthe picture shows a blue square\n" * 20)
    settings = {"vocab_size": WORDS, "model_type": "bpe", "minloglevel": 2}
    trainer.SentencePieceTrainer.train(input=str(lines), model_prefix=str(tmp_path / "tokenizer"), **settings)
    pieces = trainer.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    tokenizer = HfDecoderConfig(model=str(write(tmp_path / "7B", weights(), 1))).tokenizer({})
    question = "is there a blue shape"
    assert tokenizer(question)["input_ids"] == [1, *pieces.encode(question)]
    assert tokenizer.padding_side == "left" and tokenizer.pad_token is not None
