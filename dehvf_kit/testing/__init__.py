"""The contract every decoder must keep, tiny models to run it on, and the matrix over all families; for plugin authors.

`check_decoder("llama")` or `check_decoder(make_my_decoder)` is a whole test; `tiny_decoder("gpt2")` builds a model
with random weights and no download; `python -m dehvf_kit.testing.matrix` writes docs/support.md.
"""

from dehvf_kit.testing.decoder_contract import CONTRACT
from dehvf_kit.testing.reference import reference_memory
from dehvf_kit.testing.report import ItemResult, check_decoder, run_contract
from dehvf_kit.testing.subject import Broken, FamilyLimit, NotRun, Subject
from dehvf_kit.testing.tiny_models import decoder_types, shrink_config, tiny_config, tiny_decoder

__all__ = [
    "CONTRACT",
    "Broken",
    "FamilyLimit",
    "ItemResult",
    "NotRun",
    "Subject",
    "check_decoder",
    "decoder_types",
    "reference_memory",
    "run_contract",
    "shrink_config",
    "tiny_config",
    "tiny_decoder",
]
