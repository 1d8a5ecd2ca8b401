"""The model card of an adapter, `README.md`, and what was measured of it, `measured.json`.

`measured.json` names the weights it is about by their sha256; with other weights it is ignored.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from dehvf_kit.adapter.files import HUB_ID, MEASURED, WEIGHTS, buffer_names, read_config
from dehvf_kit.adapter.identity import FINGERPRINT
from dehvf_kit.errors import AdapterError
from dehvf_kit.utils.atomic import exists, files_replaced, write_text, writing

USE = """```python
import dehvf_kit

model = dehvf_kit.load("path/to/this/folder")
inputs = model.processor(images="image.png", text="what is in the image?")
print(model.processor.batch_decode(model.generate(**inputs), skip_special_tokens=True))
```"""


def card(config: Mapping[str, Any], sizes: Mapping[str, int], measured: Mapping[str, Any]) -> str:
    """The card of an adapter.

    config: `dehvf_config.json`; sizes: numbers in each trained weight, by name; measured: of `measured.json`, `scores` and
    `batch_parity`, where they are known.
    """
    recipe = config["recipe"]
    parts = [
        _front_matter(config, measured.get("scores")),
        f"# {recipe['name']}",
        recipe.get("description") or "A DEHVF adapter.",
        f"An adapter of dehvf-kit {config['versions']['dehvf-kit']}: {config['trainable_parameters']:,} trained parameters "
        "that give a\nfrozen decoder eyes. It holds no base weights.",
        "## Made from",
        "\n".join(_origins(config)),
        "## Components",
        "\n".join(_components(recipe["graph"], sizes)),
        "## Scores",
        _scores(measured.get("scores")),
        "## Batch parity",
        _parity(measured.get("batch_parity")),
        *_exports(measured),
        "## Use",
        USE,
        "The resolved recipe is stored in `dehvf_config.json`.",
    ]
    return "\n\n".join(parts) + "\n"


def _front_matter(config: Mapping[str, Any], measured: Mapping[str, Any] | None) -> str:
    """What the hub reads, checked and written by huggingface_hub; of base models and data those whose names can be hub ids."""
    from huggingface_hub import EvalResult, ModelCardData

    recipe, task = config["recipe"], "image-text-to-text"
    data = recipe.get("data") or {}
    sets, kind = _hub_ids([data.get("path")]), str(data.get("type"))
    bases = _hub_ids(base.get("name") for base in config["bases"].values())
    scores = (measured or {}).get("scores") or {}
    results = [
        EvalResult(task, sets[0] if sets else kind, kind, name, row["value"], dataset_split="test") for name, row in scores.items()
    ]
    facts = ModelCardData(
        library_name="dehvf-kit",
        pipeline_tag=task,
        tags=["dehvf-kit", "adapter"],
        base_model=bases or None,
        base_model_relation="adapter" if bases else None,
        datasets=sets or None,
        metrics=list(scores) or None,
        model_name=recipe["name"] if results else None,
        eval_results=results or None,
    )
    return f"---\n{facts.to_yaml(line_break=chr(10))}\n---"


def _hub_ids(names: Iterable[Any]) -> list[str]:
    """Of some names those that can be hub ids and are no files here."""
    return [name for name in names if isinstance(name, str) and HUB_ID.fullmatch(name) and not exists(Path(name))]


def _origins(config: Mapping[str, Any]) -> Iterator[str]:
    for role, base in config["bases"].items():
        name = base.get("name") or "a model handed over in memory"
        revision = f", revision {base['revision']}" if base.get("revision") else ""
        yield f"- {role}: {name}{revision}; licence: {base.get('license') or 'not known'}"
    recipe = config["recipe"]
    parents = config.get("recipe_parents") or ()
    yield f"- recipe: {recipe['name']}" + (f", which extends {', then '.join(parents)}" if parents else "")
    given = recipe.get("data") or {}
    data = {"type": given.get("type"), **given}
    data = {key: value for key, value in data.items() if key not in ("prompt", "on_bad_sample") and value is not None}
    yield f"- data: {_listed(data) if data else 'none named'}"
    yield from (f"- {what}: from the plugin {origin}" for what, origin in (config.get("plugins") or {}).items())
    found = config.get(FINGERPRINT) or {}
    yield f"- prompt fingerprint: `{found.get('hash', 'none')}`"


def _listed(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} `{value if isinstance(value, str) else json.dumps(value)}`" for key, value in values.items())


def _components(graph: Mapping[str, Any], sizes: Mapping[str, int]) -> Iterator[str]:
    yield "| component | type | parameters |"
    yield "|---|---|---|"
    for name, node in graph.items():
        count = sum(size for weight, size in sizes.items() if weight.startswith(f"{name}."))
        yield f"| {name} | {node.get('type', '')} | {count:,} |"


def _scores(found: Mapping[str, Any] | None) -> str:
    if not found:
        return "Not measured; `dehvf-kit eval ADAPTER --store` adds them."
    rows = [f"| {name} | {100 * row['value']:.1f} | {100 * row['low']:.1f} to {100 * row['high']:.1f} | {row['count']:,} |"
            for name, row in found["scores"].items()]  # fmt: skip
    lines = ["| score | times 100 | 95% interval | answers |", "|---|---|---|---|", *rows]
    return "\n".join([*lines, "", f"On {found['data']}."])


def _parity(found: Mapping[str, Any] | None) -> str:
    if not found:
        return "Not measured; `dehvf-kit verify ADAPTER` adds it."
    rows = [f"| {one['variant']} | {one['largest']:.2e} | {len(one['changed'])} |" for one in found["differences"]]
    return "\n".join(
        [
            f"{found['questions']} questions, {found['dtype']} on {found['device']}, logits up to {found['logit_range']:.3g}; "
            "each variant beside every question\nasked alone without a cache:",
            "",
            "| variant | largest logit difference | changed answers |",
            "|---|---|---|",
            *rows,
        ]
    )


def _exports(measured: Mapping[str, Any]) -> list[str]:
    """What `dehvf-kit export` measured of each format; nothing where it was not run."""
    found = [one for name, one in measured.items() if name.startswith("export_")]
    rows = [
        f"| {one['format']}: {case['case']} | " + " | ".join(f"{case[part]:.2e}" for part in ("memory", "prefill", "decode"))
        + f" | {one['runtime']} |"
        for one in found for case in one["cases"]
    ]  # fmt: skip
    head = ["| export | memory | prefill | decoding | by |", "|---|---|---|---|---|"]
    return ["## Largest difference of an export", "\n".join([*head, *rows])] if rows else []


def read_measured(folder: Path) -> dict[str, Any]:
    """`measured.json` as it stands; nothing where the file is missing or garbled."""
    try:
        found = json.loads((folder / MEASURED).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def about(found: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Of what was measured, that which is about the weights in a folder."""
    if not found or found.get("weights") != _digest(folder):
        return {}
    return {key: value for key, value in found.items() if key != "weights" and isinstance(value, dict)}


