"""LaVIN in the encoder: a mixture-of-modality adapter before the attention of every block, routed by the class token.

Source: LaVIN, arXiv:2305.15023.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

from torch import nn
from torch.utils.hooks import RemovableHandle

from dehvf_kit import ffn_sites
from dehvf_kit.api import BuildContext, Cost, VisionComponent, VisionError
from dehvf_kit.backbones.vision.tower import CLASS_TOKENS
from dehvf_kit.errors import listing
from dehvf_kit_baselines.attention_hooks import before_attention
from dehvf_kit_baselines.mixture import EXPERTS, MixtureAdapter, MixtureConfig, check_groups, mixture_params

# What a block's attention holds: query, key and value maps, side by side or as one.
MAPS = (("q_proj", "k_proj", "v_proj"), ("query", "key", "value"), ("qkv",))


class MixtureVisionAdapterConfig(MixtureConfig):
    """x + attention(adapter(norm x)) in every vision block, each image routed by its own class token."""

    role: ClassVar[str] = "vision_adapter"
    takes: ClassVar[tuple[str, ...]] = ("tower: layer vision_hidden",)
    attaches: ClassVar[str] = "vision"
    type: Literal["mixture_of_modality"] = "mixture_of_modality"

    def resolve(self, context: BuildContext) -> dict[str, int | None]:
        check_groups(context.size("vision_hidden"), self.width, self.groups)
        return {}

    def num_params(self, context: BuildContext) -> dict[str, int]:
        layers = context.vision.num_layers if context.vision else 0
        return {"adapters": layers * mixture_params(context.size("vision_hidden"), self.width, self.groups)}

    def cost(self, context: BuildContext) -> Cost:
        if context.vision is None:
            return Cost()
        hidden, tokens = context.vision.hidden_size, (context.vision.num_patches or 0) + 1
        maps = self.width * hidden + EXPERTS * self.width * hidden // self.groups
        return Cost(per_image=2 * context.vision.num_layers * tokens * maps)

    def build(self, context: BuildContext) -> MixtureVisionAdapter:
        if context.vision is None:
            raise VisionError("a vision adapter needs a vision encoder to attach to")
        return MixtureVisionAdapter(
            [
                MixtureAdapter(
                    context.vision.hidden_size,
                    width=self.width,
                    groups=self.groups,
                    temperature=self.temperature,
                    scale=self.scale,
                    dropout=self.dropout,
                )
                for _ in range(context.vision.num_layers)
            ]
        )


class MixtureVisionAdapter(VisionComponent):
    """Shapes at each block: [image, token, hidden] -> the same; the class token is the first.

    Cost: 2 * hidden * width * (1 + 2 / groups) FLOPs a token and block.
    """

    def __init__(self, adapters: list[MixtureAdapter]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(adapters)

    def hook(self, tower: nn.Module) -> Iterator[RemovableHandle]:
        """Hook the attention of every block. Raises: VisionError where a block has none that is known, or no class token."""
        if not CLASS_TOKENS & {name.rpartition(".")[2] for name, _ in tower.named_parameters()}:
            raise VisionError(
                f"{type(tower).__name__} has no class token, by which this adapter routes an image; use the type parallel"
            )
        blocks = list(dict.fromkeys(site.layer_path for site in ffn_sites(tower)))
        if len(blocks) != len(self.layers):
            raise VisionError(f"vision adapters built for {len(self.layers)} blocks; the tower has {len(blocks)}")
        modules = [attention_of(tower, path) for path in blocks]
        for module, adapter in zip(modules, self.layers, strict=True):
            change = lambda x, adapter=adapter: adapter(x, adapter.weigh(x[:, 0]))  # noqa: E731
            yield before_attention(module, change)


def attention_of(tower: nn.Module, block_path: str) -> nn.Module:
    """The attention of a vision block: its outermost part that holds query, key and value maps. Raises: VisionError."""
    block = tower.get_submodule(block_path)
    for child in block.children():
        names = {path.rpartition(".")[2] for path, _ in child.named_modules()}
        if any(names.issuperset(maps) for maps in MAPS):
            return child
    looked = " or ".join(", ".join(maps) for maps in MAPS)
    raise VisionError(
        f"{type(tower).__name__}: no attention was found in {block_path}. Looked for: a part of the block that holds {looked}; "
        f"the block holds {listing(name for name, _ in block.named_children())}"
    )
