"""Items of the decoder contract about plain passes and generation; each function is one item.

Each takes a `Subject` and raises `Broken` where the kit breaks the item, or `FamilyLimit` where the untouched model
fails the very same check (shown by running it, never by a list of names).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from dehvf_kit.backbones.ffn.sites import FfnSite
from dehvf_kit.testing.reference import reference_memory
from dehvf_kit.testing.subject import (
    BATCH,
    OUTPUT_SCALE,
    Broken,
    FamilyLimit,
    Subject,
    attempt,
    close,
    distance,
    generated,
    logits,
    require,
)


@torch.no_grad()
def zero_memory_changes_nothing(subject: Subject) -> None:
    """Keys and values of zero leave the logits bit-identical."""
    before = logits(subject.model, subject.input_ids)
    with subject.attached(subject.model, *subject.memory(scale=0.0)):
        require(torch.equal(logits(subject.model, subject.input_ids), before), "zero memory changes the logits")


@torch.no_grad()
def sites_are_token_by_token(subject: Subject) -> None:
    """What is taken for an FFN maps each token by itself: changing one token's input changes no other's output."""
    model = subject.model
    for site in subject.sites:
        outputs = []
        for changed in (False, True):
            with _one_token_changed(model, site, changed) as seen:
                logits(model, subject.input_ids)
            outputs.append(seen[0])
        moved = (outputs[0] - outputs[1]).abs().amax(-1)
        moved = (moved > 1e-3 * moved.max()).nonzero().flatten().tolist()  # experts sum in another order: rounding
        require(bool(moved), f"{site.path}: the output does not depend on the input")
        if moved == [2, 3]:
            raise FamilyLimit("the FFN itself looks at the token before")
        require(moved == [2], f"{site.path}: one token's input moves {len(moved)} tokens' outputs")


@contextmanager
def _one_token_changed(model: nn.Module, site: FfnSite, changed: bool) -> Iterator[list[Tensor]]:
    """While open, an FFN's first call sees one token's input scaled; its output is noted."""
    seen: list[Tensor] = []

    def scale(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        name = None if args else next(iter(kwargs))
        x = (args[0] if args else kwargs[name]).clone()
        if changed and not seen:
            x.view(-1, x.shape[-1])[2] *= 1.5
        return ((x, *args[1:]), kwargs) if args else (args, {**kwargs, name: x})

    def note(output: Any) -> None:
        output = output[0] if isinstance(output, tuple) else output
        seen.append(output.reshape(-1, output.shape[-1]).clone())

    entry, last = model.get_submodule(site.entry), model.get_submodule(site.exit)
    handles = [entry.register_forward_pre_hook(scale, with_kwargs=True)]
    if site.before_exit:
        handles.append(last.register_forward_pre_hook(lambda module, args: note(args[0])))
    else:
        handles.append(last.register_forward_hook(lambda module, args, output: note(output)))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def each_layer_equals_the_reference(subject: Subject) -> None:
    """Memory at one site alone changes the logits, and all is as plain forward hooks compute it."""
    model = subject.model
    before = logits(model, subject.input_ids)
    for index in [*range(len(subject.sites)), None]:
        keys, values = subject.memory(only=index)
        with subject.attached(model, keys, values):
            given = logits(model, subject.input_ids)
        with reference_memory(model, subject.sites, keys, values, OUTPUT_SCALE):
            expected = logits(model, subject.input_ids)
        place = "all sites" if index is None else subject.sites[index].path
        require(distance(given, before) > 1e-6, f"memory at {place} does not change the logits")
        require(distance(given, expected) < 1e-4, f"memory at {place}: {distance(given, expected):.1e} off the reference")


@torch.no_grad()
def cached_generation_equals_uncached(subject: Subject) -> None:
    """Greedy search, beams and samples come out the same with and without the KV cache."""
    ways = {
        "greedy": {"do_sample": False},
        "beam": {"do_sample": False, "num_beams": 3, "num_return_sequences": 2},
        "sampled": {"do_sample": True, "num_return_sequences": 2},
    }
    with subject.attached(subject.model, *subject.memory()):
        unlike = {name: _cache_fault(subject, way) for name, way in ways.items()}
    limits = {}
    for name, fault in unlike.items():
        if fault:
            limits[name] = _cache_fault(subject, ways[name])
            require(bool(limits[name]), f"{name} generation with memory: {fault}")
    if limits:
        faults = "; ".join(f"{name}: {fault}" for name, fault in limits.items())
        raise FamilyLimit(f"the untouched model's generation: {faults}")


def _cache_fault(subject: Subject, way: dict[str, Any]) -> str:
    """How cached generation differs from uncached; empty if tokens are equal and logits within 1e-4 at every step."""
    cached, uncached = (generated(subject.model, subject.input_ids, use_cache=use, **way) for use in (True, False))
    for part in (cached, uncached):
        if isinstance(part, str):
            return part[:80]
    if torch.equal(cached[0], uncached[0]) and distance(cached[1], uncached[1]) < 1e-4:
        return ""
    return "cached differs from uncached"


@torch.no_grad()
def rows_follow_their_sample(subject: Subject) -> None:
    """Beams and return sequences of a batch are, sample by sample, those each sample gives alone."""
    way = {"do_sample": False, "num_beams": 3, "num_return_sequences": 2}
    keys, values = subject.memory()
    with subject.attached(subject.model, keys, values):
        together = generated(subject.model, subject.input_ids, **way)
    alone = []
    for row in range(BATCH):
        one = slice(row, row + 1)
        with subject.attached(subject.model, [k[one] for k in keys], [v[one] for v in values]):
            alone.append(generated(subject.model, subject.input_ids[one], **way))
    if _same_rows(together, alone):
        return
    untouched = generated(subject.model, subject.input_ids, **way)
    if _same_rows(untouched, [generated(subject.model, subject.input_ids[i : i + 1], **way) for i in range(BATCH)]):
        raise Broken("beam search over a batch differs from beam search sample by sample")
    fault = untouched[:80] if isinstance(untouched, str) else "depends on the other samples of the batch"
    raise FamilyLimit(f"the untouched model's beam search: {fault}")


def _same_rows(together: Any, alone: list[Any]) -> bool:
    if isinstance(together, str) or any(isinstance(part, str) for part in alone):
        return False
    return torch.equal(together[0], torch.cat([part[0] for part in alone]))


@torch.no_grad()
def left_padding_changes_nothing(subject: Subject) -> None:
    """A left-padded sample gives the logits it gives alone, told its positions or left to find them."""
    keys, values = subject.memory()
    for told in (True, False):
        untouched = attempt(lambda t=told: _padded_logits(subject.model, subject.input_ids, t))
        if not close(untouched, logits(subject.model, subject.input_ids[:1, 3:])[0]):
            continue
        with subject.attached(subject.model, keys, values):
            padded = attempt(lambda t=told: _padded_logits(subject.model, subject.input_ids, t))
        with subject.attached(subject.model, [k[:1] for k in keys], [v[:1] for v in values]):
            alone = logits(subject.model, subject.input_ids[:1, 3:])[0]
        require(close(padded, alone), "left padding changes the logits")
        return
    raise FamilyLimit("left padding changes the untouched model's logits")


def _padded_logits(model: nn.Module, input_ids: Tensor, told: bool) -> Tensor:
    ids, mask = input_ids.clone(), torch.ones_like(input_ids)
    ids[0, :3], mask[0, :3] = 0, 0
    positions = {"position_ids": (mask.cumsum(-1) - 1).clamp(min=0)} if told else {}
    return logits(model, ids, attention_mask=mask, **positions)[0, 3:]
