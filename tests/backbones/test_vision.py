"""Vision towers: where tokens are, which norm is last, what is refused, and what a description by hand changes."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from helpers import VIT, tiny_vision
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import BeitConfig, BeitModel, Blip2Config, Blip2Model

from dehvf_kit.backbones.vision.config import HfVisionConfig, ImageConfig, vision_class
from dehvf_kit.backbones.vision.layout import packed_patches
from dehvf_kit.backbones.vision.overrides import VISION_OVERRIDES, register_vision_override
from dehvf_kit.backbones.vision.tower import VisionTower
from dehvf_kit.components.vision_adapter.parallel import ParallelVisionAdapter
from dehvf_kit.errors import DehvfError, VisionError
from dehvf_kit.testing import shrink_config, vision_models

PIXELS = torch.rand(2, 3, 24, 24, generator=torch.Generator().manual_seed(0))


def tower(model_type: str, **settings: object) -> VisionTower:
    return VisionTower(vision_models.tiny_vision(model_type, **settings), 24)


@pytest.mark.parametrize(
    ("model_type", "first", "global_token"),
    [
        ("clip_vision_model", [1, 2, 3], 0),
        ("siglip_vision_model", [0, 1, 2], None),
        ("deit", [2, 3, 4], 0),
        ("dinov2_with_registers", [5, 6, 7], 0),
        ("llama4_vision_model", [0, 1, 2], 36),
        ("yolos", [1, 2, 3], 0),
        ("qwen2_vl_vision", [0, 1, 4], None),
        ("inkling2_vision", [1, 2, 5], 0),
    ],
)
def test_tokens_are_found(model_type: str, first: list[int], global_token: int | None) -> None:
    layout = tower(model_type).layout(PIXELS)
    assert list(layout.patches[:3]) == first
    assert layout.global_token == global_token
    assert len(set(layout.patches)) == 36


def test_rows_permuted_by_window_come_back_in_image_order() -> None:
    """Qwen2.5-VL undoes its window order itself, after merging: the same order undone here gives the same patches."""
    model = vision_models.tiny_vision("qwen2_5_vl_vision")
    read = VisionTower(model, 24)
    layout = read.layout(PIXELS)
    merge_order = VisionTower(vision_models.tiny_vision("qwen2_vl_vision"), 24).layout(PIXELS).patches
    assert layout.patches != merge_order
    merged: list[Tensor] = []
    handle = model.merger.register_forward_hook(lambda module, args, output: merged.append(args[0]))
    with torch.no_grad():
        read._pass(PIXELS[:1])
        features = VisionTower(model, 24, apply_post_norm=False)(PIXELS[:1])
    handle.remove()
    assert torch.equal(features[0, -1, 1:], merged[0][list(layout.patches)])


@torch.no_grad()
def test_the_final_norm_is_the_one_that_runs_after_the_blocks() -> None:
    """GLM-4V has two norms behind its blocks in the order they are defined; the first of them runs before."""
    model = vision_models.tiny_vision("glm4v_vision")
    read = VisionTower(model, 24)
    read(PIXELS)
    assert read.post_norm(PIXELS) is model.post_layernorm
    assert tower("sam_vision_model").post_norm(PIXELS) is None
    assert VisionTower(model, 24, apply_post_norm=False).post_norm(PIXELS) is None


@torch.no_grad()
def test_a_tower_on_a_copy_reads_the_copy() -> None:
    read = tower("vit")
    before = read(PIXELS)
    twin = copy.deepcopy(read)
    for weight in twin.model.parameters():
        weight.zero_()
    assert torch.equal(read(PIXELS), before)
    assert not torch.equal(twin(PIXELS), before)


@torch.no_grad()
def test_training_mode_is_left_as_it_was() -> None:
    read = tower("vit", hidden_dropout_prob=0.5)
    read.model.train()
    read.layout(PIXELS)
    read.post_norm(PIXELS)
    assert all(module.training for module in read.model.modules())


@torch.no_grad()
def test_pictures_that_are_not_square_and_settings_that_are_set_back() -> None:
    read = tower("vit_mae")
    assert read(torch.rand(1, 3, 16, 32)).shape == (1, 2, 1 + 4 * 8, 32)
    assert read.model.config.mask_ratio == 0.75


def test_the_adapter_takes_part_in_packed_rows() -> None:
    read = tower("qwen3_vl_vision")
    read.model.requires_grad_(False)
    adapter = ParallelVisionAdapter(2, 32, bottleneck_size=3)
    adapter.attach(read.model)
    nn.init.normal_(adapter.up)
    read(PIXELS).square().mean().backward()
    assert bool(adapter.down.grad.any()) and all(weight.grad is None for weight in read.model.parameters())
    adapter.detach()


@pytest.mark.parametrize(
    ("pixels", "message"),
    [(torch.rand(1, 3, 2, 24), "smaller than a patch"), (torch.rand(1, 3, 20, 24), "multiples of 8 and 8 pixels")],
)
def test_sizes_that_do_not_fit_are_refused(pixels: Tensor, message: str) -> None:
    with pytest.raises(VisionError, match=message):
        tower("qwen2_vl_vision")(pixels)


def test_a_fixed_size_is_named_by_the_family() -> None:
    with pytest.raises(VisionError, match=r"SamVisionModel refuses images of \(32, 24\) pixels: Input image size"):
        tower("sam_vision_model")(torch.rand(1, 3, 32, 24))


def test_a_packed_patch_holds_its_pixels_in_the_order_of_the_pattern() -> None:
    model = SimpleNamespace(modules=lambda: [nn.Conv3d(3, 8, (2, 4, 4))])
    rows = packed_patches(model, PIXELS, (4, 4), 2, "(image block mr mc) (c t h w)")
    assert rows.shape == (2 * 36, 3 * 2 * 4 * 4)
    third = rows[2].view(3, 2, 4, 4)  # the third row of a block of 2 x 2 patches is the patch below the first
    assert torch.equal(third[:, 0], PIXELS[0, :, 4:8, 0:4]) and torch.equal(third[:, 0], third[:, 1])


def test_every_description_says_why() -> None:
    assert all(override.reason for override in VISION_OVERRIDES.values())


class Strange(nn.Module):
    """An encoder whose forward needs to be told how bright the day was."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = tiny_vision("vit", num_hidden_layers=2)
        self.config = copy.deepcopy(self.inner.config)
        self.config.model_type = "strange_vision"

    def forward(self, pixel_values: Tensor, brightness: float) -> Tensor:
        return self.inner(pixel_values * brightness).last_hidden_state


