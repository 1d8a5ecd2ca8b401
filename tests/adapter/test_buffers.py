"""A component's own buffers (batch norm's statistics) are saved and restored with its weights."""

from __future__ import annotations

import json
import logging
import math

import pytest
import torch
from helpers import pixels, tiny_decoder, tiny_model, tiny_vision, tokens
from safetensors.torch import load_file, save_file
from torch import nn

import dehvf_kit
from dehvf_kit.adapter.card import keep
from dehvf_kit.components.projector.bottleneck_mlp import BottleneckMlpProjector
from dehvf_kit.errors import AdapterError

pytestmark = pytest.mark.usefixtures("builtins_alone")
WEIGHTS, CONFIG = "adapter_model.safetensors", "dehvf_config.json"
BUFFERS = ["projector.norm.running_mean", "projector.norm.running_var", "projector.norm.num_batches_tracked"]


def normalised(module, args, kwargs):
    patches = kwargs["patches"]
    return args, {**kwargs, "patches": module.norm(patches.flatten(0, -2)).view_as(patches)}


@pytest.fixture
def with_norm(monkeypatch):
    """The projector normalises its patches by statistics it has kept, and holds a buffer that is not saved."""
    plain = BottleneckMlpProjector.__init__

    def init(self, *args, **kwargs):
        plain(self, *args, **kwargs)
        self.norm = nn.BatchNorm1d(24, affine=False).eval()
        self.register_buffer("scratch", torch.zeros(2), persistent=False)
        self.register_forward_pre_hook(normalised, with_kwargs=True)

    monkeypatch.setattr(BottleneckMlpProjector, "__init__", init)


@pytest.fixture
def adapter(with_norm, tmp_path):
    model = tiny_model()
    model.nodes.projector.norm.running_mean.normal_()
    model.nodes.projector.norm.num_batches_tracked.fill_(7)
    model.save_pretrained(tmp_path / "adapter")
    return model, tmp_path / "adapter"


def load(folder):
    return dehvf_kit.load(folder, decoder=tiny_decoder(), vision=tiny_vision())


def change(folder, alter):
    weights = load_file(folder / WEIGHTS)
    alter(weights)
    save_file(weights, folder / WEIGHTS)
    config = json.loads((folder / CONFIG).read_text())
    del config["weights_sha256"]
    (folder / CONFIG).write_text(json.dumps(config))


def test_the_same_logits_with_the_buffers_that_were_kept(adapter):
    model, folder = adapter
    again = load(folder)
    assert torch.equal(again(tokens(), pixel_values=pixels()).logits, model(tokens(), pixel_values=pixels()).logits)
    assert again.nodes.projector.norm.num_batches_tracked == 7
    config = json.loads((folder / CONFIG).read_text())
    assert config["buffers"] == BUFFERS and set(BUFFERS) <= set(load_file(folder / WEIGHTS))
    assert config["trainable_parameters"] == sum(map(torch.Tensor.numel, model.trainable_parameters()))


def test_the_card_counts_trained_parameters_alone(adapter):
    model, folder = adapter
    count = sum(math.prod(one.shape) for one in model.nodes.projector.parameters())
    assert f"| projector | bottleneck_mlp | {count:,} |" in (folder / "README.md").read_text()
    keep(folder, "scores", {"data": "d", "scores": {"all": {"value": 1, "low": 1, "high": 1, "count": 1}}})
    assert f"| projector | bottleneck_mlp | {count:,} |" in (folder / "README.md").read_text()


def test_an_adapter_saved_without_buffers_loads_with_a_warning(adapter, caplog):
    change(adapter[1], lambda weights: [weights.pop(name) for name in BUFFERS])
    with caplog.at_level(logging.WARNING):
        model = load(adapter[1])
    assert "holds no buffers" in caplog.text and BUFFERS[0] in caplog.text
    assert not model.nodes.projector.norm.running_mean.any()


@pytest.mark.parametrize(
    ("alter", "message"),
    [
        (lambda weights: weights.pop(BUFFERS[0]), f"missing: {BUFFERS[0]}"),
        (lambda weights: weights.update({BUFFERS[0]: torch.zeros(3)}), r"running_mean' is \(3,\), the recipe makes it \(24,\)"),
        (lambda weights: weights[BUFFERS[1]].fill_(torch.nan), "running_var' holds values that are not finite"),
        (lambda weights: weights.update({BUFFERS[2]: torch.tensor(1.5)}), "is of torch.float32, the recipe makes it torch.int64"),
    ],
)
def test_buffers_that_do_not_fit_are_refused(adapter, alter, message):
    change(adapter[1], alter)
    with pytest.raises(AdapterError, match=message):
        load(adapter[1])
