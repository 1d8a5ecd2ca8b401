"""`dehvf-kit check`: every fault of a recipe at once, or one line that says what it makes."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import Any

import typer

from dehvf_kit.cli.arguments import Json, Overrides, RecipeFile
from dehvf_kit.cli.console import print_json, waiting
from dehvf_kit.errors import DataError, Fault, RecipeError


def check(recipe: RecipeFile, overrides: Overrides = None, as_json: Json = False) -> None:
    """Check a recipe on both base models' configs. With `--json` the faults are printed as data, and the exit status is 1.

    Raises: RecipeError listing every fault.
    """
    with waiting(f"Checking {recipe}", plain=True):
        from dehvf_kit.api.config import MAX_PARAMETERS, too_many
        from dehvf_kit.costs.parameters import parameter_table
        from dehvf_kit.data.inspection import training_data_at_hand
        from dehvf_kit.data.tokens import longest_prompt, longest_sample
        from dehvf_kit.recipe.plugin_manager import plugins
        from dehvf_kit.recipe.recipe import image_statements, load_recipe, unscaled
        from dehvf_kit.recipe.tokenizer_check import check_tokenizer_of

        try:
            loaded = load_recipe(recipe, overrides or ())
            graph = loaded.check()
            decoder = graph.contexts[graph.order[0]].decoder
            faults = check_tokenizer_of(loaded, decoder.vocab_size)
            size = 0
            if loaded.data is not None:
                size, found = training_data_at_hand(loaded.data, loaded.reads_images)
                faults += [Fault("data", str(fault)) for fault in found]
            longest = longest_sample(loaded.training.max_length, graph)
            try:
                longest_prompt(None, graph, loaded.generation.max_new_tokens)
            except DataError as error:
                faults.append(Fault("generation.max_new_tokens", str(error)))
            table = parameter_table(graph, loaded.published)
            if table.trainable > MAX_PARAMETERS:
                faults.append(Fault("graph", too_many(table.trainable)))
            elif any(not type(graph.nodes[name].config).__module__.startswith("dehvf_kit.") for name in graph.order):
                from dehvf_kit.model.builder import component_faults

                faults += component_faults(graph)
            if faults:
                raise RecipeError(faults, loaded.source)
        except RecipeError as error:
            if not as_json:
                raise
            print_json({"recipe": str(recipe), "sound": False, "faults": [asdict(fault) for fault in error.faults]})
            raise typer.Exit(1) from error
        towers, images = loaded.vision_specs([]), image_statements(loaded)
    notes = [loaded.training.cut_warmup(size)] if size else []
    if loaded.data is not None and longest < loaded.training.max_length:
        notes.append(f"the decoder has positions for {longest} tokens of text: longer samples lose their beginning")
    base: Any = loaded.decoder
    dtype = base.dtype if base.dtype != "auto" else str(base.hf_config(plugins().registry.sources).dtype)
    notes.append(unscaled(loaded, dtype))
    if getattr(base, "quantization", None) is not None:
        from dehvf_kit.backbones.quantization import weight_notes

        notes += weight_notes(base.meta(plugins().registry.sources), base.quantization)
    notes = [note for note in (*notes, *(one.note for one in images.values())) if note]
    if as_json:
        facts = {"recipe": str(recipe), "sound": True, "faults": [], "components": list(graph.order)}
        facts |= {"max_length": longest, "notes": notes}
        facts["vision"] = {name: asdict(spec) for name, spec in towers.items()}
        facts["images"] = {
            name: {**one.facts, "own": one.own and dict(one.own.facts), "note": one.note} for name, one in images.items()
        }
        print_json({**facts, "decoder": decoder.sizes(), "trainable_parameters": table.trainable})
        return
    encoders = " and ".join(f"{spec.model_type} ({spec.num_layers} x {spec.hidden_size})" for spec in towers.values())
    print(
        f"{recipe}: ok: {len(graph.order)} components join {encoders} to {decoder.model_type} ({decoder.num_layers} x "
        f"{decoder.hidden_size}); {table.trainable:,} trained parameters"
    )
    for one in images.values():
        print(one.line)
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
