"""Samples whose labels are all masked teach nothing: left out and counted, and no run of nothing else."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from dehvf_kit.data.encoding import IGNORED, EncodedSamples
from dehvf_kit.errors import DataError

NAMED = 5
log = logging.getLogger(__name__)


def leave_out_unanswered(encoded: EncodedSamples) -> list[str]:
    """Take samples without a token to learn from out of `encoded`; their ids.

    The first token of a text is never learned, since nothing precedes it. Raises: DataError with the first sample's text
    where no sample has a token to learn from, as when prompt and answer do not fit the template.
    """
    kept, left = [], []
    for place, (_, labels) in enumerate(encoded.tokens):
        (kept if has_answer(labels) else left).append(place)
    if not left:
        return []
    ids = [encoded.samples[place].id for place in left]
    if not kept:
        raise DataError(no_answer(ids[0], encoded.tokens[left[0]][0], encoded.processor.tokenizer))
    more = f" and {len(ids) - NAMED} more" if len(ids) > NAMED else ""
    log.warning(
        "%d of %d samples have no token to learn from and are left out: %s%s",
        len(ids),
        len(encoded),
        ", ".join(ids[:NAMED]),
        more,
    )
    encoded.samples = [encoded.samples[place] for place in kept]
    encoded.tokens = [encoded.tokens[place] for place in kept]
    return ids


def has_answer(labels: Sequence[int]) -> bool:
    """Whether any label but the first is one to learn."""
    return any(label != IGNORED for label in labels[1:])


def no_answer(sample: str, input_ids: Sequence[int], tokenizer: Any) -> str:
    """The message, with the sample as the model would read it."""
    text = tokenizer.decode(list(input_ids))
    shown = text if len(text) <= 400 else f"{text[:200]} ... {text[-200:]}"
    return (
        f"sample '{sample}': no token of it is learned, its labels are all masked, and so it is with every other looked at. "
        f"Its prompt and answer become:\n  {shown!r}\ncheck data.prompt, the answers, and training.max_length"
    )
