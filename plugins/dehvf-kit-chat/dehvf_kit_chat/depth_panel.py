"""Which vision layers each decoder layer read for one image, as HTML. Source: DEHVF, Figure 4, for a single image."""

from __future__ import annotations

from dehvf_kit_report.page import missing
from dehvf_kit_report.sections import weight_maps

from dehvf_kit_chat.answering import Turn

TITLE = "<h3>Vision layers read for this image</h3>"
NOTE = "Each row sums to one; a stronger colour is more. Framed cells are the vision layers that a decoder layer may read."


def depth_panel(turn: Turn) -> str:
    """Heat maps of decoder layer by vision layer, counted from 1; where there are none, why."""
    if turn.depths is None:
        return f"{TITLE}{missing(turn.why)}"
    maps = weight_maps(turn.depths, turn.depths.by_layer(), lambda row: f"layer {row['decoder_layer']}")
    return f"{TITLE}{maps}<p class='note'>{NOTE}</p>"
