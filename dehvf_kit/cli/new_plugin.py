"""`dehvf-kit new-plugin`: a package to start from."""

from __future__ import annotations

from pathlib import Path

from dehvf_kit.cli.console import print_json


def run(name: str, kind: str, output: Path, as_json: bool) -> None:
    """Write the package. Raises: DehvfError for a name or kind that will not do, or a folder that is there already."""
    from dehvf_kit.cli.plugin_writer import new_plugin

    files = new_plugin(name, kind, output)
    folder = files[0].parent
    if as_json:
        print_json({"folder": str(folder), "kind": kind, "files": [str(file) for file in files]})
        return
    for file in files:
        print(file)
    print(f"next: pip install --editable {folder}; python -m pytest {folder}")
