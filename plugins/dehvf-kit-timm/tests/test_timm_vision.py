"""timm's vision transformers keep the kit's vision contract; nothing is downloaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from dehvf_kit_timm.check import check, family_names, faults, tiny
from dehvf_kit_timm.vision import TimmVisionConfig, described
from PIL import Image
from safetensors.torch import save_file

from dehvf_kit import load_recipe
from dehvf_kit.backbones.vision.config import ImageConfig
from dehvf_kit.backbones.vision.tower import VisionTower
from dehvf_kit.errors import DehvfError, VisionError

RECIPE = Path(__file__).parents[3] / "recipes" / "llama7b_clip.yaml"
# What each stands for: plain, quick GELU with a norm before the blocks, registers, pooling head, RMS norms, one matrix
# for attention and FFN (two makes), two FFNs a block, rotary, rotary with registers, two class tokens, post norm apart,
# relative positions.
DOZEN = [
    "vit_base_patch16_224",
    "vit_base_patch32_clip_quickgelu_224",
    "vit_small_patch14_reg4_dinov2",
    "vit_base_patch16_siglip_224",
    "aimv2_large_patch14_224",
    "vit_base_patch16_xp_224",
    "vit_dpwee_patch16_reg1_gap_256",
    "vit_small_patch16_18x2_224",
    "eva02_tiny_patch14_224",
    "vit_small_patch16_dinov3",
    "deit_tiny_distilled_patch16_224",
    "deit3_small_patch16_224",
    "beit_base_patch16_224",
]


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test that tries to fetch something fails."""

    def refuse(*arguments: object, **keywords: object) -> None:
        raise AssertionError("something was fetched from the hub")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", refuse)
    monkeypatch.setattr("torch.hub.load_state_dict_from_url", refuse)


# Of other modules of timm: patches cut by `stem` or `embeds`, an encoder below a classifier, a hybrid, blocks that hold the
# class token alone at the end, states as maps whose neck is normed over channels.
OTHERS = ["mixer_s32_224", "naflexvit_base_patch16_gap", "qwen3_vit_306m", "deepseek_vit_412m", "gemma4_vit_570m",
          "vit_base_mci_224", "cait_xxs24_224", "samvit_base_patch16_224"]  # fmt: skip
# Run by make test; the others by make nightly.
QUICK = {"vit_base_patch16_224", "vit_small_patch14_reg4_dinov2", "eva02_tiny_patch14_224", "beit_base_patch16_224"}


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.nightly) for name in [*DOZEN, *OTHERS]]
)
def test_contract(name: str) -> None:
    assert faults(name) == []


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("xcit_nano_12_p8_224", "tokens depend on pixels of several patches"),
        ("tnt_s_legacy_patch16_224", "576 of 576 tokens show pixels"),
        ("convmixer_768_32", "no list of blocks behind a patch embedding"),
    ],
)
def test_what_is_refused_says_why(name: str, why: str) -> None:
    """xcit ended in a TypeError: its patch size is one number."""
    assert why in faults(name)[0]


def test_a_hybrids_patches_are_counted_in_pixels() -> None:
    assert TimmVisionConfig(model="vit_base_mci_224").spec({}).num_patches == 14 * 14


@pytest.mark.nightly
@pytest.mark.parametrize("part", range(16))  # so that the parts are shared by the processes
def test_contract_of_every_name(part: int) -> None:
    broken = {name: found for name, found in check(family_names()[part::16]).items() if found}
    assert broken == {}


@pytest.mark.parametrize(
    ("name", "sizes"),
    {
        "vit_base_patch16_224": (12, 768, 196),
        "vit_giant_patch14_dinov2.lvd142m": (40, 1536, 256),
        "eva02_enormous_patch14_clip_224": (64, 1792, 256),
    }.items(),
)
def test_the_spec_needs_the_name_alone(name: str, sizes: tuple[int, int, int]) -> None:
    spec = TimmVisionConfig(model=name).spec({})
    assert (spec.num_layers, spec.hidden_size, spec.num_patches) == sizes


def test_a_recipe_names_a_timm_model() -> None:
    recipe = load_recipe(RECIPE, ["vision={type: timm, model: vit_small_patch16_224}", "vision.config=null"])
    spec = recipe.check().contexts["grouper"].vision
    assert spec is not None and (spec.num_layers, spec.hidden_size, spec.num_patches) == (12, 384, 196)


