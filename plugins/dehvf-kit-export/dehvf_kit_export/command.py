"""`dehvf-kit export`: an adapter with its base models as files for other runtimes."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer

from dehvf_kit.cli.arguments import Adapter, Json, Overrides
from dehvf_kit.cli.console import grid, print_json, stdout, waiting
from dehvf_kit.errors import DehvfError

LARGEST = 1e-3
"""Times the range of the logits: a greater difference is an export that went wrong. float32 gave 1.6e-6 and less."""


def export(
    adapter: Adapter,
    overrides: Overrides = None,
    kind: Annotated[str, typer.Option("--format", help="onnx, or pt2 for torch.export.load.")] = "onnx",
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="A new folder.")] = Path("exported"),
    dtype: Annotated[str, typer.Option("--dtype", help="The decoder's numbers.")] = "float32",
    store: Annotated[
        bool, typer.Option("--store/--no-store", help="Store the comparison in measured.json and the card of a folder.")
    ] = True,
    as_json: Json = False,
) -> None:
    """Export, compare with the model, print, and store the figures in the adapter's card.

    Raises: AdapterError for what is not an adapter, DehvfError for a model that cannot be exported or differs from its export.
    """
    from dehvf_kit_export.files import FORMATS, write

    if kind not in FORMATS:
        raise DehvfError(f"--format: '{kind}' is neither {' nor '.join(FORMATS)}")
    missing = [name for name in ("onnx", "onnxruntime", "onnxscript") if find_spec(name) is None]
    if kind == "onnx" and missing:
        raise DehvfError(f"export needs {', '.join(missing)}; pip install 'dehvf-kit[export]'")
    from dehvf_kit.utils.atomic import check_new_files, check_new_folder, exists, is_folder, whole_folder

    if exists(output):
        raise DehvfError(f"--output: '{output}' is there already; name a new folder")
    check_new_folder(output)
    from dehvf_kit.adapter.card import keep
    from dehvf_kit.adapter.checkpoint import load
    from dehvf_kit.adapter.files import adapter_folder
    from dehvf_kit_export.check import compare

    given, adapter = adapter, adapter_folder(adapter)
    store = store and is_folder(given)  # a copy in the hub's cache is left as it is; what is no folder, `load` refuses
    check_new_files({}, {"--store": adapter / "README.md"} if store else {})
    with waiting(f"Exporting {given}", plain=True):
        model = load(adapter, dtype=dtype, overrides=overrides or ()).eval()
        if model.processor is None:
            raise DehvfError(f"{given}: has no tokenizer")
        try:
            with whole_folder(output) as place:
                write(model, place, kind)
                found = compare(model, place)
                _refuse_differing(found)
                model.processor.save_pretrained(place)
        except OSError as error:
            raise DehvfError(f"--output: '{output}' cannot be written: {error.strerror or error}") from error
    if as_json:
        print_json({"adapter": str(given), "output": str(output), **found, "stored": store})
    else:
        _show(found)
        print(f"exported to {output}")
    if store:  # after they are printed: a full disk loses no answer
        keep(adapter, f"export_{kind}", found)


def _refuse_differing(found: dict[str, Any]) -> None:
    for one in found["cases"]:
        largest = max(one["memory"], one["prefill"], one["decode"])
        if not largest <= LARGEST * max(1.0, one["logit_range"]):
            raise DehvfError(
                f"export: {found['runtime']} differs from the model by {largest:.2e} ({one['case']}); nothing was written"
            )


def _show(found: dict[str, Any]) -> None:
    table = grid("left", "right", "right", "right", "right")
    table.add_row("", "memory", "prefill", "decoding", "changed tokens", style="dim")
    for one in found["cases"]:
        table.add_row(one["case"], *(f"{one[name]:.2e}" for name in ("memory", "prefill", "decode")), str(one["changed_tokens"]))
    stdout().print(f"{found['runtime']}: largest differences from the model")
    stdout().print(table)
