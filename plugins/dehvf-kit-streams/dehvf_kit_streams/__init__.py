"""The data type `stream`: data too large to be listed, read from front to back out of files, tar shards or a hub data set."""

from __future__ import annotations

from dehvf_kit.api import Register, hookimpl

__version__ = "0.1.0"


@hookimpl
def register_components(register: Register) -> None:
    register("dehvf_kit_streams.stream:StreamDataConfig", role="data", type="stream")
