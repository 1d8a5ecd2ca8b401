"""`dehvf-kit check`: every fault of a recipe at once, or one line that says what it makes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from dehvf_kit.cli.console import print_json, quiet_transformers, waiting


def run(path: Path, overrides: Sequence[str], as_json: bool) -> None:
    """Check a recipe on both base models' configs. Raises: RecipeError listing every fault."""
    with waiting(f"Checking {path}", plain=True):
        from dehvf_kit.analysis.parameters import parameter_table
        from dehvf_kit.recipe import load_recipe

        quiet_transformers()
        recipe = load_recipe(path, overrides)
        graph = recipe.check()
        table = parameter_table(graph, recipe.published)
        towers = recipe.vision_specs([])
        decoder = graph.contexts[graph.order[0]].decoder
    if as_json:
        vision = {name: asdict(spec) for name, spec in towers.items()}
        facts = {"recipe": str(path), "ok": True, "components": list(graph.order), "vision": vision}
        print_json({**facts, "decoder": asdict(decoder), "trainable_parameters": table.trainable})
        return
    eyes = " and ".join(f"{spec.model_type} ({spec.num_layers} x {spec.hidden_size})" for spec in towers.values())
    print(
        f"{path}: ok: {len(graph.order)} components join {eyes} to {decoder.model_type} ({decoder.num_layers} x "
        f"{decoder.hidden_size}); {table.trainable:,} trained parameters"
    )
