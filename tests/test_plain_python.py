"""Everything a recipe does, done with the components alone: no YAML, no graph, no model class."""

from __future__ import annotations

import torch
from helpers import (
    HIDDEN,
    LAYERS,
    PATCHES,
    SLOTS,
    VISION_HIDDEN,
    VISION_LAYERS,
    pixels,
    tiny_decoder,
    tiny_model,
    tiny_vision,
    tokens,
)

from dehvf_kit.backbones.vision.tower import VisionTower
from dehvf_kit.components.base import Grouper, runs
from dehvf_kit.components.fuser.cross_attention import CrossAttentionFuser
from dehvf_kit.components.injector.ffn_memory import FfnMemoryInjector
from dehvf_kit.components.layer_query.embedding_mlp import EmbeddingMlpQuery
from dehvf_kit.components.position.learned import LearnedPosition
from dehvf_kit.components.projector.bottleneck_mlp import BottleneckMlpProjector
from dehvf_kit.components.vision_adapter.parallel import ParallelVisionAdapter


def test_components_alone_make_the_recipes_model() -> None:
    recipe_model = tiny_model()
    weights = recipe_model.nodes.state_dict()
    with torch.no_grad():
        expected = recipe_model(input_ids=tokens(), pixel_values=pixels()).logits

    decoder, tower = tiny_decoder(), VisionTower(tiny_vision(), image_size=32)
    adapter = ParallelVisionAdapter(VISION_LAYERS, VISION_HIDDEN, bottleneck_size=3, dropout=0.0)
    grouper = Grouper([[*run, VISION_LAYERS - 2] for run in runs(VISION_LAYERS, 2)], LAYERS)
    query = EmbeddingMlpQuery(LAYERS, embedding_size=8, query_size=8)
    projector = BottleneckMlpProjector(VISION_HIDDEN, 8, HIDDEN)
    fuser = CrossAttentionFuser(VISION_HIDDEN, hidden_size=8, num_blocks=2, num_heads=2, intermediate_size=16)
    position = LearnedPosition(SLOTS, HIDDEN)
    injector = FfnMemoryInjector(visual_scale=0.5, output_scale=0.7, dropout=0.0)
    named = {"vision_adapter": adapter, "layer_query": query, "projector": projector, "fuser": fuser, "position": position}
    for name, module in named.items():
        module.load_state_dict(
            {key.removeprefix(f"{name}."): value for key, value in weights.items() if key.startswith(f"{name}.")}
        )

    adapter.attach(tower.model)
    injector.attach(decoder)
    with torch.no_grad():
        features = tower(pixels())
        assert features.shape == (3, VISION_LAYERS, 1 + PATCHES, VISION_HIDDEN)
        members, levels = grouper(features[:, :, 0])
        codes, readout = projector(features[:, :, 1:])
        fused, _ = fuser(members, levels, query(), codes)
        with injector.holding(injector(fused, readout, *position())):
            logits = decoder(input_ids=tokens()).logits
    assert torch.equal(logits, expected)
    injector.detach()
    adapter.detach()
    with torch.no_grad():
        assert torch.equal(decoder(input_ids=tokens()).logits, tiny_decoder()(input_ids=tokens()).logits)
