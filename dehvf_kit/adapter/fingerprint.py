"""The prompt fingerprint: what an adapter's text and images looked like in training, short, readable, and hashed.

It travels in `dehvf_config.json`; `dehvf-kit eval` refuses to score under another one unless it is told to. A model answers
a format it was not trained on much worse, and nothing else would show it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from dehvf_kit.errors import AdapterError
from dehvf_kit.recipe.recipe import Recipe

KEY = "prompt_fingerprint"


def fingerprint(recipe: Recipe, tokenizer: Any = None) -> dict[str, Any]:
    """{"text": facts of the data set's prompt or None, "pictures": facts of each encoder's, "tokens", "hash"}.

    tokens: what the tokenizer makes of a prompt, beside its vocabulary; left out without a tokenizer.
    """
    text = recipe.data.prompt_facts() if recipe.data is not None else None
    pictures = {name: tower.image.model_dump(mode="json") for name, tower in recipe.vision.items() if hasattr(tower, "image")}
    facts = {"text": text, "pictures": pictures}
    if tokenizer is not None:
        facts["tokens"] = _tokens(tokenizer, bool(recipe.data is not None and recipe.data.prompt.chat))
    return {**facts, "hash": digest(facts)}


def _tokens(tokenizer: Any, chat: bool) -> dict[str, Any]:
    """The chat template's digest, or the tokens added around a text; the end token, and the digest of the added tokens."""
    facts: dict[str, Any] = {"end": tokenizer.eos_token}
    if chat:
        facts["chat_template"] = _sha(tokenizer.chat_template)
    else:
        plain = tokenizer("a", add_special_tokens=False)["input_ids"]
        full = tokenizer("a", add_special_tokens=True)["input_ids"]
        place = next((n for n in range(len(full)) if full[n : n + len(plain)] == plain), 0)
        facts["added_before"] = tokenizer.convert_ids_to_tokens(full[:place])
        facts["added_after"] = tokenizer.convert_ids_to_tokens(full[place + len(plain) :])
    added = getattr(tokenizer, "added_tokens_decoder", {})
    facts["added_tokens"] = _sha({str(number): str(token) for number, token in sorted(added.items())})
    return facts


def _sha(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


def digest(facts: Mapping[str, Any]) -> str:
    """Twelve hexadecimal digits of the facts."""
    kept = {key: facts.get(key) for key in ("text", "pictures")}
    return _sha(kept | ({"tokens": facts["tokens"]} if "tokens" in facts else {}))


def differences(trained: Mapping[str, Any], asked: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """(field, in training, now) wherever two fingerprints differ; nothing is said of text or tokens that one does not know."""
    before, now = _flat(trained), _flat(asked)
    if not (trained.get("tokens") and asked.get("tokens")):
        before, now = ({name: v for name, v in one.items() if not name.startswith("tokens.")} for one in (before, now))
    if not trained.get("text"):
        now = {name: value for name, value in now.items() if not name.startswith("text.")}
    names = dict.fromkeys([*before, *now])
    return [(name, before.get(name), now.get(name)) for name in names if before.get(name) != now.get(name)]


def check_fingerprint(trained: Mapping[str, Any], asked: Mapping[str, Any], where: str) -> None:
    """Raises: AdapterError showing both sides, field by field, where they differ."""
    different = differences(trained, asked)
    if not different:
        return
    lines = [f"{where}: trained on other prompts or images than it is asked with now; --allow-prompt-mismatch goes on"]
    width = max(len(name) for name, _, _ in different)
    for name, before, now in different:
        lines.append(f"  {name:<{width}}  trained {_shown(before)}")
        lines.append(f"  {'':<{width}}  now     {_shown(now)}")
    raise AdapterError("\n".join(lines))


def saved_fingerprint(config: Mapping[str, Any], recipe: Recipe, where: str) -> Mapping[str, Any]:
    """An adapter's own fingerprint; what was not recorded when it was saved is that of the recipe it carries.

    Raises: AdapterError where the saved one was altered.
    """
    found, carried = config.get(KEY), fingerprint(recipe)
    if found is None:
        return carried
    if not isinstance(found, Mapping) or found.get("hash") != digest(found):
        raise AdapterError(f"{where}: its {KEY} does not match its hash; it was altered")
    return {**found, "text": {**(carried["text"] or {}), **found["text"]}} if found.get("text") else found


def _flat(facts: Mapping[str, Any]) -> dict[str, Any]:
    flat = {f"text.{name}": value for name, value in (facts.get("text") or {}).items()}
    for tower, values in (facts.get("pictures") or {}).items():
        prefix = "pictures" if len(facts["pictures"]) == 1 else f"pictures.{tower}"
        flat |= {f"{prefix}.{name}": value for name, value in values.items()}
    return flat | {f"tokens.{name}": value for name, value in (facts.get("tokens") or {}).items()}


def _shown(value: Any) -> str:
    return "nothing" if value is None else json.dumps(value, ensure_ascii=False)
