"""The transformers config that marks a folder as a DEHVF adapter."""

from __future__ import annotations

from transformers import PretrainedConfig


class DehvfConfig(PretrainedConfig):
    """Says `model_type: dehvf`; what was built is stored in `adapter_config.json` beside it."""

    model_type = "dehvf"