def test_a_description_fills_in_what_the_kit_does_not_know() -> None:
    pixels = torch.rand(1, 3, 32, 32)
    with pytest.raises(VisionError, match=r"also needs brightness; .* register_vision_overrides: register\('strange_vi"):
        VisionTower(Strange(), 32)(pixels)
    register_vision_override("strange_vision", arguments=bright, post_norm="", reason="needs the day's brightness")
    model = Strange()
    with torch.no_grad():
        features = VisionTower(model, 32)(pixels)
        expected = VisionTower(model.inner, 32, apply_post_norm=False)(pixels * 2)
    assert torch.equal(features, expected)
    register_vision_override("strange_vision", arguments=bright, post_norm="", reason="the same again")
    with pytest.raises(VisionError, match="strange_vision is described already"):
        register_vision_override("strange_vision", pixels="image c h w")


def bright(model: nn.Module, pixels: Tensor, grid: tuple[int, int]) -> dict[str, float]:
    return {"brightness": 2.0}


class Unnamed(nn.Module):
    """An encoder without a config: a stem, blocks, a norm; its tokens come back as they are."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 8, 8)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(16, 2, 32, 0.0, "gelu", batch_first=True, norm_first=True) for _ in range(2)
        )
        self.norm = nn.LayerNorm(16)

    def embed(self, pixels: Tensor) -> Tensor:
        return self.stem(pixels).flatten(2).mT

    def forward(self, pixels: Tensor) -> Tensor:
        states = self.embed(pixels)
        for block in self.blocks:
            states = block(states)
        return self.norm(states)


class Dim(Unnamed):
    def forward(self, pixels: Tensor, brightness: float) -> Tensor:
        return super().forward(pixels * brightness)


class Mixed(Unnamed):
    def embed(self, pixels: Tensor) -> Tensor:
        return super().embed(pixels) * pixels.mean((1, 2, 3))[:, None, None]


class Listed(Unnamed):
    def forward(self, pixels: dict[str, Tensor]) -> Tensor:
        return super().forward(pixels["pixels"])


class Scattered(Unnamed):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = self.blocks
        del self.blocks


@mock.patch.dict(VISION_OVERRIDES)
def test_an_encoder_without_a_config_is_described_by_the_name_of_its_class() -> None:
    with pytest.raises(VisionError, match=r"hook register_vision_overrides: register\('Dim', arguments=...\)"):
        VisionTower(Dim(), 32)(PIXELS)
    register_vision_override("Dim", arguments=bright, reason="needs the day's brightness")
    model = Dim().eval()
    with torch.no_grad():
        last = VisionTower(model, 24)(PIXELS)[:, -1, 1:]
        torch.testing.assert_close(last, model(PIXELS, 2.0), rtol=0, atol=1e-5)  # float32, two orders of a matrix product


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (Mixed, "before its first block, TransformerEncoderLayer, tokens depend on pixels of several patches"),
        (Listed, r"Listed ends with IndexError when it is given pixels .*register\('Listed', arguments=...\)"),
        (Scattered, "Put the blocks in one nn.ModuleList, such a module in each.$"),
    ],
)
def test_what_an_encoder_lacks_is_said_for_encoders(make: type[nn.Module], reason: str) -> None:
    with pytest.raises(VisionError, match=reason) as refused:
        VisionTower(make(), 24)(PIXELS)
    assert "register_ffn_override" not in str(refused.value)


def test_specs_need_no_weights() -> None:
    config = HfVisionConfig(config={"model_type": "qwen2_5_vl_vision"}, image=ImageConfig(size=224))
    spec = config.spec({})
    assert (spec.num_layers, spec.num_patches, spec.model_type) == (32, 256, "qwen2_5_vl_vision")


def test_the_encoder_inside_a_larger_configuration_is_found() -> None:
    config = HfVisionConfig(config={"model_type": "qwen2_vl", "vision_config": {"depth": 3, "embed_dim": 64, "num_heads": 4}})
    assert config.spec({}).num_layers == 3
    with pytest.raises(VisionError, match="no image-only encoder for model_type 'llama'"):
        vision_class(HfVisionConfig(config={"model_type": "llama"}).hf_config({}))


@pytest.mark.parametrize("kind", ["swin", "hiera", "pvt", "convnextv2", "levit"])
def test_hierarchical_encoders_are_refused_without_weights(kind: str) -> None:
    with pytest.raises(VisionError, match=r"is hierarchical: .* the kit reads encoders whose blocks all keep one token"):
        HfVisionConfig(config={"model_type": kind}).spec({})


def test_an_image_smaller_than_a_patch_is_refused() -> None:
    with pytest.raises(DehvfError, match="smaller than a patch"):
        HfVisionConfig(config={"model_type": "clip_vision_model", **VIT}, image={"size": 4}).spec({})


def _saved_model_with_vision(folder: Path, drop: str = "") -> nn.Module:
    """A tiny BLIP-2 in a folder; its encoder's weights stand below `vision_model.`."""
    config = Blip2Config()
    config = shrink_config(config, vision_config={})
    config.vision_config = vision_models.shrink_vision_config(Blip2Config().vision_config)
    torch.manual_seed(0)
    model = Blip2Model(config)
    state = {name: weight for name, weight in model.state_dict().items() if not drop or drop not in name}
    model.save_pretrained(folder, state_dict=state)
    return model


