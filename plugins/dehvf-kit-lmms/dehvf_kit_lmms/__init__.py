"""What lmms-eval finds through the entry point `lmms_eval.models`: the model `dehvf_kit`.

python -m lmms_eval --model dehvf_kit --model_args pretrained=runs/mine/adapter --tasks scienceqa_img --batch_size 16
"""

from __future__ import annotations

from typing import Any

MODEL = "dehvf_kit"


def manifests() -> list[Any]:
    """The manifest of our model; called by lmms-eval, and alone in importing it."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return [ModelManifest(model_id=MODEL, simple_class_path="dehvf_kit_lmms.model.DehvfLmm")]
