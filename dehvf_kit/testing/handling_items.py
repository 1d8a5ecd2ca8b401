"""Items of the decoder contract about what is done to a model: train, detach, copy, save, compile, quantise."""

from __future__ import annotations

import copy
import importlib.util
import inspect
import tempfile
from typing import Any

import torch
from torch import Tensor, nn

from dehvf_kit.backbones.attached import import_bitsandbytes
from dehvf_kit.backbones.ffn.memory_hooks import attach_memory
from dehvf_kit.backbones.ffn.sites import ffn_sites
from dehvf_kit.testing.reference import reference_memory
from dehvf_kit.testing.subject import (
    OUTPUT_SCALE,
    Broken,
    FamilyLimit,
    NotRun,
    Subject,
    attempt,
    close,
    distance,
    logits,
    no_cache,
    require,
    without_noise,
)


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
def saved_while_attached_loads_untouched(subject: Subject) -> None:
    """A decoder saved while memory is attached loads as the untouched decoder: bit-identical logits."""
    model = subject.build()
    with subject.attached(model, *subject.memory()):
        loaded = attempt(lambda: _saved_and_loaded(model))
    before = logits(subject.model, subject.input_ids)
    if isinstance(loaded, nn.Module) and torch.equal(logits(loaded, subject.input_ids), before):
        return
    untouched = attempt(lambda: _saved_and_loaded(subject.build()))
    if isinstance(untouched, nn.Module) and torch.equal(logits(untouched, subject.input_ids), before):
        raise Broken(f"save and load: {loaded if isinstance(loaded, str) else 'other logits'}")
    fault = untouched[:80] if isinstance(untouched, str) else "other logits"
    raise FamilyLimit(f"save and load of the untouched model: {fault}")


def _saved_and_loaded(model: nn.Module) -> nn.Module:
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return type(model).from_pretrained(folder).eval()


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
    bitsandbytes: Any = import_bitsandbytes()
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


def _backward(subject: Subject, model: nn.Module) -> Tensor:
    """A pass and its backward pass, without cache; the logits come back."""
    if subject.needs_input_gradients:
        without_noise(model).train().enable_input_require_grads()
    given = logits(model, subject.input_ids, **no_cache(model))
    given.float().square().mean().backward()
    return given


def only_memory_gets_gradients(subject: Subject) -> None:
    """Every key and value gets a gradient, no weight of the decoder does."""
    keys, values = subject.memory()
    tensors = [tensor.requires_grad_() for tensor in keys + values]
    model = subject.build()
    with subject.attached(model, keys, values):
        _backward(subject, model)
    require(all(t.grad is not None and bool(t.grad.any()) for t in tensors), "some memory gets no gradient")
    require(all(p.grad is None for p in model.parameters()), "a weight of the decoder gets a gradient")


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
    return torch.cat([loss.detach().reshape(1), *(grad.reshape(-1) / grad.abs().max().clamp(min=1e-9) for grad in grads)])


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
