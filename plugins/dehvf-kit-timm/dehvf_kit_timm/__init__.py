"""timm's vision transformers in dehvf-kit: `vision: {type: timm, model: vit_base_patch16_224}`."""

from __future__ import annotations

from dehvf_kit.api import Register, hookimpl

__version__ = "0.1.0"


@hookimpl
def register_components(register: Register) -> None:
    register("dehvf_kit_timm.vision:TimmVisionConfig", role="vision", type="timm")
