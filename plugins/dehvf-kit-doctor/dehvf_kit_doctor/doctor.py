"""`dehvf-kit doctor`: where memory goes in a decoder, what a vision tower yields, and whether both keep the contract.

Only configurations are read: structure comes from models on the meta device, the contracts run on tiny random models of
the same architecture and switches.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from dehvf_kit.cli.arguments import Json
from dehvf_kit.cli.console import grid, print_json, section, stdout, waiting
from dehvf_kit.errors import DehvfError

if TYPE_CHECKING:
    from torch import nn
    from transformers import PretrainedConfig

    from dehvf_kit.testing import ItemResult

IMAGE_SIZE = 224
COLOURS = {"pass": "green", "broken": "red", "family": "yellow", "not run": "dim"}


def doctor(
    decoder: Annotated[
        str,
        typer.Argument(
            metavar="DECODER", help="A name from dehvf-kit list, a folder, a config.json or a hub id.", show_default=False
        ),
    ],
    vision: Annotated[
        str | None, typer.Argument(metavar="[VISION]", help="A vision encoder, named likewise.", show_default=False)
    ] = None,
    as_json: Json = False,
) -> None:
    """Examine a decoder and a vision encoder; the exit status is 1 if an item of a contract does not hold.

    Raises: DehvfError for a name that is not on this machine, DecoderError or VisionError for a model the kit cannot use.
    """
    with waiting(f"Reading {decoder}" + (f" and {vision}" if vision else "")):
        parts = {"decoder": decoder_facts(decoder)}
        if vision is not None:
            parts["vision"] = vision_facts(vision)
    with waiting("Running the contract on tiny random models of the same architecture", plain=not as_json):
        for part in parts.values():
            part["contract"] = [
                {"item": item.item, "status": item.status, "reason": item.reason, "seconds": item.seconds}
                for item in part.pop("check")()
            ]
    broken = [item for part in parts.values() for item in part["contract"] if item["status"] == "broken"]
    if as_json:
        print_json({**parts, "ok": not broken})
    else:
        _print(stdout(), parts)
    if broken:
        raise typer.Exit(1)


def read_config(name: str) -> tuple[PretrainedConfig, dict[str, Any]]:
    """The transformers config of a source, folder, hub id or JSON file, and the tower settings that name it.

    Raises: DehvfError where it is not on this machine or cannot be read.
    """
    from dehvf_kit.backbones.base import TowerConfig
    from dehvf_kit.recipe.plugin_manager import plugins
    from dehvf_kit.utils.plain_data import NotJson, parse_json

    settings: dict[str, Any] = {"model": name}
    file = Path(name).expanduser()
    if os.path.isfile(file):
        try:
            values = parse_json(file.read_bytes())
        except (OSError, NotJson) as error:
            raise DehvfError(f"{name}: cannot be read as JSON: {error}") from error
        if not isinstance(values, dict):
            raise DehvfError(f"{name}: holds a {type(values).__name__}; a config.json holds one object")
        settings = {"config": values}
    return TowerConfig(**settings).hf_config(plugins().registry.sources), settings


def decoder_facts(name: str) -> dict[str, Any]:
    """A decoder's sites, layer by layer, from its config alone; `check` runs the contract."""
    from dehvf_kit.backbones.base import config_size, text_config
    from dehvf_kit.backbones.decoder import HfDecoderConfig
    from dehvf_kit.backbones.ffn.sites import ffn_sites
    from dehvf_kit.recipe.plugin_manager import plugins

    config, settings = read_config(name)
    model = HfDecoderConfig(**settings).meta(plugins().registry.sources)
    sites = ffn_sites(model)

    def check() -> Sequence[ItemResult]:
        from dehvf_kit.testing import run_contract, shrink_config
        from dehvf_kit.testing.tiny_models import random_decoder

        return run_contract(lambda: random_decoder(shrink_config(config)))

    return {
        "name": name,
        "model_type": config.model_type,
        "class": type(model).__name__,
        "num_layers": config_size(text_config(model), "num_hidden_layers"),
        "sites": [
            {"layer_idx": site.layer_idx, "path": site.path, "activation": site.activation_name, "hidden_size": site.hidden_size}
            for site in sites
        ],
        "check": check,
    }


