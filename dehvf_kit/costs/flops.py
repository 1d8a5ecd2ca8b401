"""FLOPs of components, decoders, vision encoders and whole batches; all FLOPs of the kit are counted here.

A multiply-add is two. Matrix products are counted, nothing else (no norms, activations, rotations or biases), and
attention over the whole square of tokens, not the causal half: the conventions of `torch.utils.flop_counter`. Two ways
lead to the same whole numbers, which the tests compare: by formula from configs and weight shapes (`count_flops`), and by
torch's counter watching a run (`counted_flops`), on the meta device (the planner) or with numbers (`batch_flops`).

For T tokens a transformer with matrix weights W (embedding tables excluded), A attention layers and attention width
a = heads * head width costs 2 * W * T + 4 * A * a * T^2. Of a mixture of experts, the share of the experts that a token
visits is counted. State-space and linear-attention layers count by their weights alone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import BaseTorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

from dehvf_kit.api.shapes import Cost
from dehvf_kit.backbones.base import config_size, config_value, head_sizes, text_config, vision_config
from dehvf_kit.backbones.vision.tower import VisionTower
from dehvf_kit.data.encoding import Collator, EncodedSamples
from dehvf_kit.data.images import open_image
from dehvf_kit.errors import VisionError
from dehvf_kit.model.model import DehvfModel
from dehvf_kit.model.run import to_device
from dehvf_kit.recipe.graph import Graph
from dehvf_kit.utils.units import ratio, si

EXPERT_COUNTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
FORMULA_FIELDS = ("hidden_size", "num_attention_heads", "num_hidden_layers")
EXPERTS_A_TOKEN = ("num_experts_per_tok", "num_experts_per_token", "moe_k", "top_k_experts", "moe_topk")


def _grouped_mm(one: Sequence[int], other: Sequence[int], *_: Any, **__: Any) -> int:
    return 2 * prod(one[-2:]) * other[-1] * (one[0] if len(one) == len(other) == 3 else 1)


class _WholeRun(contextlib.nullcontext[None]):
    """Takes the place of the tracker of modules: one sum, of everything."""

    parents = ("Global",)


@contextlib.contextmanager
def counted_flops() -> Iterator[FlopCounterMode]:
    """FLOPs inside the block as torch counts them, attention written out so that every product is seen; experts' products too."""
    spaces = ((torch.ops.aten, "_grouped_mm"), (torch.ops.transformers, "grouped_mm_fallback"))
    experts = {getattr(space, name): _grouped_mm for space, name in spaces if hasattr(space, name)}
    counter = FlopCounterMode(display=False, custom_mapping=experts)
    counter.mod_tracker = _WholeRun()  # torch 2.14.1's fails under no_grad where a module takes a view of a parameter
    with sdpa_kernel(SDPBackend.MATH), counter:
        yield counter


@dataclass(frozen=True, kw_only=True)
class TransformerFlops:
    """What a transformer costs.

    weights: matrix weights that a token passes, without the output head's `head`; attention_width: heads * head width, summed
    over the layers that have attention.
    """

    weights: int
    head: int
    attention_width: int

    def forward(self, tokens: int, logits: int | None = None) -> int:
        """One pass over `tokens` tokens with logits for `logits` of them (None: all)."""
        attention = 4 * self.attention_width * tokens**2
        return 2 * self.weights * tokens + 2 * self.head * (tokens if logits is None else logits) + attention

    @property
    def per_token(self) -> int:
        """One token, without its attention to others."""
        return 2 * (self.weights + self.head)


@dataclass(frozen=True, kw_only=True)
class SampleFlops:
    """FLOPs per sample of `tokens` text tokens through the decoder, without the vision encoders.

    Attributes:
        text: without an image.
        memory: with the image in memory, or in the input where a component puts it there, components included.
        prepended: with the image's patches before the text, as LLaVA does (no projector counted, logits for the text
            alone); None where their number varies.
    """

    tokens: int
    text: int
    memory: int
    prepended: int | None

    def cells(self) -> list[str]:
        """A row of figures: text tokens, text alone, with memory and its ratio to that, with patches and their ratio."""
        cells = [str(self.tokens), si(self.text, "")]
        for count in (self.memory, self.prepended):
            cells += ["-", "-"] if count is None else [si(count, ""), ratio(count, self.text)]
        return cells


