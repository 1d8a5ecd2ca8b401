"""Bases that peft tuned by virtual tokens or prefixes: one column of logits for each text token, and the loss on those."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import VOCAB, pixels, tiny_decoder, tiny_model, tiny_vision, tokens, worst
from torch.nn import functional as F

import dehvf_kit

peft = pytest.importorskip("peft", reason="peft is not installed")
pytestmark = pytest.mark.usefixtures("builtins_alone")
COMMON = {"task_type": "CAUSAL_LM", "num_virtual_tokens": 3}
KINDS: dict[str, Callable[[], Any]] = {
    "prompt tuning": lambda: peft.PromptTuningConfig(**COMMON),
    "p-tuning": lambda: peft.PromptEncoderConfig(**COMMON, encoder_hidden_size=16),
    "multitask prompt tuning": lambda: peft.MultitaskPromptTuningConfig(**COMMON, num_tasks=2),
    "prefix tuning": lambda: peft.PrefixTuningConfig(**COMMON),
}


def tuned(kind: str) -> Any:
    """The embedding of virtual tokens is as large as that of words, so that they matter."""
    decoder = peft.get_peft_model(tiny_decoder(num_hidden_layers=2), KINDS[kind]()).eval()
    generator = torch.Generator().manual_seed(4)
    for parameter in decoder.prompt_encoder.parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return decoder


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_logits_and_loss_are_those_of_the_text(kind: str) -> None:
    """`generate` reads the decoder's own last column: that each column of forward is the same is worked out apart. Worst: 1e-6."""
    model = tiny_model(tuned(kind))
    tasks = {"task_ids": torch.tensor([0, 1, 0])} if kind.startswith("multitask") else {}
    given: dict[str, Any] = {"pixel_values": pixels(), "attention_mask": torch.ones(3, 4, dtype=torch.long), **tasks}
    asked = {"max_new_tokens": 3, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    answer = model.generate(input_ids=tokens(length=4), **given, **asked)
    ids = answer.sequences
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels(), **tasks}
    logits = model(**given).logits
    assert logits.shape == (*ids.shape, VOCAB)
    for column, step in enumerate(answer.logits, start=3):
        assert worst(logits[:, column], step) < 1e-5
    wanted = F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).item()
    assert model(**given, labels=ids).loss.item() == pytest.approx(wanted, abs=1e-5)
    items = torch.tensor(2 * ids[:, 1:].numel())
    assert model(**given, labels=ids, num_items_in_batch=items).loss.item() == pytest.approx(wanted / 2, abs=1e-5)
    kept = torch.arange(ids.shape[1] - 1)
    assert model(**given, labels=ids, logits_to_keep=kept).loss.item() == pytest.approx(wanted, abs=1e-5)
    assert worst(model(**given, logits_to_keep=kept[2:]).logits, logits[:, 2:-1]) < 1e-5
    own = kept.unfold(0, 2, 1)[:3]  # columns 0 and 1 of the first row, 1 and 2 of the second, 2 and 3 of the third
    assert (
        worst(model(**given, labels=ids, logits_to_keep=own).logits, torch.stack([logits[row, own[row]] for row in range(3)]))
        < 1e-5
    )
    with model.hooks_disabled():
        plain = tiny_decoder(num_hidden_layers=2)(input_ids=ids).logits
    assert worst(logits, plain) > 0.1


@pytest.mark.nightly
@pytest.mark.parametrize("kind", KINDS)
def test_its_adapter_knows_it_again(kind: str, tmp_path: Path) -> None:
    tiny_model(tuned(kind)).save_pretrained(tmp_path)
    dehvf_kit.load(tmp_path, decoder=tuned(kind), vision=tiny_vision())
    with pytest.raises(dehvf_kit.errors.AdapterError, match="which has a weight 'prompt_encoder.*this one has none"):
        dehvf_kit.load(tmp_path, decoder=tiny_decoder(num_hidden_layers=2), vision=tiny_vision())
