"""The former place of `python -m dehvf_kit_scaffold.schema` (plugin dehvf-kit-scaffold), kept for one release."""

from __future__ import annotations

import runpy

if __name__ == "__main__":
    runpy.run_module("dehvf_kit_scaffold.schema", run_name="__main__")
