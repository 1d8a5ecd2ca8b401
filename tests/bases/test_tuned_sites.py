"""peft puts linear layers inside linear layers: memory goes where it goes in the plain decoder, and acts on what was tuned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from bases.holders import IN_PLACE, plain, save_plain
from bases.holders import peft as held
from bases.measure import built
from helpers import pixels, tokens
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


@pytest.mark.nightly
@pytest.mark.parametrize("what", IN_PLACE)
def test_memory_on_a_tuned_decoder_is_memory_on_the_merged_one(what: str, tmp_path: Path) -> None:
    """Worst seen: logits up to 6 differ by 1.7e-5, as merging rounds."""
    config, settings = IN_PLACE[what]
    decoder = held(config, **settings)(save_plain(tmp_path))
    torch.manual_seed(1)
    for parameter in decoder.parameters():
        if parameter.requires_grad:
            parameter.data.add_(0.1 * torch.randn_like(parameter))
    logits = []
    with torch.no_grad():
        untuned = plain(tmp_path)(input_ids=tokens()).logits
        tuned = decoder(input_ids=tokens()).logits
        for merged in (False, True):
            model = built(decoder.merge_and_unload() if merged else decoder)
            logits.append(model(input_ids=tokens(), pixel_values=pixels()).logits)
            model.detach()
    assert (logits[0] - tuned).abs().max() > 0.1 and (tuned - untuned).abs().max() > 0.1
    torch.testing.assert_close(*logits, rtol=0, atol=1e-4)