def test_weights_come_from_a_local_file(tmp_path: Path) -> None:
    settings = {"embed_dim": 64, "num_heads": 4, "depth": 2}
    source = timm.create_model("vit_tiny_patch16_224", img_size=96, num_classes=10, **settings)
    save_file(source.state_dict(), tmp_path / "model.safetensors")
    given = {"model": "vit_tiny_patch16_224", "settings": settings, "checkpoint": str(tmp_path / "model.safetensors")}
    loaded = TimmVisionConfig(**given, image={"size": 96}).load({})
    assert torch.equal(loaded.blocks[1].mlp.fc1.weight, source.blocks[1].mlp.fc1.weight)
    larger = TimmVisionConfig(**given, image={"size": 128}, dtype="bfloat16").load({})
    assert larger.pos_embed.shape == (1, 65, 64) and larger.pos_embed.dtype == torch.bfloat16


def test_nothing_is_downloaded_unless_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    config = TimmVisionConfig(model="vit_tiny_patch16_224.augreg_in21k_ft_in1k")
    with pytest.raises(DehvfError, match="are not on this machine; give a file as vision.checkpoint, or allow"):
        config.load({})
    with pytest.raises(DehvfError, match="there is no file"):
        config.model_copy(update={"checkpoint": str(tmp_path / "none.safetensors")}).load({})
    with pytest.raises(AssertionError, match="something was fetched"):
        config.model_copy(update={"download": True}).load({})


def test_other_structures_are_refused_with_the_reason() -> None:
    for name in ("swin_tiny_patch4_window7_224", "convnext_tiny"):
        with pytest.raises((VisionError, DehvfError), match="is no plain vision transformer|cannot build"):
            TimmVisionConfig(model=name).spec({})
    with pytest.raises(DehvfError, match="timm has no model 'vit_bse_patch16_224'; did you mean 'vit_base_patch16_224'"):
        TimmVisionConfig(model="vit_bse_patch16_224").spec({})
    with pytest.raises(ValueError, match="means nothing to a timm model"):
        TimmVisionConfig(model="vit_base_patch16_224", revision="main")


def test_images_of_other_sizes_where_timm_takes_them() -> None:
    config = TimmVisionConfig(
        model="vit_tiny_patch16_224",
        image={"size": 96},
        settings={"embed_dim": 64, "num_heads": 4, "depth": 2, "dynamic_img_size": True},
    )
    tower = config.tower(config.create().eval())
    with torch.no_grad():
        assert tower(torch.rand(1, 3, 64, 128)).shape == (1, 2, 1 + 4 * 8, 64)


def test_the_same_seed_gives_the_same_model() -> None:
    first, second = tiny("vit_base_patch16_224"), tiny("vit_base_patch16_224")
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("vit_large_patch14_clip_224", {"size": 224, "resize": "crop", "normalisation": "half"}),
        ("vit_large_patch14_clip_224.openai", {"size": 224, "resize": "crop", "normalisation": "clip"}),
        ("vit_base_patch16_224", {"size": 224, "resize": "crop", "normalisation": "half", "resize_to": 248}),
        ("eva02_base_patch14_448", {"size": 448, "resize": "squash", "normalisation": "clip"}),
    ],
)
def test_images_are_prepared_as_timm_prepares_them(name: str, fields: dict[str, Any]) -> None:
    own = TimmVisionConfig(model=name).own_images({})
    assert own is not None and own.fields() == fields and not own.further
    transform = timm.data.create_transform(**timm.data.resolve_data_config(pretrained_cfg=timm.get_pretrained_cfg(name).to_dict()))
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8))
    ours = ImageConfig(**fields).processor()(image, return_tensors="pt")["pixel_values"][0]
    assert (ours - transform(image)).abs().max() < 1e-5  # the same pixels; timm normalises in float32 with torch


def test_registers_without_a_class_token_leave_the_mean_as_global_token() -> None:
    """The first of an encoder's further tokens is a class token only where it has one (DEHVF, equation 1)."""
    pixels = torch.randn(1, 3, 64, 64)
    for name, place in {"vit_medium_patch16_reg4_gap_256": None, "vit_base_patch14_reg4_dinov2": 0}.items():
        model = timm.create_model(name, num_classes=0, img_size=64, patch_size=16, depth=2, embed_dim=24, num_heads=2)
        tower = VisionTower(described(model.eval(), name), 64)
        assert tower.layout(pixels).global_token == place
        features = tower(pixels)
        assert torch.equal(features[:, :, 0], features[:, :, 1:].mean(dim=2)) is (place is None)
        tower.assume_layout()
        assert tower.layout(pixels).global_token == place