def test_an_encoder_is_loaded_from_the_checkpoint_of_the_larger_model(tmp_path: Path) -> None:
    model = _saved_model_with_vision(tmp_path)
    loaded = HfVisionConfig(model=str(tmp_path), dtype="float32").load({})
    expected = model.vision_model.state_dict()
    assert loaded.state_dict().keys() == expected.keys()
    assert all(torch.equal(weight, expected[name]) for name, weight in loaded.state_dict().items())


def test_weights_that_would_be_left_random_are_an_error(tmp_path: Path) -> None:
    _saved_model_with_vision(tmp_path, drop="vision_model.encoder.layers.1.mlp.fc1")
    with pytest.raises(DehvfError, match=r"lacks 2 weights of Blip2VisionModel, for example encoder.layers.1.mlp.fc1"):
        HfVisionConfig(model=str(tmp_path)).load({})


@pytest.mark.parametrize(
    ("kind", "lacks"),
    [
        ("vit", "layernorm.weight"),
        ("siglip", "post_layernorm.bias"),
        ("clip", "post_layernorm.weight"),
        ("clip", "pre_layrnorm.weight"),
        ("clip", "embeddings.class_embedding"),
        ("clip", "layer_norm2.bias"),
    ],
)
def test_every_weight_that_features_depend_on_is_needed(tmp_path: Path, kind: str, lacks: str) -> None:
    encoder = tiny_vision(kind)
    encoder.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if not name.endswith(lacks)}
    save_file(kept, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(DehvfError, match=rf"lacks {len(weights) - len(kept)} weights of {type(encoder).__name__}, .*{lacks}"):
        HfVisionConfig(model=str(tmp_path)).load({})


@torch.no_grad()
@pytest.mark.parametrize("mean", [True, False])
def test_the_norm_of_a_mean_over_tokens_is_not_the_final_norm(mean: bool) -> None:
    """BEiT has a final norm, or one in its pooler, by `use_mean_pooling`."""
    sizes = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 48, "image_size": 32}
    torch.manual_seed(0)
    model = BeitModel(BeitConfig(**sizes, patch_size=8, use_mean_pooling=mean)).eval()
    for name, weight in model.named_parameters():
        if "norm" in name:
            weight.uniform_(0.5, 1.5)
    pixels = torch.randn(2, 3, 32, 32)
    read = VisionTower(model, 32)
    assert read.post_norm(pixels) is (None if mean else model.layernorm)
    torch.testing.assert_close(read(pixels)[:, -1], model(pixels).last_hidden_state)
