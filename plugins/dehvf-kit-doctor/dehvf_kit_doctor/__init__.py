"""Commands that examine models: `doctor` and `support` run the contracts, `verify` compares ways of asking an adapter."""

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
        "verify",
        "dehvf_kit_doctor.verify:verify",
        "Compare answers to questions alone and in padded batches, with and without a cache.",
    )
