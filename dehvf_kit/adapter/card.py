"""The model card of an adapter, `README.md`: what it is, what it was made from, and what was measured of it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from dehvf_kit.adapter.fingerprint import KEY as FINGERPRINT

USE = """```python
import dehvf_kit

model = dehvf_kit.load("path/to/this/folder")
inputs = model.processor(images="picture.png", text="what is in the picture?")
print(model.processor.batch_decode(model.generate(**inputs), skip_special_tokens=True))
```"""


def card(config: Mapping[str, Any], sizes: Mapping[str, int], measured: Mapping[str, Any]) -> str:
    """The card of an adapter.

    config: `adapter_config.json`; sizes: numbers in each trained weight, by name; measured: of `measured.json`, `scores` and
    `batch_parity`, where they are known.
    """
    recipe = config["recipe"]
    parts = [
        _front_matter(config),
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
        "## Use",
        USE,
        "The resolved recipe stands in `adapter_config.json`.",
    ]
    return "\n\n".join(parts) + "\n"


def _front_matter(config: Mapping[str, Any]) -> str:
    """What the hub reads; of the base models those whose names can be hub ids."""
    names = [base["name"] for base in config["bases"].values() if base.get("name")]
    ids = [name for name in names if name.count("/") == 1 and not name.startswith((".", "/", "~"))]
    lines = ["library_name: dehvf-kit", "pipeline_tag: image-text-to-text", "tags: [dehvf-kit, adapter]"]
    lines += [f"base_model: {json.dumps(ids)}"] if ids else []
    return "\n".join(["---", *lines, "---"])


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
    found = config.get(FINGERPRINT) or {}
    yield f"- prompt fingerprint: `{found.get('hash', 'none')}`"


def _listed(values: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{key} `{value if isinstance(value, str) else json.dumps(value)}`" for key, value in values.items()
    )


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
