"""The hooks a plugin may implement. A plugin is a module named by an entry point in the group `dehvf_kit`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import pluggy

from dehvf_kit.api.cost_formulas import CostFormula

PROJECT = "dehvf_kit"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)

RegisterSource = Callable[..., None]
RegisterCommand = Callable[[str, str, str], None]


class Register(Protocol):
    """What `register_components` is given; see there."""

    def __call__(self, config: type | str, *, role: str = "", type: str = "") -> None: ...


@hookspec
def register_components(register: Register) -> None:
    """Call `register` for each config class: components, towers (roles `vision`, `decoder`) and data sets.

    `register("package.module:ConfigClass", role="fuser", type="mean")` imports the module only when a recipe names the type;
    `register(ConfigClass)` takes a class that is at hand.
    """


@hookspec
def register_sources(register: RegisterSource) -> None:
    """Call `register(name, config, path, summary, licence="", preprocessor=None)` for each base model it can supply.

    A recipe then says `model: name`. `config()` returns the transformers config as a dict, at once and without weights;
    `path()` returns a local folder that `from_pretrained` reads, making it first if need be. `licence` is the base model's own,
    as its owner writes it (`apache-2.0`); it is named in the card of every adapter trained on it. `preprocessor()` returns the
    content of an encoder's `preprocessor_config.json`, with which `check` compares a recipe and `init` fills it in.
    """


@hookspec
def register_cost_formulas(register: Callable[[CostFormula], None]) -> None:
    """Call `register(formula)` for each function that gives `dehvf-kit plan` the costs of baseline methods.

    `formula(sizes)` takes `dehvf_kit.api.TowerSizes` and returns a `dehvf_kit.api.BaselineCost` for each baseline.
    """


@hookspec
def register_ffn_overrides(register: Callable[..., None]) -> None:
    """Call `register(model_type, ...)` for decoders whose feed-forward networks structure alone cannot tell."""


@hookspec
def register_vision_overrides(register: Callable[..., None]) -> None:
    """Call `register(model_type, ...)` for vision encoders whose inputs or tokens structure alone cannot tell."""


@hookspec
def register_commands(register: RegisterCommand) -> None:
    """Call `register(name, "module:function", help)` for each command that the plugin adds to `dehvf-kit`.

    The function declares its arguments as Typer functions do and is imported when the command runs. `dehvf-kit --help`
    imports the plugin's entry module, so that module must not import torch, transformers or the like.
    """
