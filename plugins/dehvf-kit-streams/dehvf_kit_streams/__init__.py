"""Data types beside `jsonl`: `table`, `messages` and `llava` read whole, `stream` from front to back, and `mixture` of several."""

from __future__ import annotations

from dehvf_kit.api import Register, hookimpl

__version__ = "0.1.0"


@hookimpl
def register_components(register: Register) -> None:
    register("dehvf_kit_streams.table:TableDataConfig", role="data", type="table")
    register("dehvf_kit_streams.llava:LlavaDataConfig", role="data", type="llava")
    register("dehvf_kit_streams.messages:MessagesDataConfig", role="data", type="messages")
    register("dehvf_kit_streams.stream:StreamDataConfig", role="data", type="stream")
    register("dehvf_kit_streams.mixture:MixtureDataConfig", role="data", type="mixture")
