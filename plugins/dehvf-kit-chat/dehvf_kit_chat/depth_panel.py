"""Which vision layers each decoder layer read for each image, as HTML. Source: DEHVF, Figure 4, for single images."""

from __future__ import annotations

from dehvf_kit_report.page import missing, text
from dehvf_kit_report.sections import weight_maps

from dehvf_kit_chat.answering import Turn

TITLE = "<h3>Vision layers read for {}</h3>"
NOTE = "Each row sums to one; a stronger colour is more. Framed cells are the vision layers that a decoder layer may read."


def depth_panel(turn: Turn) -> str:
    """Heat maps of decoder layer by vision layer, counted from 1; where there are none, why."""
    if not turn.depths:
        return f"{TITLE.format('this image')}{missing(turn.why)}"
    parts = [
        TITLE.format(text(name) if len(turn.depths) > 1 else "this image")
        + weight_maps(read, read.by_layer(), lambda row: f"layer {row['decoder_layer']}")
        for name, read in turn.depths
    ]
    return f"{''.join(parts)}<p class='note'>{NOTE}</p>"
