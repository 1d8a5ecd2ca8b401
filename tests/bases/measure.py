"""What holds on a base that another library holds; each check raises where it does not. Gives a row of docs/bases.md."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from bases.holders import SIZES, Holder, plain, save_plain
from helpers import LLAMA, pixels, randomise, tiny_recipe, tiny_vision, tokens
from torch import Tensor

import dehvf_kit
from dehvf_kit.backbones.ffn.sites import ffn_sites
from dehvf_kit.errors import AdapterError

COLUMNS = ("library", "what it does", "sites", "logits", "gradients", "save", "load", "report")


def row(holder: Holder, folder: Path, work: Path) -> tuple[str, ...]:
    """The row of one holder. folder: of the plain decoder; work: an empty one."""
    model, reference = (built(decoder) for decoder in (holder.make(folder), plain(folder)))
    assert len(ffn_sites(model.decoder)) == len(ffn_sites(reference.decoder)) == SIZES["num_hidden_layers"]
    found = (str(SIZES["num_hidden_layers"]), logits(holder, model, reference), gradients(model))
    model.save_pretrained(work / "held")
    reference.save_pretrained(work / "plain")
    return (holder.library, holder.what, *found, "yes", load(holder, folder, work), report(holder, folder, work))


def built(decoder: Any) -> Any:
    model = dehvf_kit.build(
        tiny_recipe(decoder={"config": {"model_type": "llama", **LLAMA, **SIZES}}), decoder=decoder, vision=tiny_vision()
    )
    randomise(model.nodes)
    return model


def logits(holder: Holder, model: Any, reference: Any) -> str:
    """The memory acts on the held base as on the plain one: equal to float32's rounding, or as near as quantised weights are."""
    with torch.no_grad():
        with_memory = [one(input_ids=tokens(), pixel_values=pixels()).logits for one in (model, reference)]
        without = reference.decoder(input_ids=tokens()).logits
    difference = ((with_memory[0] - with_memory[1]).norm() / with_memory[1].norm()).item()
    assert (without - with_memory[1]).norm() > 0.1 * without.norm(), "the memory must matter"
    assert difference < (1e-5 if holder.exact else 0.5), difference
    return "equal" if holder.exact else "quantised"


def gradients(model: Any) -> str:
    """Gradients are the same to the last bit after every kind of pass."""
    before = adapter_gradients(model)
    assert max(gradient.abs().max() for gradient in before) > 0
    for call in PASSES.values():
        call(model)
    for one, other in zip(before, adapter_gradients(model), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    return "unchanged"


def adapter_gradients(model: Any) -> list[Tensor]:
    model.train()
    model.zero_grad(set_to_none=True)
    model(input_ids=tokens(), pixel_values=pixels(), labels=tokens()).loss.backward()
    model.eval()
    return [parameter.grad.clone() for parameter in model.trainable_parameters()]


def _forward(model: Any) -> None:
    with torch.no_grad():
        model(input_ids=tokens(), pixel_values=pixels())


PASSES = {
    "forward": _forward,
    "generate": lambda model: model.generate(input_ids=tokens(), pixel_values=pixels(), max_new_tokens=3, do_sample=False),
    "hooks_disabled": lambda model: _without(model),
}


def _without(model: Any) -> None:
    with model.hooks_disabled(), torch.no_grad():
        model.decoder(input_ids=tokens())


def load(holder: Holder, folder: Path, work: Path) -> str:
    """An adapter goes from the plain base to the held one and back, or to the same tuned base."""
    with warnings() as said:
        dehvf_kit.load(work / "plain", decoder=holder.make(folder), vision=tiny_vision())
        dehvf_kit.load(work / "held", decoder=holder.make(folder), vision=tiny_vision())
        if holder.whole:
            dehvf_kit.load(work / "held", decoder=plain(folder), vision=tiny_vision())
    told = sum("could not be compared" in line for line in said)
    if holder.own:
        assert told == 2, said
        return "on this base; on the plain one and from it with a warning"
    assert bool(told) != holder.whole, said
    if holder.whole:
        return "on the plain base and on this one"
    with pytest.raises(AdapterError, match="which has a weight '.*'; this one has none"):
        dehvf_kit.load(work / "held", decoder=plain(folder), vision=tiny_vision())
    return "of the plain base, with a warning; one trained on the tuned base on no other"


def report(holder: Holder, folder: Path, work: Path) -> str:
    """Another base of the same sizes is refused, and so is one that differs in a single weight."""
    other = save_plain(work / "other", seed=5)
    near = plain(folder)
    weight = near.model.layers[2].mlp.up_proj.weight.data
    weight[3, 5] = weight.abs().max() if holder.own else 1.02 * weight[3, 5]  # more than quantising rounds
    near.save_pretrained(work / "near")
    if holder.own:
        with pytest.raises(AdapterError, match="'model.layers.2.mlp.up_proj.weight' differ"):
            dehvf_kit.load(work / "held", decoder=holder.make(work / "near"), vision=tiny_vision())
    for place in (other,) if holder.own else (other, work / "near"):
        with pytest.raises(AdapterError, match="the adapter was trained on"):
            dehvf_kit.load(work / "plain", decoder=holder.make(place), vision=tiny_vision())
        with pytest.raises(AdapterError, match="the adapter was trained on"):
            dehvf_kit.load(work / "held", decoder=plain(place), vision=tiny_vision())
    return "another base is refused" + (", by one weight if held alike" if holder.own else ", by one weight")


@contextmanager
def warnings() -> Any:
    """The kit's warnings inside."""
    said: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage())

    listener, log = Listener(logging.WARNING), logging.getLogger("dehvf_kit")
    log.addHandler(listener)
    try:
        yield said
    finally:
        log.removeHandler(listener)
