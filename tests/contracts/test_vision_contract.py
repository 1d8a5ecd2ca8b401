"""The contract on a representative dozen encoders; all of them: `python -m tools.support.vision_matrix`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from dehvf_kit_doctor.vision_family import encoder_result
from torch import Tensor, nn

from dehvf_kit.errors import DehvfError, VisionError
from dehvf_kit.testing.subject import Broken
from dehvf_kit.testing.vision_contract import VISION_CONTRACT, check_vision, run_vision_contract
from dehvf_kit.testing.vision_models import tiny_vision
from tools.support.vision_matrix import main
from tools.support.vision_page import is_stale, vision_page

PAGE = Path(__file__).parents[2] / "docs" / "support_vision.md"
# What each stands for: class token, none, registers, rotary, patches dropped, tokens first, class token last, tokens
# after the patches, channels first, a grid, windows side by side, packed rows, rows permuted by window, a padded
# sequence, a strip of patches, tiles.
DOZEN = [
    "clip_vision_model",
    "siglip_vision_model",
    "dinov2_with_registers",
    "dinov3_vit",
    "vit_mae",
    "bridgetower_vision_model",
    "llama4_vision_model",
    "yolos",
    "vitdet",
    "sam_vision_model",
    "rf_detr_dinov2",
    "pixtral",
    "qwen2_5_vl_vision",
    "siglip2_vision_model",
    "minicpmv4_6_vision",
    "mllama_vision_model",
]


# Run by make test; the others by make nightly.
QUICK = {"clip_vision_model", "dinov2_with_registers", "vitdet", "pixtral", "qwen2_5_vl_vision", "mllama_vision_model"}


@pytest.mark.parametrize("model_type", [name if name in QUICK else pytest.param(name, marks=pytest.mark.nightly) for name in DOZEN])
def test_contract(model_type: str) -> None:
    check_vision(lambda: tiny_vision(model_type))


def test_what_a_family_refuses_is_told_apart_from_what_the_kit_breaks() -> None:
    results = {item.item: item for item in run_vision_contract(lambda: tiny_vision("aimv2_vision_model"))}
    assert results["other sizes"].status == "family"
    assert "refuses images of (32, 40) pixels" in results["other sizes"].reason


def test_a_broken_encoder_is_named_with_the_items_that_do_not_hold() -> None:
    def make() -> nn.Module:
        model = tiny_vision("vit")
        model.layers[0].register_forward_hook(lambda module, args, output: output + output.mean(0, keepdim=True))
        return model

    with pytest.raises(Broken, match="ViTModel: 1 of 1 items of the contract do not hold\nneighbours: broken"):
        check_vision(make, items=["neighbours"])
    with pytest.raises(DehvfError, match="no item 'neigbours'; did you mean 'neighbours'"):
        check_vision(make, items=["neigbours"])


class Plain(nn.Module):
    """An encoder without a config that returns a tensor: its tokens, or what `after` makes of them."""

    def __init__(self, after: Callable[[Tensor], Tensor] = lambda tokens: tokens) -> None:
        super().__init__()
        self.inner, self.after = tiny_vision("vit"), after
        del self.inner.config.image_size

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.after(self.inner(pixel_values).last_hidden_state)


@pytest.mark.parametrize(
    ("after", "status", "reason"),
    [
        (lambda tokens: tokens, "pass", ""),
        (lambda tokens: 2 * tokens, "not run", "is not its last block's output, with or without the final norm"),
        (lambda tokens: tokens[:, 0, :5], "not run", "what the model hands out, (3, 5), is not one state a token"),
    ],
)
def test_a_tensor_alone_is_compared_with_the_last_block(after: Callable[[Tensor], Tensor], status: str, reason: str) -> None:
    (result,) = check_vision(lambda: Plain(after), (24, 24), items=["post norm"])
    assert result.status == status and reason in result.reason


def test_a_factory_without_a_seed_is_told_so_first() -> None:
    with pytest.raises(DehvfError, match=r"^make\(\) gives other weights each time \(first seen in .*\); seed it"):
        check_vision(lambda: tiny_vision("vit", seed=int(torch.seed() % 2**31)))


@pytest.mark.parametrize(
    ("model_type", "kind", "reason"),
    [
        ("swin", "hierarchical", "its blocks have widths"),
        ("convnext", "hierarchical", "its blocks have widths"),
        ("segformer", "hierarchical", "its config has hidden_sizes"),
        ("groupvit_vision_model", "hierarchical", "a block yields"),
        ("videomae", "clips", "reads clips of frames"),
        ("vilt", "no image-only encoder", "vilt"),
        ("mobilenet_v2", "no vision transformer", "no layer holds a feed-forward network"),
    ],
)
def test_what_is_not_read_says_why(model_type: str, kind: str, reason: str) -> None:
    result = encoder_result(model_type)
    assert (result.status, result.kind) == (kind, kind) and reason in result.note


def test_the_page_is_not_stale() -> None:
    page = PAGE.read_text(encoding="utf-8")
    if f"transformers {transformers.__version__}," not in page:
        pytest.skip(f"the page was written for another transformers than {transformers.__version__}")
    if f"Python {sys.version_info.major}.{sys.version_info.minor}." not in page:
        pytest.skip("the page was written under another Python, whose ast.unparse writes the same code otherwise")
    assert not is_stale(page), "run python -m tools.support.vision_matrix and commit docs/support_vision.*"
    results = json.loads(PAGE.with_suffix(".json").read_text(encoding="utf-8"))
    ran = [result for result in results if result["items"]]
    assert f"**{sum(result['status'] == 'pass' for result in ran)} of {len(ran)} pass the whole contract**" in page


@pytest.mark.nightly
def test_the_command_writes_the_page_and_its_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "tools.support.vision_matrix.image_encoder_types", lambda: ["clip_vision_model", "vilt", "llama4_vision_model"]
    )
    page = tmp_path / "vision.md"
    assert main(["clip_vision_model", "vilt", "llama4_vision_model", "--output", str(page)]) == 0
    text = page.read_text(encoding="utf-8")
    assert "**2 of 2 pass the whole contract**" in text and not is_stale(text)
    assert "| clip_vision_model | class token first, patches from 1; patches in rows | LayerNorm | yes |" in text
    assert "| llama4_vision_model | class token last; patches in rows |" in text
    assert [entry["status"] for entry in json.loads(page.with_suffix(".json").read_text())][1].startswith("no image-only encoder")
    with pytest.raises(DehvfError, match="no image encoder type is named 'clip'"):
        main(["clip"])
    assert list(VISION_CONTRACT)[0] == "features" and "Nothing." in vision_page([])


def test_unknown_types_are_refused() -> None:
    with pytest.raises(VisionError, match="no model type 'clip_vison_model'; did you mean 'clip_vision_model'"):
        tiny_vision("clip_vison_model")
    assert torch.equal(tiny_vision("vit").layernorm.weight, tiny_vision("vit").layernorm.weight)
