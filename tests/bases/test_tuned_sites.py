"""peft puts linear layers inside linear layers: memory goes where it goes in the plain decoder."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

from dehvf_kit.backbones.ffn.sites import ffn_sites
from dehvf_kit.testing.tiny_models import tiny_decoder

peft = pytest.importorskip("peft", reason="peft is not installed")
KINDS: dict[str, Any] = {
    "OFT": lambda: peft.OFTConfig(oft_block_size=4, r=0, target_modules="all-linear", task_type="CAUSAL_LM"),
    "LoRA": lambda: peft.LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"),
}
FAMILIES = ("bailing_hybrid", *(pytest.param(name, marks=pytest.mark.nightly) for name in ("qwen4_exp", "llama")))
"""The first two have other modules with a linear layer and an activation: OFT's inner layer was taken for a second matrix."""


def places(model: nn.Module) -> list[str]:
    return [site.path.removeprefix("base_model.model.").replace(".base_layer", "") for site in ffn_sites(model)]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["OFT", pytest.param("LoRA", marks=pytest.mark.nightly)])
def test_a_tuned_decoder_has_the_sites_of_the_plain_one(family: str, kind: str) -> None:
    decoder = tiny_decoder(family)
    plain = places(decoder)
    assert places(peft.get_peft_model(decoder, KINDS[kind]())) == plain
