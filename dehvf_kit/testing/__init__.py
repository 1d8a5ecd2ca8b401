"""The contracts every decoder and every vision encoder must keep, and tiny models to run them on; for plugin authors.

`check_decoder("llama")` or `check_decoder(make_my_decoder)` is a whole test, `check_vision(make_my_encoder)` another,
`check_component(MyConfig)` that of a component;
`tiny_decoder("gpt2")` and `tiny_vision("dinov2")` build models with random weights and no download.
`python -m tools.support.matrix` writes docs/support.md, `python -m tools.support.vision_matrix`
docs/support_vision.md.
"""

from dehvf_kit.testing.component_contract import COMPONENT_CONTRACT, check_component
from dehvf_kit.testing.decoder_contract import CONTRACT, ItemResult, check_decoder, run_contract
from dehvf_kit.testing.reference import reference_memory
from dehvf_kit.testing.subject import Broken, FamilyLimit, NotRun, Subject
from dehvf_kit.testing.tiny_models import decoder_types, shrink_config, tiny_config, tiny_decoder
from dehvf_kit.testing.vision_contract import VISION_CONTRACT, check_vision, run_vision_contract
from dehvf_kit.testing.vision_models import image_encoder_types, tiny_vision

__all__ = [
    "COMPONENT_CONTRACT",
    "CONTRACT",
    "VISION_CONTRACT",
    "Broken",
    "FamilyLimit",
    "ItemResult",
    "NotRun",
    "Subject",
    "check_component",
    "check_decoder",
    "check_vision",
    "decoder_types",
    "image_encoder_types",
    "reference_memory",
    "run_contract",
    "run_vision_contract",
    "shrink_config",
    "tiny_config",
    "tiny_decoder",
    "tiny_vision",
]
