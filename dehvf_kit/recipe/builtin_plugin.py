"""Everything the kit itself offers, registered by the hooks that plugins use: our table of contents."""

from __future__ import annotations

from dehvf_kit.api.hookspecs import Register, hookimpl


@hookimpl
def register_components(register: Register) -> None:
    from dehvf_kit.backbones.decoder import HfDecoderConfig
    from dehvf_kit.backbones.vision.config import HfVisionConfig
    from dehvf_kit.components.fuser.cross_attention import CrossAttentionFuserConfig
    from dehvf_kit.components.fuser.mean import MeanFuserConfig
    from dehvf_kit.components.grouper.contiguous import ContiguousGrouperConfig
    from dehvf_kit.components.grouper.listed import ListedGrouperConfig
    from dehvf_kit.components.injector.ffn_memory import FfnMemoryInjectorConfig
    from dehvf_kit.components.layer_query.embedding_mlp import EmbeddingMlpQueryConfig
    from dehvf_kit.components.layer_query.learned_tokens import LearnedTokensQueryConfig
    from dehvf_kit.components.merger.concat_levels import ConcatLevelsMergerConfig
    from dehvf_kit.components.position.learned import LearnedPositionConfig
    from dehvf_kit.components.projector.bottleneck_mlp import BottleneckMlpProjectorConfig
    from dehvf_kit.components.projector.linear import LinearProjectorConfig
    from dehvf_kit.components.vision_adapter.parallel import ParallelVisionAdapterConfig
    from dehvf_kit.data.coco_captions import CocoCaptionsDataConfig
    from dehvf_kit.data.jsonl import JsonlDataConfig
    from dehvf_kit.data.llava import LlavaDataConfig
    from dehvf_kit.data.scienceqa import ScienceQaDataConfig
    from dehvf_kit.data.stream import StreamDataConfig
    from dehvf_kit.data.table import TableDataConfig

    for config in (
        HfVisionConfig,
        HfDecoderConfig,
        ParallelVisionAdapterConfig,
        ContiguousGrouperConfig,
        ListedGrouperConfig,
        ConcatLevelsMergerConfig,
        EmbeddingMlpQueryConfig,
        LearnedTokensQueryConfig,
        BottleneckMlpProjectorConfig,
        LinearProjectorConfig,
        CrossAttentionFuserConfig,
        MeanFuserConfig,
        LearnedPositionConfig,
        FfnMemoryInjectorConfig,
        JsonlDataConfig,
        TableDataConfig,
        StreamDataConfig,
        ScienceQaDataConfig,
        CocoCaptionsDataConfig,
        LlavaDataConfig,
    ):
        register(config)
