"""What must hold for every decoder that is given memory; each item of the contract is one function here.

Each function takes a `Subject` and raises `Broken` where the kit breaks the item, or `FamilyLimit` where the untouched
model fails the very same check (shown by running it, never by a list of names). All run in seconds on the CPU.
"""

from __future__ import annotations

import copy
import importlib.util
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from dehvf_kit.backbones.ffn_sites import FfnSite, ffn_sites
from dehvf_kit.backbones.memory_hooks import attach_memory
from dehvf_kit.testing.reference import reference_memory
from dehvf_kit.testing.subject import (
    BATCH,
    OUTPUT_SCALE,
    Broken,
    FamilyLimit,
    NotRun,
    Subject,
    attempt,
    close,
    distance,
    generated,
    logits,
    no_cache,
    require,
    without_noise,
)


def _backward(subject: Subject, model: nn.Module) -> Tensor:
    """A pass and its backward pass, without cache; the logits come back."""
    if subject.needs_input_gradients:
        without_noise(model).train().enable_input_require_grads()
    given = logits(model, subject.input_ids, **no_cache(model))
    given.float().square().mean().backward()
    return given


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

    def scale(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
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
        require(
            distance(given, expected) < 1e-4, f"memory at {place}: {distance(given, expected):.1e} off the reference"
        )


def only_memory_gets_gradients(subject: Subject) -> None:
    """Every key and value gets a gradient, no weight of the decoder does."""
    keys, values = subject.memory()
    tensors = [tensor.requires_grad_() for tensor in keys + values]
    model = subject.build()
    with subject.attached(model, keys, values):
        _backward(subject, model)
    require(all(t.grad is not None and bool(t.grad.any()) for t in tensors), "some memory gets no gradient")
    require(all(p.grad is None for p in model.parameters()), "a weight of the decoder gets a gradient")


@torch.no_grad()
def cached_generation_equals_uncached(subject: Subject) -> None:
    """Greedy search, beams and samples come out the same with and without the KV cache."""
    ways = {
        "greedy": {"do_sample": False},
        "beam": {"do_sample": False, "num_beams": 3, "num_return_sequences": 2},
        "sampled": {"do_sample": True, "num_return_sequences": 2},
    }
    with subject.attached(subject.model, *subject.memory()):
        unequal = [name for name, way in ways.items() if not _cached_like_uncached(subject, way)]
    for name in unequal:
        if _cached_like_uncached(subject, ways[name]):
            raise Broken(f"{name} generation with memory differs between cached and uncached")
    if unequal:
        raise FamilyLimit(f"cached {', '.join(unequal)} generation of the untouched model differs from uncached")


def _cached_like_uncached(subject: Subject, way: dict[str, Any]) -> bool:
    """Whether cached and uncached generation give the same tokens, and logits within 1e-4 at every step."""
    cached, uncached = (generated(subject.model, subject.input_ids, use_cache=use, **way) for use in (True, False))
    if isinstance(cached, str) or isinstance(uncached, str):
        return False
    return torch.equal(cached[0], uncached[0]) and distance(cached[1], uncached[1]) < 1e-4


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
    raise FamilyLimit("beam search of the untouched model depends on the other samples of the batch")


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


def checkpointing_and_cache_change_nothing(subject: Subject) -> None:
    """Loss and memory gradients in training: checkpointing of either form, with and without `use_cache`."""
    plain = attempt(lambda: _training_step(subject, None, False, with_memory=True))
    if isinstance(plain, str):
        untouched = attempt(lambda: _training_step(subject, None, False, with_memory=False))
        limit = isinstance(untouched, str)
        raise (FamilyLimit if limit else Broken)(f"training step: {untouched if limit else plain}")
    limits = []
    for form in (None, False, True):
        for use_cache in (False, True):
            given = attempt(lambda f=form, u=use_cache: _training_step(subject, f, u, with_memory=True))
            if close(given, plain):
                continue
            name = f"use_reentrant={form}, use_cache={use_cache}"
            untouched_plain = attempt(lambda: _training_step(subject, None, False, with_memory=False))
            untouched = attempt(lambda f=form, u=use_cache: _training_step(subject, f, u, with_memory=False))
            if close(untouched, untouched_plain):
                raise Broken(f"{name}: {given if isinstance(given, str) else 'another loss or gradient'}")
            reason = untouched[:80] if isinstance(untouched, str) else "another loss or gradient"
            limits.append(f"{name} ({reason})")
    if limits:
        raise FamilyLimit("the untouched model trains otherwise with " + "; ".join(limits))


def _training_step(subject: Subject, reentrant: bool | None, use_cache: bool, with_memory: bool) -> Tensor:
    """Loss and gradients in one vector: the memory's, or, without memory, those of the FFNs' own last weights."""
    model = without_noise(subject.build()).train()
    if reentrant is not None:
        if not getattr(model, "supports_gradient_checkpointing", False):
            raise FamilyLimit("the family has no gradient checkpointing")
        model.activation_checkpointing_enable({"use_reentrant": reentrant})
    if reentrant or subject.needs_input_gradients:
        model.enable_input_require_grads()
    keys, values = subject.memory()
    trained = keys + values
    if not with_memory:
        trained = [weight for site in subject.sites for weight in model.get_submodule(site.exit).parameters()]
    for tensor in trained:
        tensor.requires_grad_()
    kwargs = {"use_cache": use_cache} if "use_cache" in inspect.signature(model.forward).parameters else {}
    handle = attach_memory(model, keys, values, output_scale=OUTPUT_SCALE) if with_memory else None
    loss = logits(model, subject.input_ids, **kwargs).float().square().mean()
    loss.backward()
    if handle is not None:
        handle.detach()
    grads = [torch.zeros_like(t) if t.grad is None else t.grad for t in trained]
    return torch.cat(
        [loss.detach().reshape(1), *(grad.reshape(-1) / grad.abs().max().clamp(min=1e-9) for grad in grads)]
    )


def half_precision_runs(subject: Subject) -> None:
    """In bfloat16, memory in bfloat16 or float32 gives finite logits and gradients."""
    model = attempt(lambda: subject.build().to(torch.bfloat16))
    for dtype in (torch.bfloat16, torch.float32):
        keys, values = ([t.to(dtype).requires_grad_() for t in tensors] for tensors in subject.memory())
        given = attempt(lambda k=keys, v=values: _half_step(subject, model, k, v))
        if isinstance(given, Tensor) and bool(torch.isfinite(given).all()):
            continue
        untouched = attempt(lambda: logits(model, subject.input_ids))
        if isinstance(untouched, str) or not bool(torch.isfinite(untouched).all()):
            raise FamilyLimit(f"the untouched model does not run in bfloat16: {str(untouched)[:80]}")
        raise Broken(f"bfloat16 with {dtype} memory: {given if isinstance(given, str) else 'not finite'}")


def _half_step(subject: Subject, model: nn.Module, keys: list[Tensor], values: list[Tensor]) -> Tensor:
    with subject.attached(model, keys, values):
        given = _backward(subject, model)
    return torch.cat([given.detach().float().reshape(-1), *(t.grad.float().reshape(-1) for t in keys + values)])


@torch.no_grad()
def detach_restores_the_model(subject: Subject) -> None:
    """After detach: bit-identical logits, the same modules, no hook left; while attached: the same state dict."""
    model = subject.build()
    before, modules, weights = logits(model, subject.input_ids), _hooks(model), list(model.state_dict())
    handle = attach_memory(model, *subject.memory(), output_scale=OUTPUT_SCALE)
    logits(model, subject.input_ids)
    require(list(model.state_dict()) == weights, "attached memory changes the state dict")
    handle.detach()
    require(_hooks(model) == modules, "detach leaves hooks or other modules behind")
    require(torch.equal(logits(model, subject.input_ids), before), "detach does not restore the logits")


def _hooks(model: nn.Module) -> list[tuple[str, int, int, int]]:
    named = model.named_modules(remove_duplicate=False)
    return [(name, id(m), len(m._forward_hooks), len(m._forward_pre_hooks)) for name, m in named]


@torch.no_grad()
def deepcopy_keeps_the_memory(subject: Subject) -> None:
    """A deep copy of a decoder with memory computes the same."""
    model = subject.build()
    with subject.attached(model, *subject.memory()):
        twin = attempt(lambda: copy.deepcopy(model))
        if isinstance(twin, str):
            untouched = attempt(lambda: copy.deepcopy(subject.model))
            raise (FamilyLimit if isinstance(untouched, str) else Broken)(f"deepcopy: {twin}")
        same = torch.equal(logits(twin, subject.input_ids), logits(model, subject.input_ids))
    require(same, "a deep copy computes other logits")


@torch.no_grad()
def compiles(subject: Subject) -> None:
    """torch.compile gives the same logits, in one graph where the untouched model compiles to one."""
    model = subject.build()
    keys, values = subject.memory()
    with subject.attached(model, keys, values):
        expected = logits(model, subject.input_ids, **no_cache(model))
        whole = attempt(lambda: _compiled_logits(model, subject.input_ids, fullgraph=True))
        if close(whole, expected):
            return
        parts = attempt(lambda: _compiled_logits(model, subject.input_ids, fullgraph=False))
    untouched = attempt(lambda: _compiled_logits(subject.model, subject.input_ids, fullgraph=True))
    if isinstance(untouched, Tensor):
        raise Broken(f"with memory the decoder no longer compiles to one graph: {str(whole)[:200]}")
    if close(parts, expected):
        return
    untouched = attempt(lambda: _compiled_logits(subject.model, subject.input_ids, fullgraph=False))
    plain = logits(subject.model, subject.input_ids, **no_cache(subject.model))
    if close(untouched, plain):
        raise Broken(f"torch.compile: {parts if isinstance(parts, str) else 'other logits'}")
    raise FamilyLimit("torch.compile fails on the untouched model")


def _compiled_logits(model: nn.Module, input_ids: Tensor, fullgraph: bool) -> Tensor:
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager", fullgraph=fullgraph, dynamic=False)
    return logits(compiled, input_ids, **no_cache(model))


def quantised_base_equals_the_reference(subject: Subject) -> None:
    """On a base in 8 bit and in 4 bit the sites are the same, and memory is what plain forward hooks compute."""
    if importlib.util.find_spec("bitsandbytes") is None:
        raise NotRun("bitsandbytes is not installed")
    for bits in (8, 4):
        model = attempt(lambda b=bits: quantised(subject.build(), b))
        untouched = model if isinstance(model, str) else attempt(lambda m=model: logits(m, subject.input_ids))
        if isinstance(untouched, str):
            raise FamilyLimit(f"the untouched model does not run in {bits} bit: {untouched[:80]}")
        paths = [site.path for site in ffn_sites(model)]
        require(paths == [site.path for site in subject.sites], f"{bits} bit: other sites are found")
        keys, values = subject.memory()
        with torch.no_grad(), reference_memory(model, subject.sites, keys, values, OUTPUT_SCALE):
            expected = logits(model, subject.input_ids)
        with torch.no_grad(), subject.attached(model, keys, values):
            given = logits(model, subject.input_ids)
        require(distance(given, expected) < 1e-3, f"{bits} bit: {distance(given, expected):.1e} off the reference")


def quantised(model: nn.Module, bits: int) -> nn.Module:
    """A model on the CPU with every plain linear layer but the output head in 8 or 4 bit, by bitsandbytes."""
    import bitsandbytes

    head = model.get_output_embeddings()
    for parent in list(model.modules()):
        for name, linear in list(parent.named_children()):
            if type(linear) is not nn.Linear or linear is head:
                continue
            sizes = (linear.in_features, linear.out_features, linear.bias is not None)
            if bits == 8:
                other = bitsandbytes.nn.Linear8bitLt(*sizes, has_fp16_weights=False)
                other.weight = bitsandbytes.nn.Int8Params(linear.weight.data, requires_grad=False)
            else:
                other = bitsandbytes.nn.Linear4bit(*sizes, compute_dtype=torch.float32, quant_type="nf4")
                other.weight = bitsandbytes.nn.Params4bit(linear.weight.data, requires_grad=False, quant_type="nf4")
            other.bias = linear.bias
            setattr(parent, name, other)
    return model.to("cpu")


# Name of an item -> its check, in the order they are run and reported.
CONTRACT: dict[str, Callable[[Subject], None]] = {
    "zero memory": zero_memory_changes_nothing,
    "token by token": sites_are_token_by_token,
    "each layer": each_layer_equals_the_reference,
    "gradients": only_memory_gets_gradients,
    "generation": cached_generation_equals_uncached,
    "rows": rows_follow_their_sample,
    "left padding": left_padding_changes_nothing,
    "checkpointing": checkpointing_and_cache_change_nothing,
    "bfloat16": half_precision_runs,
    "detach": detach_restores_the_model,
    "deepcopy": deepcopy_keeps_the_memory,
    "compile": compiles,
    "8 and 4 bit": quantised_base_equals_the_reference,
}
