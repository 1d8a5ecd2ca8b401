"""Runs the kit's vision contract on timm's vision transformers, tiny and random: nothing is downloaded.

python -m dehvf_kit_timm.check                        # every name of the four modules, five to ten minutes
python -m dehvf_kit_timm.check vit_base_patch16_224   # some names
"""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable, Sequence

import timm
import torch
from torch import Tensor, nn

from dehvf_kit.errors import DehvfError
from dehvf_kit.testing.vision_contract import VisionSubject, run_vision_contract
from dehvf_kit_timm.vision import FAMILIES, TimmVisionConfig

GRID = 6
TINY = {"embed_dim": 64, "num_heads": 4, "depth": 2}
# Tried in turn: as it is, a gated FFN whose width must divide, key/value heads listed a block, two kinds of heads, two
# blocks alone, and full size.
FURTHER: tuple[dict[str, int], ...] = (
    TINY,
    {**TINY, "mlp_ratio": 4},
    {**TINY, "num_kv_heads": 2},
    {"embed_dim": 64, "depth": 2, "num_heads_inner": 2, "num_heads_outer": 4, "inner_dim": 24},
    {"depth": 2},
    {},
)


def family_names() -> list[str]:
    """Every architecture of timm's vision_transformer, eva, deit and beit modules."""
    return [name for family in FAMILIES for name in timm.list_models(module=family)]


@functools.cache
def shrunk(name: str) -> TimmVisionConfig:
    """A config of an architecture with 2 blocks 64 wide, patches as they are, and a grid of 6 x 6."""
    side = TimmVisionConfig(model=name).meta({}).config.patch_size[0]
    for further in FURTHER:
        config = TimmVisionConfig(model=name, image={"size": GRID * side}, settings=dict(further))
        with contextlib.suppress(DehvfError):
            config.meta({})
            break
    return config  # the last one where none can be built; then `create` says why


def tiny(name: str, seed: int = 0) -> nn.Module:
    """A random model of `shrunk`, in evaluation mode."""
    config = shrunk(name)
    torch.manual_seed(seed)
    model = config.create()
    with torch.no_grad():
        for path, weight in model.named_parameters():
            if weight.ndim > 1:
                weight.normal_(std=0.1)
            elif "gamma" in path or ".ls" in path:
                weight.fill_(0.5)
            elif not bool(weight.any()):
                weight.normal_(std=0.02)
    return model.eval()


def faults(name: str) -> list[str]:
    """What does not hold for an architecture: items of the contract, its full size, and timm's own intermediates."""
    try:
        spec = TimmVisionConfig(model=name).spec({})
        subject = VisionSubject(lambda: tiny(name))
        found = [str(item) for item in run_vision_contract(subject.make) if item.status == "broken"]
        off = off_timm(subject)
    except Exception as error:  # noqa: BLE001 - the report says which
        return [f"{type(error).__name__}: {str(error)[:200]}"]
    if spec.num_layers < 2 or spec.hidden_size < 64 or not spec.num_patches:
        found.append(f"its spec is {spec}")
    if off is not None and off > 1e-6:  # worst measured: 0.0, over 26 names drawn at random
        found.append(f"patches are {off:.1e} off timm's own intermediates")
    return found


@torch.no_grad()
def off_timm(subject: VisionSubject) -> float | None:
    """The largest difference between a tower's patches and timm's `forward_intermediates`; None where it refuses."""
    tower = subject.build(apply_post_norm=False)
    ours = tower(subject.pixels)[:, :, 1:]
    try:
        own: list[Tensor] = tower.model.forward_intermediates(subject.pixels, output_fmt="NLC", intermediates_only=True, norm=False)
    except (AttributeError, AssertionError, TypeError, NotImplementedError):
        return None
    return float((ours - torch.stack(own, dim=1)).abs().max())


def check(names: Sequence[str], on_name: Callable[[str, list[str]], None] | None = None) -> dict[str, list[str]]:
    """The faults of each name; empty where all holds."""
    results = {}
    for name in names:
        results[name] = faults(name)
        if on_name is not None:
            on_name(name, results[name])
    return results


def verdicts(on_module: Callable[[str], None] | None = None) -> list[tuple[str, str, str]]:
    """Of each module of timm, its smallest network by name: (module, name, what keeps it from being an encoder of the kit)."""
    found = []
    for module in timm.list_modules():
        names = sorted(timm.list_models(module=module), key=lambda name: (len(name), name))[:3]
        if names:
            name = min(names, key=_size)
            found.append((module, name, _first("; ".join(faults(name)))))
            if on_module is not None:
                on_module(" ".join(found[-1]))
    return found


def _size(name: str) -> int:
    with torch.device("meta"):
        return sum(weight.numel() for weight in timm.create_model(name).parameters())


def _first(reason: str) -> str:
    """A reason without what would do instead, and without the error's class."""
    for end in ("; take a model of", "; the kit reads", "; mix patches", " Looked for:", ". Memory can"):
        reason = reason.partition(end)[0]
    return reason.partition("Error: ")[2] or reason


def main(names: Sequence[str]) -> int:
    """The command: a line a name, then the count. Returns 1 if something does not hold."""
    torch.set_num_threads(1)
    results = check(names or family_names(), lambda name, broken: print(f"{name}: {'; '.join(broken) or 'pass'}", flush=True))
    passed = sum(not broken for broken in results.values())
    print(f"{passed} of {len(results)} pass (timm {timm.__version__})")
    return 0 if passed == len(results) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
