"""The plugins of plugins/README.md work as they stand there, and its lists are complete."""

from __future__ import annotations

import re
from pathlib import Path
from unittest import mock

import pytest
import torch
from helpers import pixels, tiny_decoder, tiny_recipe, tiny_vision, tokens
from torch import Tensor, nn
from transformers import PretrainedConfig

import dehvf_kit
from dehvf_kit.api import hookspecs
from dehvf_kit.backbones.ffn.overrides import FFN_OVERRIDES
from dehvf_kit.backbones.vision.overrides import VISION_OVERRIDES
from dehvf_kit.recipe.plugin_manager import load_plugin_file

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "plugins" / "README.md").read_text(encoding="utf-8")


@pytest.fixture
def example(tmp_path: Path, own_plugins: None):
    """Loads a plugin that the page shows, named by its first line; what it overrides is forgotten after the test."""

    def load(name: str) -> str:
        code = next(block for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if block.startswith(f"# {name}"))
        (tmp_path / name).write_text(code)
        load_plugin_file(tmp_path / name)
        return code

    with mock.patch.dict(FFN_OVERRIDES), mock.patch.dict(VISION_OVERRIDES):
        yield load


def test_the_component_runs_in_a_graph(example) -> None:
    code = example("last_member.py")
    assert len(code.splitlines()) < 40
    recipe = tiny_recipe(graph={"fuser": {"type": "last_member"}, "layer_query": None})
    model = dehvf_kit.build(recipe, decoder=tiny_decoder(), vision=tiny_vision())
    outputs = model.run_graph(3, pixel_values=pixels(3))
    codes, levels = outputs["projector"][0], outputs["grouper"][1]
    last = [int(levels.index[group, -1]) for group in levels.group_of_layer]
    assert torch.equal(outputs["fuser"][:, :, 0], codes[:, last])
    assert torch.isfinite(model(input_ids=tokens(3), pixel_values=pixels(3)).logits).all()


class Layer(nn.Module):
    """A layer whose feed-forward network is two modules with a parameter of their own and no known name."""

    def __init__(self) -> None:
        super().__init__()
        self.widen, self.narrow = nn.Linear(8, 6), nn.Linear(6, 8)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.narrow(torch.nn.functional.gelu(self.widen(x)))


class Stack(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Layer(), Layer()])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


class TwoStacks(nn.Module):
    """Two stacks of layers side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.config = PretrainedConfig()
        self.config.model_type, self.config.hidden_size = "two_stacks", 8
        self.drafter, self.speaker = Stack(), Stack()

    def forward(self, x: Tensor) -> Tensor:
        return self.speaker(self.drafter(x))


def test_the_override_says_what_structure_cannot(example) -> None:
    model = TwoStacks()
    assert {site.path.split(".")[0] for site in dehvf_kit.ffn_sites(model)} == {"drafter", "speaker"}
    code = example("two_stacks.py")
    assert len(code.splitlines()) < 40
    sites = dehvf_kit.ffn_sites(model)
    assert [site.path for site in sites] == ["speaker.layers.0.narrow", "speaker.layers.1.narrow"]
    x = torch.randn(2, 3, 8)
    keys, values = torch.randn(2, 1, 5, 8), torch.randn(2, 1, 5, 8)
    with torch.no_grad():
        before = model(x)
        handle = dehvf_kit.attach_memory(model, list(keys), list(values), output_scale=0.5)
        expected = model.drafter(x)
        for layer, key, value in zip(model.speaker.layers, keys, values, strict=True):
            inner = layer.narrow.weight @ torch.nn.functional.gelu(layer.widen(expected)).transpose(1, 2)
            ffn = inner.transpose(1, 2) + layer.narrow.bias
            expected = expected + ffn + 0.5 * torch.nn.functional.gelu(expected @ key[0].T) @ value[0]
        # Worst difference seen 4.8e-7, on values up to about 20.
        torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-5)
        handle.detach()
        assert torch.equal(model(x), before)
    override = VISION_OVERRIDES["bright_vit"]
    assert override.arguments(None, torch.ones(2, 3, 4, 4), (1, 1))["brightness"].tolist() == [1.0, 1.0]


def test_every_hook_stands_on_the_page() -> None:
    hooks = [name for name in vars(hookspecs) if name.startswith("register_")]
    assert hooks and all(f"| `{hook}(register)`" in PAGE for hook in hooks)


def test_every_plugin_stands_on_the_page() -> None:
    packages = sorted(path.parent.name for path in (ROOT / "plugins").glob("*/pyproject.toml"))
    assert packages and all(f"[{package}]({package}/)" in PAGE for package in packages)
