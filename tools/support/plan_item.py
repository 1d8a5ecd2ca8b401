"""The matrix's own item: `dehvf-kit plan`, which comes with a plugin, counts a recipe on every family."""

from __future__ import annotations

from collections.abc import Callable

from dehvf_kit_plan.gpus import find_gpu
from dehvf_kit_plan.plan import Workload, make_plan

from dehvf_kit.errors import DehvfError
from dehvf_kit.testing import CONTRACT, Broken, FamilyLimit, Subject
from dehvf_kit.testing.recipe_items import recipe_on
from dehvf_kit.testing.subject import TOKENS

LIMITS = ("without numbers", "no causal language model of model_type")
"""What `plan` refuses by name: a family that looks at values as it runs; a part that transformers has no own type for."""


def planned(subject: Subject) -> None:
    """`plan` counts a training step and a batch of answers on the decoder from its config alone."""
    work = Workload(tokens=TOKENS, answer=2, decode_batch=2, new_tokens=2, samples=8)
    try:
        plan = make_plan(recipe_on({"config": subject.model.config.to_dict(), "dtype": "bfloat16"}), find_gpu("h100-80gb"), work)
    except DehvfError as refused:
        if any(reason in str(refused) for reason in LIMITS):
            raise FamilyLimit(str(refused)) from refused
        raise
    if not (plan.train.forward > 0 and plan.decode.token > 0 and plan.fits_train):
        raise Broken(f"a plan of a tiny model counts {plan.train}, {plan.decode}")


MATRIX: dict[str, Callable[[Subject], None]] = {**CONTRACT, "plan": planned}
