"""peft's tuners on decoders of many kinds: joint maps, transposed ones, attention beside the FFN, mixtures, other norms."""

from __future__ import annotations

import pytest
import torch
from dehvf_kit_baselines.peft_tuner import PeftConfig, in_layer, role_of

from dehvf_kit import map_sites
from dehvf_kit.api import BuildContext
from dehvf_kit.backbones.decoder import decoder_spec
from dehvf_kit.testing import tiny_decoder

FAMILIES = ["falcon", "gpt_neox", "opt", "mixtral", "gemma3_text"]
NODES = {"lora": PeftConfig(settings={"r": 2}), "norms": PeftConfig(method="ln_tuning")}


@torch.no_grad()
@pytest.mark.nightly
@pytest.mark.parametrize("node", ["lora", "norms"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_tuner_fits_starts_exact_acts_and_leaves(family: str, node: str) -> None:
    decoder = tiny_decoder(family).eval()
    config, context = NODES[node], BuildContext({}, decoder_spec(decoder))
    text = torch.arange(3, 13).view(2, 5)
    plain, names = decoder(input_ids=text).logits, [name for name, _ in decoder.named_modules()]
    if node == "lora":
        mine = {path for path, (_, linear, _) in context.decoder.modules.items() if linear is not None and in_layer(path)}
        assert mine == {site.path for site in map_sites(decoder)} and all(role_of(path) for path in mine)
    module = config.build(context)
    assert sum(config.num_params(context).values()) == sum(weight.numel() for weight in module.parameters()) > 0
    module.attach(decoder)
    assert torch.equal(decoder(input_ids=text).logits, plain)
    for weight in module.parameters():
        weight.add_(0.3)
    assert not torch.equal(decoder(input_ids=text).logits, plain)
    module.detach()
    assert torch.equal(decoder(input_ids=text).logits, plain) and [name for name, _ in decoder.named_modules()] == names
