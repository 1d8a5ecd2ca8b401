"""Why choosing depths per image is worth no more than their mean: five suspected causes removed, one at a time.

    python benchmarks/fuser_causes.py runs/fuser_causes                # seven recipes, two seeds; resumable
    python benchmarks/fuser_causes.py runs/quick --quick               # that it runs

Each row is DEHVF's of `dehvf-kit reproduce table4 --embedded` with one thing changed, trained with the same seeds, steps and
questions. The components below are loaded as a one-file plugin.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from dehvf_kit.api import BuildContext, ComponentConfig, hookimpl
from dehvf_kit.api.shapes import GroupLayers
from dehvf_kit.components.fuser.cross_attention import CrossAttentionFuser, CrossAttentionFuserConfig

FUSER = "hidden_size: 64, num_blocks: 2, num_heads: 4, score: cosine"  # the recipe's; another type would begin with the defaults
CAUSES: dict[str, list[str]] = {
    "DEHVF": [],
    "initial temperature 1/4, learned": [f"graph.fuser={{type: tried, {FUSER}, sharpness: 4}}"],
    "fuser's learning rate / 5": ["training.node_rates={fuser: 0.2, layer_query: 0.2}"],
    "fuser's learning rate x 5": ["training.node_rates={fuser: 5, layer_query: 5}"],
    "entropy term of 0.02": [f"graph.fuser={{type: tried, {FUSER}, entropy: 0.02}}"],
    "class token and mean patch as keys": [
        "graph.both={role: both, type: tokens_and_patches}",
        "graph.grouper.inputs={globals: both}",
    ],
    "one group of all layers": ["graph.grouper.num_groups=1"],
}


class TriedFuserConfig(CrossAttentionFuserConfig):
    """The fuser with a learned factor on its scores, and a term that rewards even weights."""

    type: Literal["tried"] = "tried"  # type: ignore[assignment]
    sharpness: float = Field(1.0, gt=0, description="initial factor on the scores, learned where it is not 1")
    entropy: float = Field(0.0, ge=0, description="added to the loss: less this much of the weights' mean entropy in nats")

    def num_params(self, context: BuildContext) -> dict[str, int]:
        return {**super().num_params(context), **({"sharpness": 1} if self.sharpness != 1 else {})}

    def build(self, context: BuildContext) -> nn.Module:
        return TriedFuser(super().build(context), self.sharpness, self.entropy)


class TriedFuser(nn.Module):
    """Shapes: as `CrossAttentionFuser`'s. softmax(s x) = softmax(x)^s / sum, so the factor s acts on the finished weights."""

    def __init__(self, fuser: CrossAttentionFuser, sharpness: float, entropy: float) -> None:
        super().__init__()
        self.fuser, self.entropy = fuser, entropy
        self.log_sharpness = nn.Parameter(torch.tensor(math.log(sharpness))) if sharpness != 1 else None

    def forward(self, members: Tensor, levels: GroupLayers, queries: Tensor, codes: Any) -> tuple[Tensor, Tensor]:
        weights = self.fuser.weigh(members, levels, queries)
        if self.log_sharpness is not None:
            weights = weights.clamp_min(1e-12) ** self.log_sharpness.exp()
            weights = weights / weights.sum(-1, keepdim=True)
        if self.entropy and weights.requires_grad:
            rows = weights[..., 0].numel()
            logs = weights.detach().clamp_min(1e-12).log()
            weights.register_hook(lambda gradient: gradient + self.entropy * (logs + 1) / rows)  # of the mean of sum(w log w)
        return self.fuser.mix(weights, codes, levels), weights


class TokensAndPatchesConfig(ComponentConfig):
    """Global tokens that are the mean of the class token and of the mean patch, as IGVA's group means hold patches too."""

    role: ClassVar[str] = "both"
    takes: ClassVar[tuple[str, ...]] = ("globals: batch layer vision_hidden", "patches: batch layer patch vision_hidden")
    gives: ClassVar[tuple[str, ...]] = ("globals: batch layer vision_hidden",)
    type: Literal["tokens_and_patches"] = "tokens_and_patches"

    def build(self, context: BuildContext) -> nn.Module:
        return TokensAndPatches()


class TokensAndPatches(nn.Module):
    """Shapes: globals [batch, layer, vision_hidden], patches [batch, layer, patch, vision_hidden] -> as globals. No parameters."""

    def forward(self, globals: Tensor, patches: Tensor) -> Tensor:
        return (globals + patches.mean(2)) / 2


@hookimpl
def register_components(register: Any) -> None:
    register(TriedFuserConfig)
    register(TokensAndPatchesConfig)


def main() -> None:
    from dehvf_kit_baselines.reproduction.embedded import RECIPE, begun_dtype, embedded_recipes

    import dehvf_kit
    from dehvf_kit.recipe.plugin_manager import load_plugin_file
    from dehvf_kit.utils.shipped import HOME

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=240)
    parser.add_argument("--rate", type=float, default=0.05, help="base learning rate, as table 4's tuning found it for DEHVF")
    parser.add_argument("--side-by-side", type=int, default=1, help="runs at a time, each with one thread")
    parser.add_argument("--quick", action="store_true", help="2 steps, one seed, a few scenes")
    options = parser.parse_args()
    load_plugin_file(Path(__file__))
    dtype = begun_dtype(options.folder)
    common = [f"training.max_steps={options.steps}", f"training.base_learning_rate={options.rate}"]
    if options.quick:
        common += ["training.max_steps=2", "data.train_scenes=16", "data.test_scenes=8"]
    recipes = []
    for place, (name, changes) in enumerate(CAUSES.items()):
        named = [f"name={f'cause{place}' if place else 'dehvf'}", f"description={name}"]
        recipes += embedded_recipes(HOME / RECIPE, [*common, *changes, *named], ["DEHVF"], dtype)
    dehvf_kit.compare(
        recipes,
        options.folder,
        seeds=1 if options.quick else options.seeds,
        side_by_side=options.side_by_side,
        threads=1,
        say=print,
    )
    print((options.folder / "comparison.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
