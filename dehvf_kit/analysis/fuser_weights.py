"""Which vision layers each decoder layer reads: the fuser's weights, averaged over pictures.

Source: DEHVF, Figures 3 and 4.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from dehvf_kit.data.encoding import stack
from dehvf_kit.data.samples import Sample
from dehvf_kit.model import DehvfModel


class ReadsPictures(Protocol):
    """A feature store, or what stands in for one."""

    def read(self, sample: Sample) -> Any:
        """A picture's features with a leading axis of one."""


@dataclass(frozen=True)
class LayerWeights:
    """weights [decoder_layer, kv, vision layer]: mean over pictures, rows summing to one; labels of the vision layers."""

    weights: Tensor
    labels: list[str]


def mean_weights(
    model: DehvfModel, samples: Sequence[Sample], features: ReadsPictures, batch_size: int = 32
) -> LayerWeights | None:
    """Average weights over the distinct pictures of some samples; None for a graph without a fuser.

    Members that are the same vision layer add up. Labels count blocks from 1, as the paper's figures do.
    """
    fuser = next((name for name, node in model.graph.nodes.items() if "weights" in node.gives), None)
    if fuser is None:
        return None
    levels_wire = model.graph.wires[fuser]["levels"][0]
    pictures = list({sample.image: sample for sample in samples if sample.image is not None}.values())
    total: Tensor | None = None
    for start in range(0, len(pictures), batch_size):
        batch = pictures[start : start + batch_size]
        with torch.no_grad():
            outputs = model.run_graph(len(batch), vision_features=stack([features.read(sample) for sample in batch]))
        ports = list(model.graph.nodes[fuser].gives)
        weights = outputs[fuser][ports.index("weights")].float()
        levels = outputs[levels_wire.node][list(model.graph.nodes[levels_wire.node].gives).index(levels_wire.port)]
        labels = _labels(model, int(levels.index.max()) + 1)
        index = levels.index[levels.group_of_layer][None, :, None, :].expand_as(weights)
        by_layer = weights.new_zeros(*weights.shape[:-1], len(labels)).scatter_add(-1, index, weights).sum(0)
        total = by_layer if total is None else total + by_layer
    return None if total is None else LayerWeights((total / len(pictures)).cpu(), labels)


def _labels(model: DehvfModel, count: int) -> list[str]:
    several = len(model.towers) > 1
    labels = [
        f"{name} {layer + 1}" if several else str(layer + 1)
        for name, tower in model.towers.items()
        for layer in tower.layers
    ]
    return labels[:count]