def write_measured(folder: Path, known: Mapping[str, Any], weights: str) -> None:
    """Write `measured.json` for the weights of that sha256; where nothing is known there is none."""
    if known:
        write_text(folder / MEASURED, json.dumps({"weights": weights, **known}, indent=2) + "\n")


def keep(folder: Path, name: str, facts: Mapping[str, Any]) -> None:
    """Add what was measured to an adapter's `measured.json` and write its card anew.

    Raises: AdapterError where the folder is no adapter or cannot be written.
    """
    config = read_config(folder)
    known = {**about(read_measured(folder), folder), name: dict(facts)}
    sizes = {weight: size for weight, size in _sizes(folder).items() if weight not in buffer_names(config)}
    weights, text = _digest(folder), card(config, sizes, known)
    with writing(folder, AdapterError), files_replaced(folder) as place:
        write_measured(place, known, weights)
        write_text(place / "README.md", text)


def _digest(folder: Path) -> str:
    try:
        return hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()
    except OSError as error:
        raise AdapterError(f"{folder / WEIGHTS}: cannot be read: {error.strerror or error}") from error


def _sizes(folder: Path) -> dict[str, int]:
    """Numbers in each weight of the file, from its header."""
    try:
        with safe_open(folder / WEIGHTS, framework="pt") as file:
            return {name: math.prod(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise AdapterError(f"{folder / WEIGHTS}: cannot be read: {error}") from error
