"""AdaptFormer's adapter in a vision encoder: beside each block's feed-forward network, on what enters its norm or leaves it.

Source: AdaptFormer, arXiv:2205.13535 (ShoufaChen/AdaptFormer 6967d67), which reads before the norm; the kit's `parallel` reads
after it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from dehvf_kit.api import BuildContext, ComponentConfig, Cost, VisionComponent, VisionError
from dehvf_kit.api.components import Removable
from dehvf_kit.backbones.ffn.memory_hooks import hook_ffns
from dehvf_kit.backbones.ffn.sites import ffn_sites


class AdaptFormerConfig(ComponentConfig):
    """y = FFN(LN x) + scale * (B ReLU(A x + a) + b) in every vision block, B, a and b zero at the start."""

    role: ClassVar[str] = "vision_adapter"
    takes: ClassVar[tuple[str, ...]] = ("tower: layer vision_hidden",)
    attaches: ClassVar[str] = "vision"
    type: Literal["adaptformer"] = "adaptformer"
    bottleneck_size: int = Field(64, ge=1, description="width of A's output")
    scale: float = Field(0.1, gt=0, description="scale of the adapter's output")
    dropout: float = Field(0.1, ge=0, lt=1, description="dropout inside the adapter, in training")
    input: Literal["before_norm", "after_norm"] = Field(
        "before_norm", description="what it reads: x, or the norm of x as the FFN does"
    )

    def num_params(self, context: BuildContext) -> dict[str, int]:
        layers, width = (context.vision.num_layers, context.vision.hidden_size) if context.vision else (0, 0)
        return {"maps": layers * 2 * width * self.bottleneck_size, "biases": layers * (width + self.bottleneck_size)}

    def cost(self, context: BuildContext) -> Cost:
        tokens = (context.vision.num_patches or 0) + 1 if context.vision else 0
        return Cost(per_image=2 * tokens * self.num_params(context)["maps"])

    def build(self, context: BuildContext) -> AdaptFormer:
        if context.vision is None:
            raise VisionError("a vision adapter needs a vision encoder to attach to")
        sizes = context.vision.num_layers, context.vision.hidden_size, self.bottleneck_size
        return AdaptFormer(*sizes, self.scale, self.dropout, self.input == "before_norm")


class AdaptFormer(VisionComponent):
    """One A [code, hidden] (Kaiming-uniform), B [hidden, code] and their biases a block: 4 * hidden * code FLOPs a token."""

    def __init__(self, layers: int, width: int, code: int, scale: float, dropout: float, before: bool) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.empty(layers, code, width))
        for matrix in self.down.data.unbind(0):
            nn.init.kaiming_uniform_(matrix, a=5**0.5)
        self.up = nn.Parameter(torch.zeros(layers, width, code))
        self.down_bias, self.up_bias = nn.Parameter(torch.zeros(layers, code)), nn.Parameter(torch.zeros(layers, width))
        self.scale, self.dropout, self.before = scale, dropout, before
        self._normed: dict[int, list[tuple[Tensor, Tensor]]] = {}

    def hook(self, tower: nn.Module) -> Iterator[Removable]:
        """Hook the FFN of every block, and its norms. Raises: VisionError if the blocks are not the ones it was built for."""
        sites = ffn_sites(tower)
        if [site.hidden_size for site in sites] != [self.down.shape[-1]] * len(self.down):
            raise VisionError(
                f"vision adapters built for {len(self.down)} blocks; the tower has {len(sites)} of them or other widths"
            )
        for index, site in enumerate(sites if self.before else ()):
            for module in tower.get_submodule(site.layer_path).modules():
                if "norm" in type(module).__name__.lower():
                    yield module.register_forward_hook(lambda module, args, output, index=index: self._note(index, args, output))
        yield hook_ffns(tower, sites, self._delta)

    def _note(self, index: int, args: tuple[Any, ...], output: Tensor) -> None:
        self._normed.setdefault(index, []).append((args[0], output))

    def _delta(self, index: int, x: Tensor) -> Tensor:
        if self.before:
            noted = self._normed.pop(index, [])
            found = [before for before, after in noted if after.data_ptr() == x.data_ptr() and before.shape == x.shape]
            if not found:
                raise VisionError(
                    f"block {index}: its feed-forward network reads no norm's output; set vision_adapter.input=after_norm"
                )
            x = found[-1]
        inner = F.relu(F.linear(x, self.down[index].to(x), self.down_bias[index].to(x)))
        inner = F.dropout(inner, self.dropout, self.training)
        return self.scale * F.linear(inner, self.up[index].to(x), self.up_bias[index].to(x))
