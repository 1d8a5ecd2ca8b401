"""Items of the decoder contract about what is added between the layers and at their linear maps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from dehvf_kit.backbones.ffn.memory_hooks import FfnHooks
from dehvf_kit.backbones.layer_hooks import hook_layers, layer_sites
from dehvf_kit.backbones.map_hooks import hook_maps, low_rank, map_sites
from dehvf_kit.errors import DecoderError
from dehvf_kit.testing.subject import BATCH, FamilyLimit, Subject, distance, generated, logits, require

Hook = Callable[[Callable[[int, Tensor], Tensor | None]], FfnHooks]


@torch.no_grad()
def layers_take_what_is_added(subject: Subject) -> None:
    """Between layers: zero is bit-identical, each layer counts, states are [rows, tokens, hidden]; cached as uncached."""
    try:
        sites = layer_sites(subject.model)
    except DecoderError as refused:
        raise FamilyLimit(str(refused)) from refused
    for where in ("before", "after"):
        draws = _draws([site.hidden_size for site in sites])

        def added(index: int, x: Tensor, draws: list[Tensor] = draws) -> Tensor:
            return draws[index].repeat_interleave(x.shape[0] // BATCH, 0).to(x).expand_as(x)

        def hook(delta: Callable[[int, Tensor], Tensor | None], where: Any = where) -> FfnHooks:
            return hook_layers(subject.model, sites, where, delta)

        before = logits(subject.model, subject.input_ids)
        seen = _shapes(subject, hook, added, where, before)
        for index, site in enumerate(sites):
            shape = seen.get(index)
            require(shape == {tuple(subject.input_ids.shape)}, f"{where} {site.path}: rows and tokens are {shape}")
            with hook(_only(index, added)):
                moved = distance(logits(subject.model, subject.input_ids), before)
            require(moved > 1e-6, f"what is added {where} {site.path} does not change the logits")
        _check_generation(subject, hook, added, where, before)


@torch.no_grad()
def maps_take_what_is_added(subject: Subject) -> None:
    """Linear maps: zero is bit-identical, each map's low-rank delta a row counts, a scale of one does not; cached as uncached."""
    try:
        sites = map_sites(subject.model)
    except DecoderError as refused:
        raise FamilyLimit(str(refused)) from refused
    generator = torch.Generator().manual_seed(9)
    shapes = [((BATCH, site.in_features, 2), (site.out_features, 2)) for site in sites]
    factors = [[0.2 * torch.randn(shape, generator=generator) for shape in both] for both in shapes]

    def added(index: int, x: Tensor) -> Tensor:
        return low_rank(x, *factors[index])

    model, ids = subject.model, subject.input_ids
    before = logits(model, ids)
    with hook_maps(model, sites, scale=lambda index: torch.ones(sites[index].in_features)):
        require(torch.equal(logits(model, ids), before), "a scale of one changes the logits")
    seen = _shapes(subject, lambda delta: hook_maps(model, sites, delta), added, "at", before)
    bypassed = [site.role for index, site in enumerate(sites) if index not in seen and _counts(subject, site.path, before)]
    if bypassed:
        raise FamilyLimit(f"weights are read without calling their module: {', '.join(sorted(set(bypassed)))}")
    if strange := [site.path for index, site in enumerate(sites) if any(shape[0] != BATCH for shape in seen.get(index, ()))]:
        raise FamilyLimit(f"{strange[0]} does not see the text's rows: {seen}")
    for index in seen:
        with hook_maps(model, sites, _only(index, added)):
            moved = distance(logits(model, ids), before)
        path = sites[index].path
        require(moved > 0 or not _counts(subject, path, before), f"what is added at {path} does not change the logits")
    _check_generation(subject, lambda delta: hook_maps(model, sites, delta), added, "at", before)


def _counts(subject: Subject, path: str, before: Tensor) -> bool:
    """Whether the logits depend on a map's weight (an indexer's do not, nor cross-attention's without an encoder)."""
    weight = subject.model.get_parameter(f"{path}.weight")
    kept = weight.clone()
    weight.copy_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)))
    moved = distance(logits(subject.model, subject.input_ids), before)
    weight.copy_(kept)
    return moved > 1e-6


def _only(index: int, added: Callable[[int, Tensor], Tensor]) -> Callable[[int, Tensor], Tensor | None]:
    return lambda at, x: added(at, x) if at == index else None


def _draws(widths: Sequence[int]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(9)
    return [torch.randn(BATCH, 1, width, generator=generator) for width in widths]


def _shapes(
    subject: Subject, hook: Hook, added: Callable[[int, Tensor], Tensor], where: str, before: Tensor
) -> dict[int, set[tuple[int, ...]]]:
    """Rows and tokens that each site saw while zero was added. Raises: Broken where that changes a bit of the logits."""
    shapes: dict[int, set[tuple[int, ...]]] = {}

    def zero(index: int, x: Tensor) -> Tensor:
        shapes.setdefault(index, set()).add(tuple(x.shape[:-1]))
        return torch.zeros_like(added(index, x))

    with hook(zero):
        require(torch.equal(logits(subject.model, subject.input_ids), before), f"zero {where} the layers changes the logits")
    return shapes


def _check_generation(subject: Subject, hook: Hook, added: Callable[[int, Tensor], Tensor], where: str, before: Tensor) -> None:
    """Cached and uncached generation agree, a row depends on its own addition alone, and removed hooks leave nothing."""
    model, ids = subject.model, subject.input_ids
    with hook(added):
        both = logits(model, ids)
        ways = [generated(model, ids, use_cache=use, do_sample=False) for use in (True, False)]
    with hook(lambda at, x: torch.cat([added(at, x)[:1], torch.zeros_like(added(at, x)[1:])])):
        alone = logits(model, ids)
    require(torch.equal(logits(model, ids), before), "hooks removed, the logits are others")
    if not _alike(ways) and _alike([generated(model, ids, use_cache=use, do_sample=False) for use in (True, False)]):
        require(False, f"generation with something added {where} the layers: cached differs from uncached")
    require(distance(alone[0], both[0]) < 1e-3, "a row depends on what is added to the other")


def _alike(ways: list[Any]) -> bool:
    if any(isinstance(way, str) for way in ways):
        return False
    return torch.equal(ways[0][0], ways[1][0]) and distance(ways[0][1], ways[1][1]) < 1e-3
