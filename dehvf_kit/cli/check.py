"""`dehvf-kit check`: every fault of a recipe at once, or one line that says what it makes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from dehvf_kit.cli.console import print_json, quiet_transformers, waiting
from dehvf_kit.errors import RecipeError


def run(path: Path, overrides: Sequence[str], as_json: bool) -> int:
    """Check a recipe on both base models' configs; 0 where it is sound. Raises: RecipeError listing every fault.

    as_json: faults are printed as data, and 1 is returned in place of the error.
    """
    with waiting(f"Checking {path}", plain=True):
        from dehvf_kit.costs.parameters import parameter_table
        from dehvf_kit.recipe.recipe import load_recipe

        quiet_transformers()
        try:
            recipe = load_recipe(path, overrides)
            graph = recipe.check()
        except RecipeError as error:
            if not as_json:
                raise
            print_json({"recipe": str(path), "sound": False, "faults": [asdict(fault) for fault in error.faults]})
            return 1
        table = parameter_table(graph, recipe.published)
        towers = recipe.vision_specs([])
        decoder = graph.contexts[graph.order[0]].decoder
    if as_json:
        facts = {"recipe": str(path), "sound": True, "faults": [], "components": list(graph.order)}
        facts["vision"] = {name: asdict(spec) for name, spec in towers.items()}
        print_json({**facts, "decoder": asdict(decoder), "trainable_parameters": table.trainable})
        return 0
    eyes = " and ".join(f"{spec.model_type} ({spec.num_layers} x {spec.hidden_size})" for spec in towers.values())
    print(
        f"{path}: ok: {len(graph.order)} components join {eyes} to {decoder.model_type} ({decoder.num_layers} x "
        f"{decoder.hidden_size}); {table.trainable:,} trained parameters"
    )
    return 0
