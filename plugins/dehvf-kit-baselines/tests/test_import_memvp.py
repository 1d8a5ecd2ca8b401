"""Official MemVP checkpoints: read whole or refused whole, and what comes out is MemVP's formula on the checkpoint's weights."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
import torch
import yaml
from baseline_helpers import (
    BLOCKS,
    GRAPHS,
    HIDDEN,
    LLAMA,
    PATCHES,
    SLOTS,
    VIT,
    WIDTH,
    decoder,
    encoder,
    ids,
    literal_llama,
    pixels,
    tokenizer,
    worst,
)
from cli.commands import at_most
from dehvf_kit_baselines.memvp_checkpoint import import_memvp
from torch import Tensor
from torch.nn import functional as F

import dehvf_kit
from dehvf_kit.cli.main import app
from dehvf_kit.errors import AdapterError

CODE, BOTTLENECK = 8, 3


def entries() -> dict[str, Tensor]:
    """A checkpoint's weights under the names of MemVP's code."""
    made = torch.Generator().manual_seed(11)
    shapes = {
        "adapter_emb1": (1, SLOTS, HIDDEN),
        "adapter_emb2": (1, SLOTS, HIDDEN),
        "adapter_proj.fc1.weight": (CODE, WIDTH),
        "adapter_proj.fc1.bias": (CODE,),
        "adapter_proj.fc2.weight": (HIDDEN, CODE),
        "adapter_proj.fc2.bias": (HIDDEN,),
        "adapter_modality_embedding.weight": (2, HIDDEN),
    }
    for block in range(BLOCKS):
        path = f"backbone.visual.transformer.resblocks.{block}.adapter_mlp"
        shapes |= {f"{path}.fc1.weight": (BOTTLENECK, WIDTH), f"{path}.fc2.weight": (WIDTH, BOTTLENECK)}
    return {name: torch.randn(shape, generator=made) * 0.3 for name, shape in shapes.items()}


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    raw = {
        "vision": {"config": {"model_type": "clip_vision_model", **VIT, "intermediate_size": 48}, "image": {"size": 32}},
        "decoder": {"config": {"model_type": "llama", **LLAMA}},
        "graph": {**GRAPHS["memvp"], "injector": {"type": "ffn_memory", "visual_scale": 0.01, "output_scale": 0.1}},
    }
    file = tmp_path / "memvp.yaml"
    file.write_text(yaml.safe_dump(raw))
    return file


def command(*words: object) -> int:
    with pytest.raises(SystemExit) as ended:
        app([str(word) for word in words])
    return int(ended.value.code or 0)


@pytest.mark.parametrize("prefix", ["", "module."])
def test_what_is_read_computes_the_formula(prefix: str, recipe: Path, tmp_path: Path, capsys) -> None:
    """Float32. Worst difference seen: 9e-7 on logits that the memory moves by 0.8."""
    own = entries()
    file = tmp_path / "checkpoint-19.pth"
    saved = {"model": {f"{prefix}{name}": tensor.half() for name, tensor in own.items()}, "epoch": 19}
    torch.save({**saved, "args": argparse.Namespace(lr=9e-3)}, file)
    assert command("import-memvp", file, "--recipe", recipe, "--output", tmp_path / "adapter") == 0
    printed = capsys.readouterr().out
    assert "excluded: adapter_modality_embedding.weight, which nothing reads" in printed
    model = dehvf_kit.load(tmp_path / "adapter", decoder=decoder(), vision=encoder(), tokenizer=tokenizer())

    own = {name: tensor.half().float() for name, tensor in own.items()}
    from test_formulas import picture_states

    def adapt(block, n1, n2):
        if n2 is None:
            return n1, 0.0
        path = f"backbone.visual.transformer.resblocks.{block}.adapter_mlp"
        return n1, 0.1 * F.gelu(n2 @ own[f"{path}.fc1.weight"].T) @ own[f"{path}.fc2.weight"].T

    features = picture_states(encoder(), pixels(1)[0], adapt)[BLOCKS - 2][1:]
    inner = F.silu(features @ own["adapter_proj.fc1.weight"].T + own["adapter_proj.fc1.bias"])
    visual = 0.01 * (inner @ own["adapter_proj.fc2.weight"].T + own["adapter_proj.fc2.bias"])
    visual = torch.cat([visual, torch.zeros(SLOTS - PATCHES, HIDDEN)])
    keys, values = visual + own["adapter_emb1"][0], visual + own["adapter_emb2"][0]
    base = decoder()
    embeds = base.model.embed_tokens(ids()[0])
    expected = literal_llama(base, embeds, ffn=lambda layer, n: 0.1 * F.silu(n @ keys.T) @ values)
    found = model(input_ids=ids()[:1], pixel_values=pixels(1)).logits[0]
    assert worst(found, expected) < 2e-5
    assert worst(expected, base(input_ids=ids()[:1]).logits[0]) > 0.1


def test_every_fault_is_named_at_once_and_nothing_is_written(recipe: Path, tmp_path: Path) -> None:
    own = entries()
    del own["adapter_proj.fc1.bias"]
    own["adapter_emb2"] = torch.zeros(1, SLOTS + 1, HIDDEN)
    own["lora_a"] = torch.zeros(2)
    file = tmp_path / "bad.pth"
    torch.save({"model": own}, file)
    with pytest.raises(AdapterError) as raised:
        import_memvp(file, dehvf_kit.load_recipe(recipe), tmp_path / "adapter")
    message = str(raised.value)
    assert "missing: adapter_proj.fc1.bias" in message and "unknown: lora_a" in message
    assert f"'adapter_emb2' is {[1, SLOTS + 1, HIDDEN]}, the recipe makes it {[1, SLOTS, HIDDEN]}" in message
    assert not (tmp_path / "adapter").exists()


def test_a_full_disk_leaves_the_adapter_that_was_there(recipe: Path, tmp_path: Path, capsys) -> None:
    file, words = tmp_path / "checkpoint.pth", ("--recipe", recipe, "--output", tmp_path / "adapter", "--overwrite")
    torch.save({"model": entries()}, file)
    assert command("import-memvp", file, *words) == 0
    before = {one.name: one.read_bytes() for one in (tmp_path / "adapter").iterdir()}
    torch.save({"model": {name: tensor + 1 for name, tensor in entries().items()}}, file)
    with at_most(1500):
        assert command("import-memvp", file, *words) == 1
    assert "adapter: cannot be written: File too large; make room" in capsys.readouterr().err
    assert {one.name: one.read_bytes() for one in (tmp_path / "adapter").iterdir()} == before


class Payload:
    def __reduce__(self):
        return (print, ("a pickle was run",))


def test_a_pickle_is_not_run(recipe: Path, tmp_path: Path, capsys) -> None:
    file = tmp_path / "evil.pth"
    torch.save({"model": entries(), "args": Payload()}, file)
    assert command("import-memvp", file, "--recipe", recipe, "--output", tmp_path / "adapter") == 1
    printed = capsys.readouterr()
    assert "holds Python objects besides tensors, which could run code; it is not read" in printed.err
    assert "a pickle was run" not in printed.out + printed.err and not (tmp_path / "adapter").exists()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, "there is no such file"),
        (b"not a checkpoint", "not read|not a checkpoint"),
        ({"weights": {}}, "has no entry 'model'"),
        ({"model": {"adapter_emb1": 3}}, "no tensors: adapter_emb1"),
    ],
    ids=["missing", "garbage", "no model", "no tensor"],
)
def test_other_files_are_refused(data, message: str, recipe: Path, tmp_path: Path) -> None:
    file = tmp_path / "other.pth"
    if isinstance(data, bytes):
        file.write_bytes(data)
    elif data is not None:
        torch.save(data, file)
    with pytest.raises(AdapterError, match=message):
        import_memvp(file, dehvf_kit.load_recipe(recipe), tmp_path / "adapter")


def test_an_adapter_is_not_replaced_unasked(recipe: Path, tmp_path: Path) -> None:
    file = tmp_path / "good.pth"
    torch.save({"model": entries()}, file)
    loaded = dehvf_kit.load_recipe(recipe)
    import_memvp(file, loaded, tmp_path / "adapter")
    with pytest.raises(AdapterError, match="holds an adapter already"):
        import_memvp(file, loaded, tmp_path / "adapter")
    import_memvp(file, loaded, tmp_path / "adapter", overwrite=True)


def test_another_methods_recipe_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "good.pth"
    torch.save({"model": entries()}, file)
    recipe = dehvf_kit.load_recipe(Path(__file__).parents[3] / "recipes" / "llama7b_clip.yaml")
    with pytest.raises(AdapterError, match="not a MemVP recipe: it trains fuser, layer_query, position, projector, vision_adapter"):
        import_memvp(file, recipe, tmp_path / "adapter")