def vision_facts(name: str) -> dict[str, Any]:
    """What a vision encoder yields, from its config alone; `check` runs the contract."""
    from dehvf_kit.backbones.base import vision_config
    from dehvf_kit.backbones.vision.config import HfVisionConfig
    from dehvf_kit.backbones.vision.tower import VisionTower, pair
    from dehvf_kit.recipe.plugin_manager import plugins
    from dehvf_kit.testing.vision_contract import VisionSubject, run_vision_contract
    from dehvf_kit.testing.vision_models import random_vision, shrink_vision_config

    config, settings = read_config(name)
    config = vision_config(config)
    tower_config = HfVisionConfig(**settings)
    model = tower_config.meta(plugins().registry.sources)
    native = pair(getattr(config, "image_size", None))
    size = native[0] if native else _fitting_size(model, pair(getattr(config, "patch_size", None)) or (16, 16))
    tower = VisionTower(model, size)
    spec, tiny = tower.spec, shrink_vision_config(config)
    subject = VisionSubject(lambda: random_vision(tiny))
    layout = subject.tower.layout(subject.pixels)
    norm = subject.tower.post_norm(subject.pixels)
    return {
        "name": name,
        "model_type": spec.model_type,
        "class": type(tower.model).__name__,
        "image_size": spec.image_size,
        "patch_size": list(tower.patch_size),
        "num_layers": spec.num_layers,
        "hidden_size": spec.hidden_size,
        "num_patches": spec.num_patches,
        "global_token": "patch mean" if layout.global_token is None else "class token",
        "final_norm": None if norm is None else type(norm).__name__,
        "check": lambda: run_vision_contract(subject.make),
    }


def _fitting_size(model: nn.Module, patch_size: tuple[int, int]) -> int:
    """The side nearest IMAGE_SIZE that an encoder of any size can cut into patches and blocks of them."""
    from dehvf_kit.backbones.vision.layout import packing
    from dehvf_kit.backbones.vision.overrides import VISION_OVERRIDES, VisionOverride

    packed = packing(model, VISION_OVERRIDES.get(model.config.model_type, VisionOverride()))
    step = max(patch_size) * (packed[1] if packed else 1)
    return max(1, round(IMAGE_SIZE / step)) * step


def _print(console: Console, parts: dict[str, dict[str, Any]]) -> None:
    decoder = parts["decoder"]
    sites = decoder["sites"]
    layers = len({site["layer_idx"] for site in sites})
    section(console, escape(decoder["name"]), f"{decoder['class']} ({decoder['model_type']})")
    console.print(f"  memory goes into {layers} of {decoder['num_layers']} layers")
    table = grid("right", "left", "left", "right")
    table.add_row("", "[dim]layer[/]", "[dim]feed-forward network[/]", "[dim]activation[/]", "[dim]width[/]")
    for site in sites:
        where = (str(site["layer_idx"]), f"[cyan]{escape(site['path'])}[/]")
        table.add_row("", *where, escape(site["activation"]), str(site["hidden_size"]))
    console.print(table)
    _print_contract(console, decoder["contract"])
    if "vision" not in parts:
        return
    vision = parts["vision"]
    section(console, escape(vision["name"]), f"{vision['class']} ({vision['model_type']})")
    size, patch = vision["image_size"], " x ".join(map(str, vision["patch_size"]))
    table = grid("left", "left")
    for label, text in (
        ("yields", f"[image, {vision['num_layers']} layers, 1 + {vision['num_patches']} patches, {vision['hidden_size']}]"),
        ("from", f"images of {size} x {size} pixels, patches of {patch}"),
        ("global token", vision["global_token"]),
        ("final norm", vision["final_norm"] or "none"),
    ):
        table.add_row("", label, escape(str(text)))
    console.print(table)
    _print_contract(console, vision["contract"])


def _print_contract(console: Console, items: Sequence[dict[str, Any]]) -> None:
    console.print("\n  [dim]contract, on a tiny random model of this architecture[/]")
    table = grid("left", "left", "left")
    for item in items:
        status = item["status"]
        table.add_row("", f"[{COLOURS[status]}]{status}[/]", item["item"], f"[dim]{escape(item['reason'])}[/]")
    console.print(table)
