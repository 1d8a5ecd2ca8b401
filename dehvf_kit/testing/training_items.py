"""Items of the decoder contract about gradients; each function is one item, as in `inference_items`."""

from __future__ import annotations

import inspect

import torch
from torch import Tensor, nn

from dehvf_kit.backbones.ffn.memory_hooks import attach_memory
from dehvf_kit.testing.subject import (
    OUTPUT_SCALE,
    Broken,
    FamilyLimit,
    Subject,
    attempt,
    close,
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
