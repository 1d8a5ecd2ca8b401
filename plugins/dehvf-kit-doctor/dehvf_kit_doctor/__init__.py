"""Commands that show what there is and examine it: `list`, `doctor`, `support`, `prepare`, `data`, `cache` and `verify`."""

from __future__ import annotations

from dehvf_kit.api import RegisterCommand, hookimpl

__version__ = "0.1.0"


@hookimpl
def register_commands(register: RegisterCommand) -> None:
    register(
        "doctor",
        "dehvf_kit_doctor.doctor:doctor",
        "Show where memory goes in a decoder and what a vision encoder yields; test both contracts.",
    )
    register(
        "support",
        "dehvf_kit_doctor.support:support",
        "Print which decoder and vision families pass the kit's contract, or test some now.",
    )
    register(
        "prepare",
        "dehvf_kit_doctor.prepare:prepare",
        "Check data sets: published sizes, and everything missing, broken or repeated.",
    )
    register("data", "dehvf_kit_doctor.data:data", "Show training samples as the model will see them: tokens, loss and image.")
    register(
        "verify",
        "dehvf_kit_doctor.verify:verify",
        "Compare answers to questions alone and in padded batches, with and without a cache.",
    )
    register(
        "list",
        "dehvf_kit_doctor.listing:list_installed",
        "List components, base models, data sets and plugins, each with its origin.",
    )
    register(
        "cache", "dehvf_kit_doctor.cache:cache", "Compute the frozen encoders' features once per image, for `train` and `eval`."
    )
