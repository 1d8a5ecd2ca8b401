"""The closed formulas of docs/flops.md are what torch counts of DEHVF 7B on the meta device, to the last FLOP."""

from __future__ import annotations

from pathlib import Path

import torch
from dehvf_kit_baselines.reproduction import closed_formulas
from dehvf_kit_plan.symbolic import symbolic_model

from dehvf_kit.costs.flops import counted_flops
from dehvf_kit.recipe.recipe import load_recipe

RECIPE = Path(__file__).parents[3] / "recipes" / "llama7b_clip.yaml"
H, D, WIDTH, VOCABULARY = 4096, 32, 11008, 32000


def test_dehvf_7b_term_by_term() -> None:
    tokens = 32
    model = symbolic_model(load_recipe(RECIPE, ["graph.injector.form=built", "decoder.attn_implementation=eager"]))
    ids = torch.zeros(1, tokens, dtype=torch.long, device="meta")
    features = torch.empty(1, 24, 257, 1024, device="meta")
    with torch.no_grad(), counted_flops() as counter:
        model(input_ids=ids, vision_features=features, logits_to_keep=1)
    assert counter.get_total_flops() == (
        closed_formulas.decoder(tokens, H, D, WIDTH, 3)
        + 2 * H * VOCABULARY  # the head, for one token
        + closed_formulas.layer_queries(D)
        + closed_formulas.fuser(D, r=64, k=4, groups=4, members=7, vision_hidden=1024)
        + closed_formulas.memory(tokens, 320, H, D)
        + closed_formulas.projection(24, 256, 1024, 128, H, D)
    )


def test_the_papers_round_form() -> None:
    """d (24 L h^2 + 4 L^2 h); 2 d (2 (128^2 + 128 * 64)); 4 n L h d."""
    assert closed_formulas.decoder(10, 8, 3) == 3 * (24 * 10 * 8**2 + 4 * 10**2 * 8)
    assert closed_formulas.layer_queries(32) == 64 * 2 * (128 * 128 + 128 * 64)
    assert closed_formulas.memory(32, 576, H, D) == 4 * 576 * 32 * H * D


def test_the_fuser_is_about_forty_k_d_r_squared() -> None:
    """The queries' own share, for the paper's k = 4, r = 64, d = 32; members add the rest."""
    queries = 40 * 4 * 32 * 64**2
    whole = closed_formulas.fuser(32, 64, 4, 4, 7, 1024)
    assert queries < whole < 1.5 * queries
