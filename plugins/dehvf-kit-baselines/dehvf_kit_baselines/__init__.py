"""The baselines DEHVF is compared with, as components: LaVIN, LLaMA-Adapter, visual tokens with LoRA. MemVP needs none."""

from __future__ import annotations

from collections.abc import Callable

from dehvf_kit import hookimpl
from dehvf_kit.api import CostFormula, Register


@hookimpl
def register_components(register: Register) -> None:
    from dehvf_kit_baselines.clip_projection import ClipProjectionVisionConfig
    from dehvf_kit_baselines.gated_prefix import GatedPrefixConfig
    from dehvf_kit_baselines.lora import LoraConfig
    from dehvf_kit_baselines.mixture_decoder import MixtureDecoderAdapterConfig
    from dehvf_kit_baselines.mixture_vision import MixtureVisionAdapterConfig
    from dehvf_kit_baselines.readers import GlobalTokensReaderConfig, PatchTokensReaderConfig
    from dehvf_kit_baselines.visual_tokens import VisualTokensConfig

    for config in (
        ClipProjectionVisionConfig,
        PatchTokensReaderConfig,
        GlobalTokensReaderConfig,
        VisualTokensConfig,
        MixtureDecoderAdapterConfig,
        MixtureVisionAdapterConfig,
        GatedPrefixConfig,
        LoraConfig,
    ):
        register(config)


@hookimpl
def register_cost_formulas(register: Callable[[CostFormula], None]) -> None:
    from dehvf_kit_baselines.cost_formulas import baseline_costs

    register(baseline_costs)
