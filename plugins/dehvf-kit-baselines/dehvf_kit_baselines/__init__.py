"""The baselines DEHVF is compared with, as components: LaVIN, LLaMA-Adapter, visual tokens with LoRA. MemVP needs none."""

from __future__ import annotations

from collections.abc import Callable

from dehvf_kit.api import CostFormula, Register, RegisterCommand, hookimpl

COMPONENTS = {
    ("vision", "clip_projection"): "dehvf_kit_baselines.clip_projection:ClipProjectionVisionConfig",
    ("reader", "patch_tokens"): "dehvf_kit_baselines.readers:PatchTokensReaderConfig",
    ("reader", "global_tokens"): "dehvf_kit_baselines.readers:GlobalTokensReaderConfig",
    ("reader", "perceiver"): "dehvf_kit_baselines.perceiver:PerceiverReaderConfig",
    ("reader", "query_transformer"): "dehvf_kit_baselines.query_transformer:QueryTransformerReaderConfig",
    ("projector", "normed_linear"): "dehvf_kit_baselines.query_transformer:NormedLinearConfig",
    ("decoder_adapter", "affine_maps"): "dehvf_kit_baselines.affine_maps:AffineMapsConfig",
    ("reader", "qformer"): "dehvf_kit_baselines.qformer:QFormerReaderConfig",
    ("vision_adapter", "adaptformer"): "dehvf_kit_baselines.adaptformer:AdaptFormerConfig",
    ("reader", "channels"): "dehvf_kit_baselines.layer_readers:ChannelsReaderConfig",
    ("reader", "token_levels"): "dehvf_kit_baselines.layer_readers:TokenLevelsReaderConfig",
    ("reader", "grids"): "dehvf_kit_baselines.layer_readers:GridsReaderConfig",
    ("reader", "instruction_groups"): "dehvf_kit_baselines.instruction_groups:InstructionGroupsReaderConfig",
    ("reader", "subgrids"): "dehvf_kit_baselines.stacked_tokens:SubgridsReaderConfig",
    ("projector", "mergers"): "dehvf_kit_baselines.stacked_tokens:MergersConfig",
    ("decoder_adapter", "stacked_tokens"): "dehvf_kit_baselines.stacked_tokens:StackedTokensConfig",
    ("decoder_adapter", "perceptual_weights"): "dehvf_kit_baselines.perceptual_weights:PerceptualWeightsConfig",
    ("visual_tokens", "clipcap"): "dehvf_kit_baselines.clipcap:ClipCapConfig",
    ("injector", "adaptive_memory"): "dehvf_kit_baselines.adaptive_memory:AdaptiveMemoryConfig",
    ("decoder_adapter", "gated_cross_attention"): "dehvf_kit_baselines.gated_cross_attention:GatedCrossAttentionConfig",
    ("visual_tokens", "visual_tokens"): "dehvf_kit_baselines.visual_tokens:VisualTokensConfig",
    ("decoder_adapter", "mixture_of_modality"): "dehvf_kit_baselines.mixture_decoder:MixtureDecoderAdapterConfig",
    ("vision_adapter", "mixture_of_modality"): "dehvf_kit_baselines.mixture_vision:MixtureVisionAdapterConfig",
    ("decoder_adapter", "gated_prefix"): "dehvf_kit_baselines.gated_prefix:GatedPrefixConfig",
    ("decoder_adapter", "peft"): "dehvf_kit_baselines.peft_tuner:PeftConfig",
    ("decoder_adapter", "lora"): "dehvf_kit_baselines.lora:LoraConfig",
}
"""(role, type) -> the place of its config class."""


@hookimpl
def register_components(register: Register) -> None:
    for (role, type_), place in COMPONENTS.items():
        register(place, role=role, type=type_)


@hookimpl
def register_cost_formulas(register: Callable[[CostFormula], None]) -> None:
    from dehvf_kit_baselines.cost_formulas import baseline_costs

    register(baseline_costs)


@hookimpl
def register_commands(register: RegisterCommand) -> None:
    register(
        "reproduce",
        "dehvf_kit_baselines.reproduction.command:reproduce",
        "Print a table or figure of the paper beside ours: counted now, measured, or how to run it.",
    )
    register(
        "import-memvp",
        "dehvf_kit_baselines.import_memvp:import_memvp",
        "Convert an official MemVP checkpoint into an adapter of the kit; needs no base weights, runs no pickle.",
    )