@dataclass(frozen=True)
class FlopCount:
    """Forward FLOPs of a recipe.

    Attributes:
        vision: FLOPs per image of each encoder that is read; None where they are not known.
        components: FLOPs of each component per step, per image and per text token.
        decoder_per_token: the decoder's own, without its attention.
        samples: FLOPs per sample at several text lengths.
    """

    vision: Mapping[str, int | None]
    components: Mapping[str, Cost]
    decoder_per_token: int
    samples: tuple[SampleFlops, ...]

    def rows(self) -> list[tuple[str, str, str]]:
        """Every figure but `samples` as (what, FLOPs, their unit)."""
        rows: list[tuple[str, int | None, str]] = [(name, count, "per image") for name, count in self.vision.items()]
        for name, cost in self.components.items():
            counts = (cost.per_step, "per step"), (cost.per_image, "per image"), (cost.per_token, "per text token")
            rows += [(name, count, unit) for count, unit in counts if count]
        rows.append(("decoder", self.decoder_per_token, "per text token, without its attention"))
        return [(name, "not known" if count is None else si(count, "FLOP"), unit) for name, count, unit in rows]


@dataclass(frozen=True)
class BatchFlops:
    """FLOPs of a real batch. forward: per question, without its encoder; encoder: per image; train_step: per batch forward
    and backward, with the encoder where it runs at every step."""

    forward: int
    encoder: int
    train_step: int


def count_flops(
    graph: Graph, decoder: nn.Module, towers: Mapping[str, VisionTower], lengths: tuple[int, ...] = (64, 128)
) -> FlopCount:
    """Count a checked graph by formula.

    Args:
        graph: the recipe's graph.
        decoder: its decoder, which may be on the meta device, as the towers may.
        towers: its vision encoders by name.
        lengths: numbers of text tokens to count `samples` at.
    """
    components = component_costs(graph)
    counted = decoder_flops(decoder)
    outside = [cost for name, cost in components.items() if graph.nodes[name].config.attaches != "vision"]
    fixed = sum(cost.per_step + cost.per_image for cost in outside)
    per_token = sum(cost.per_token for cost in outside)
    inserted = sum(graph.nodes[name].config.input_tokens(graph.contexts[name]) for name in graph.order)
    read = encoders_read(graph)
    sizes = [tower.spec.num_patches for tower in towers.values()]
    patches = None if None in sizes else sum(size or 0 for size in sizes)
    samples = tuple(
        SampleFlops(
            tokens=length,
            text=counted.forward(length),
            memory=counted.forward(inserted + length, logits=length) + fixed + per_token * (inserted + length),
            prepended=None if patches is None else counted.forward(patches + length, logits=length),
        )
        for length in lengths
    )
    vision = {name: vision_flops(tower) for name, tower in towers.items() if name in read}
    return FlopCount(vision, components, counted.per_token, samples)


