"""What tells a tokenizer from another: its vocabulary, and how it cuts a text. An adapter read by another one sees other words."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from dehvf_kit.errors import AdapterError

KEY = "tokenizer"
PROBE = "What is in the picture? 12 of 3.5 naïve 图像\n  (A) red"


def tokenizer_identity(tokenizer: Any) -> dict[str, Any]:
    """{"words", "sha256" of the vocabulary with its ids, "probe": the token ids of a fixed text}."""
    vocabulary = hashlib.sha256()
    for word, number in sorted(tokenizer.get_vocab().items()):
        vocabulary.update(f"{number} {word}\n".encode("utf-8", "surrogatepass"))
    return {
        "words": len(tokenizer.get_vocab()),
        "sha256": vocabulary.hexdigest(),
        "probe": list(tokenizer(PROBE)["input_ids"]),
    }


def check_tokenizer(saved: Any, tokenizer: Any, where: str) -> None:
    """Raises: AdapterError where a tokenizer is not the one an adapter was trained with; None is known of old adapters."""
    if saved is None:
        return
    if not isinstance(saved, Mapping) or not {"words", "sha256", "probe"} <= set(saved):
        raise AdapterError(f"{where}: its '{KEY}' is garbled")
    found = tokenizer_identity(tokenizer)
    if found["sha256"] != saved["sha256"]:
        raise AdapterError(
            f"{where}: trained with another tokenizer, of {saved['words']} words; this one has {found['words']}"
            + (", other ones or in another order" if found["words"] == saved["words"] else "")
            + "; load the tokenizer that belongs to its decoder"
        )
    if found["probe"] != saved["probe"]:
        raise AdapterError(
            f"{where}: trained with a tokenizer that cuts texts otherwise: {PROBE!r} became {saved['probe']}, "
            f"and becomes {found['probe']} now; load the tokenizer that belongs to its decoder"
        )
