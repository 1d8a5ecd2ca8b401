"""How much each image patch contributed to each decoder layer at the moment the model starts to answer a question.

For the last token of the prompt, with FFN input x, slot i of a layer adds output_scale * act(x K_i) M_i to FFN(x); without the
image it would add output_scale * act(x p_K,i) p_V,i. The norm of the difference is the contribution of patch i.
Source: DEHVF, equations 10 to 13, slot by slot; the measure is our own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dehvf_kit.components.injector.ffn_memory import ActiveMemory, FfnMemoryInjector
from dehvf_kit.data.images import open_image
from dehvf_kit.data.samples import Sample
from dehvf_kit.evaluation.answers import prompts
from dehvf_kit.model.model import DehvfModel
from dehvf_kit.model.run import by_encoder, to_device
from dehvf_kit.ops.ffn_memory import build_keys_values

if TYPE_CHECKING:
    from PIL.Image import Image

    from dehvf_kit.backbones.ffn.sites import FfnSite


@dataclass(frozen=True)
class MemoryMap:
    """written [decoder_layer, row, column]: norms of the patches' contributions; image: as the encoder sees it."""

    sample: Sample
    written: Tensor
    image: Image


def writes_memory(model: DehvfModel) -> bool:
    """Whether images reach this model's decoder as key/value memory, one slot per patch."""
    return model.reads_images and _injector(model) is not None


@torch.no_grad()
def memory_map(model: DehvfModel, sample: Sample) -> MemoryMap | None:
    """The map of one question with an image; None where no memory is written, or its patches are no square grid.

    Cost: one pass over the prompt. Raises: DataError where the image cannot be read.
    """
    injector = _injector(model)
    if injector is None or not model.reads_images or sample.image is None:
        return None
    pixels = model.processor.image_processor(open_image(sample), return_tensors="pt")["pixel_values"]
    written: dict[int, Tensor] = {}

    def watch(index: int, x: Tensor, memory: ActiveMemory, site: FfnSite) -> None:
        found = slots_written(memory, index, x[:, -1:], site)
        if found is not None:
            written[index] = found[0, 0].float().cpu()

    inputs, _ = prompts(model.processor, [sample])
    with injector.watching(watch):
        model(**to_device({**inputs, "pixel_values": pixels}, model.device))
    side = math.isqrt(len(written[0])) if written else 0
    if not written or side * side != len(written[0]):
        return None
    stacked = torch.stack([written[index] for index in sorted(written)])
    return MemoryMap(sample, stacked.view(len(stacked), side, side), _as_seen(model, pixels))


def slots_written(memory: ActiveMemory, index: int, x: Tensor, site: FfnSite) -> Tensor | None:
    """Norm of what the image changed in each of its slots. Shapes: x [batch, token, hidden] -> [batch, token, patch].

    None where the memory contains no image. K and M of one layer are built.
    """
    layer = memory.layer(index, x)
    codes = layer.key_codes if layer.key_codes is not None else layer.value_codes
    if codes is None:
        return None
    patches = codes.shape[1]
    keys, values = (table[:, :patches] for table in build_keys_values(layer))
    seen = site.activation(x @ keys.mT)[..., None] * values[:, None]  # [batch, token, patch, hidden]
    if layer.position_keys is not None and layer.position_values is not None:
        blind = site.activation(x @ layer.position_keys[:patches].mT)[..., None]
        seen = seen - blind * layer.position_values[:patches]
    return memory.output_scale * seen.norm(dim=-1)


def _injector(model: DehvfModel) -> FfnMemoryInjector | None:
    return next((node for node in model.nodes.values() if isinstance(node, FfnMemoryInjector)), None)


def _as_seen(model: DehvfModel, pixels: Any) -> Image:
    """The first encoder's pixel values as an image again."""
    from PIL.Image import fromarray

    name, tensor = next(iter(by_encoder(pixels).items()))
    tensor = tensor[0].float().cpu()
    image = getattr(model.recipe.vision[name], "image", None)
    if image is not None:
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in image.mean_std)
        tensor = (tensor * std + mean) / (255 * image.facts()["rescale"])
    else:
        tensor = (tensor - tensor.min()) / (tensor.max() - tensor.min()).clamp(min=1e-6)
    return fromarray((tensor.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).contiguous().numpy())