def batch_flops(model: DehvfModel, samples: EncodedSamples, batch_size: int) -> BatchFlops:
    """Count the first `batch_size` samples by running them: the same for every method of a comparison."""
    items = [samples[place] for place in range(min(batch_size, len(samples)))]
    batch = to_device(Collator(model.processor.tokenizer.pad_token_id)(items), model.device)
    with_image = [one for sample in samples.samples[: len(items)] for one in sample.apart() if one.image is not None]
    plain = {name: value for name, value in batch.items() if name not in ("pixel_values", "vision_features")}
    given: dict[str, Any] = {}
    encoder = 0
    with torch.no_grad():
        if with_image and model.reads_images:
            images = [open_image(sample) for sample in with_image]
            pixels = to_device(model.processor.image_processor(images, return_tensors="pt")["pixel_values"], model.device)
            model.vision_features(pixels)  # an encoder's first pass also probes its layers, which no image costs
            with counted_flops() as counter:
                given["vision_features"] = model.vision_features(pixels)
            encoder = counter.get_total_flops()
        with counted_flops() as counter:
            model(**plain, **given)
    forward = counter.get_total_flops()
    model.train()
    with counted_flops() as counter:
        model(**batch).loss.backward()
    model.zero_grad(set_to_none=True)
    model.eval()
    return BatchFlops(forward // len(items), encoder // max(1, len(with_image)), counter.get_total_flops())


def encoders_read(graph: Graph) -> set[str]:
    """The encoders whose features some node reads; the others never run."""
    return {wire.node for wire, _, _ in graph.edges() if wire.port in ("patches", "globals")} & set(graph.layers)


def component_costs(graph: Graph) -> dict[str, Cost]:
    """Each node's own count, in the order the nodes run."""
    return {name: graph.cost(name) for name in graph.order}


def decoder_flops(decoder: nn.Module) -> TransformerFlops:
    """Count a decoder language model of any family from the shapes of its weights."""
    config = text_config(decoder)
    head = decoder.get_output_embeddings()
    experts, visited = config_size(config, *EXPERT_COUNTS), config_size(config, *EXPERTS_A_TOKEN)
    share = visited / experts if experts and visited else 1.0  # of a mixture's experts, those that one token visits
    weights = sum(
        _matrix_weights(module, share if ".experts" in f".{path}" else 1.0)
        for path, module in decoder.named_modules()
        if module is not head
    )
    return TransformerFlops(
        weights=int(weights),
        head=int(_matrix_weights(head, 1.0)) if head is not None else 0,
        attention_width=_attention_width(config),
    )


def vision_flops(tower: VisionTower) -> int | None:
    """FLOPs per image of an encoder's patch embedding and all its blocks, without pooling heads.

    By formula for encoders of transformers whose config has what it needs; others are run once under torch's counter,
    where they are. None where that ends in an error: not known.
    """
    config = vision_config(getattr(tower.model, "config", None))
    known = all(isinstance(config_value(config, name), int) for name in FORMULA_FIELDS)
    if not known or not isinstance(tower.model, PreTrainedModel):
        return _flops_of_a_run(tower)
    patches = tower.spec.num_patches or 0
    weights = sum(int(_matrix_weights(module, 1.0)) for block in tower.blocks for module in block.modules())
    counted = TransformerFlops(weights=weights, head=0, attention_width=_attention_width(config))
    rows, columns = tower.patch_size or (0, 0)
    embedding = 2 * patches * getattr(config, "num_channels", 3) * rows * columns * tower.spec.hidden_size
    return embedding + counted.forward(patches + tower.num_prefix_tokens())


@torch.no_grad()
def _flops_of_a_run(tower: VisionTower) -> int | None:
    """FLOPs that torch's counter sees, whatever mode the encoder is in."""
    try:
        # Under a function mode torch leaves out the fused kernel of `nn.MultiheadAttention`, which the counter does not know.
        with BaseTorchFunctionMode(), counted_flops() as counter:
            tower.run_blocks()
        return counter.get_total_flops() or None
    except (VisionError, RuntimeError):
        return None


def _matrix_weights(module: nn.Module, share: float) -> float:
    """Numbers in a module's own matrices; `share` applies to stacks of experts [expert, out, in]."""
    if isinstance(module, nn.Embedding):
        return 0.0
    return sum(
        weight.numel() * share
        for name, weight in module.named_parameters(recurse=False)
        if (weight.ndim == 2 and name == "weight") or (weight.ndim == 3 and share != 1.0)
    )


def _attention_width(config: Any) -> int:
    """Width of attention (heads * head width), summed over the layers that have it."""
    sizes = head_sizes(config)
    kinds = config_value(config, "layer_types") or ["attention"] * len(sizes)
    return sum(
        heads * width for kind, (heads, _, width) in zip(kinds, sizes, strict=False) if "attention" in kind and "linear" not in kind
    )
