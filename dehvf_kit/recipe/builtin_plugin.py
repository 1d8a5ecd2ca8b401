"""Everything the kit itself offers, registered by the hook that plugins use: our table of contents."""

from __future__ import annotations

from dehvf_kit.api.hookspecs import Register, hookimpl

COMPONENTS = {
    ("vision", "hf"): "dehvf_kit.backbones.vision.config:HfVisionConfig",
    ("decoder", "hf"): "dehvf_kit.backbones.decoder:HfDecoderConfig",
    ("vision_adapter", "parallel"): "dehvf_kit.components.vision_adapter.parallel:ParallelVisionAdapterConfig",
    ("grouper", "contiguous"): "dehvf_kit.components.grouper.contiguous:ContiguousGrouperConfig",
    ("grouper", "listed"): "dehvf_kit.components.grouper.listed:ListedGrouperConfig",
    ("merger", "concat_levels"): "dehvf_kit.components.merger.concat_levels:ConcatLevelsMergerConfig",
    ("layer_query", "embedding_mlp"): "dehvf_kit.components.layer_query.embedding_mlp:EmbeddingMlpQueryConfig",
    ("layer_query", "learned_tokens"): "dehvf_kit.components.layer_query.learned_tokens:LearnedTokensQueryConfig",
    ("projector", "bottleneck_mlp"): "dehvf_kit.components.projector.bottleneck_mlp:BottleneckMlpProjectorConfig",
    ("projector", "linear"): "dehvf_kit.components.projector.linear:LinearProjectorConfig",
    ("fuser", "cross_attention"): "dehvf_kit.components.fuser.cross_attention:CrossAttentionFuserConfig",
    ("fuser", "mean"): "dehvf_kit.components.fuser.mean:MeanFuserConfig",
    ("position", "learned"): "dehvf_kit.components.position.learned:LearnedPositionConfig",
    ("position", "image_order"): "dehvf_kit.components.position.image_order:ImageOrderConfig",
    ("injector", "ffn_memory"): "dehvf_kit.components.injector.ffn_memory:FfnMemoryInjectorConfig",
    ("data", "jsonl"): "dehvf_kit.data.jsonl:JsonlDataConfig",
}
"""(role, type) -> the place of its config class."""


@hookimpl
def register_components(register: Register) -> None:
    for (role, type_), place in COMPONENTS.items():
        register(place, role=role, type=type_)
