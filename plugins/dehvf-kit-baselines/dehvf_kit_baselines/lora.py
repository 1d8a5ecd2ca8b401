"""LoRA on the decoder's attention, placed and taken away by peft.

Source: arXiv:2106.09685; peft's `LoraModel`. As LLaVA-LoRA is reported beside MemVP: 4.4M parameters at 7B, which rank 6 on
the query and value projections makes (our inference: rank 4 on three of them makes as many).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, ClassVar, Literal

from pydantic import Field
from torch import nn

from dehvf_kit.api import BuildContext, ComponentConfig, Cost, DecoderComponent, DecoderError
from dehvf_kit.backbones.decoder import attention_sites
from dehvf_kit_baselines.llama_attention import needs_llama_attention

NAME = "dehvf"  # of the adapter inside peft's layers
Target = Literal["q_proj", "k_proj", "v_proj", "o_proj"]


class LoraConfig(ComponentConfig):
    """W x + alpha / rank * B A x on the named projections of every layer's attention, through peft; B starts at zero."""

    role: ClassVar[str] = "decoder_adapter"
    attaches: ClassVar[str] = "decoder"
    strength: ClassVar[str] = "alpha"
    type: Literal["lora"] = "lora"
    rank: int = Field(6, ge=1, description="width of A's output")
    alpha: float = Field(12.0, gt=0, description="the update is scaled by alpha / rank (choice: twice the rank)")
    targets: tuple[Target, ...] = Field(("q_proj", "v_proj"), min_length=1, description="projections of the attention")

    def resolve(self, context: BuildContext) -> dict[str, int | None]:
        needs_llama_attention(context.decoder)
        return {}

    def num_params(self, context: BuildContext) -> dict[str, int]:
        sizes = projection_sizes(context)
        return {name: context.decoder.num_layers * self.rank * sum(sizes[name]) for name in self.targets}

    def cost(self, context: BuildContext) -> Cost:
        return Cost(per_token=2 * sum(self.num_params(context).values()))

    def build(self, context: BuildContext) -> Lora:
        sizes = projection_sizes(context)
        return Lora(context.decoder.num_layers, {name: sizes[name] for name in self.targets}, self.rank, self.alpha)


def projection_sizes(context: BuildContext) -> dict[str, tuple[int, int]]:
    """(in, out) of each projection."""
    spec = context.decoder
    hidden, heads = spec.hidden_size, spec.num_heads * spec.head_dim
    shared = spec.num_key_value_heads * spec.head_dim
    return {"q_proj": (hidden, heads), "k_proj": (hidden, shared), "v_proj": (hidden, shared), "o_proj": (heads, hidden)}


class Lora(DecoderComponent):
    """Its weights are `down.<projection>.<layer>.weight` [rank, in] and `up....weight` [out, rank]; peft's layers use them.

    While attached, peft's layers stand in the decoder in place of the projections; `detach()` puts the very same
    projections back. Cost: 2 * rank * (in + out) FLOPs a token, projection and layer.
    """

    def __init__(self, num_layers: int, sizes: dict[str, tuple[int, int]], rank: int = 6, alpha: float = 12.0) -> None:
        super().__init__()
        self.num_layers, self.rank, self.alpha, self.targets = num_layers, rank, alpha, tuple(sizes)
        self.down, self.up = nn.ModuleDict(), nn.ModuleDict()
        for name, (width_in, width_out) in sizes.items():
            self.down[name] = nn.ModuleList(nn.Linear(width_in, rank, bias=False) for _ in range(num_layers))
            self.up[name] = nn.ModuleList(nn.Linear(rank, width_out, bias=False) for _ in range(num_layers))
            for linear in self.down[name]:
                nn.init.kaiming_uniform_(linear.weight, a=math.sqrt(5))
            for linear in self.up[name]:
                nn.init.zeros_(linear.weight)

    def hook(self, decoder: nn.Module) -> Iterator[Any]:
        """Let peft place its layers, and these weights in them. Raises: DecoderError for a decoder not of LLaMA's kind."""
        import peft

        sites = attention_sites(decoder)
        if len(sites) != self.num_layers:
            raise DecoderError(f"LoRA built for {self.num_layers} layers; the decoder has {len(sites)}")
        places = {f"{site.path}.{name}": (name, index) for index, site in enumerate(sites) for name in self.targets}
        trained = [parameter for parameter in decoder.parameters() if parameter.requires_grad]
        config = peft.LoraConfig(r=self.rank, lora_alpha=self.alpha, target_modules=list(places), lora_dropout=0.0)
        tuner = peft.LoraModel(decoder, config, NAME, low_cpu_mem_usage=True)
        yield SimpleNamespace(remove=tuner.unload)
        for path, (name, index) in places.items():
            layer = decoder.get_submodule(path)
            layer.lora_A[NAME], layer.lora_B[NAME] = self.down[name][index], self.up[name][index]
        for parameter in (*self.parameters(), *trained):
            parameter.requires_grad_(True)
