"""Which vision layers each decoder layer reads: the fuser's weights, averaged over images.

Source: DEHVF, Figures 3 and 4.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from dehvf_kit.api.shapes import KV
from dehvf_kit.data.encoding import stack
from dehvf_kit.data.samples import Sample, each_image
from dehvf_kit.evaluation.answers import prompts
from dehvf_kit.model.features import encode_images
from dehvf_kit.model.model import DehvfModel
from dehvf_kit.model.run import question, reads_prompt


class FeatureSource(Protocol):
    """A feature store, or an object with its `read`."""

    def read(self, sample: Sample) -> Any:
        """An image's features with a leading axis of one."""


class EncodedImages:
    """Features that a trained model's encoders compute on demand, image by image, without a store."""

    def __init__(self, model: DehvfModel) -> None:
        self.model = model

    def read(self, sample: Sample) -> Any:
        """An image's features with a leading axis of one."""
        return encode_images(self.model, [sample])


@dataclass(frozen=True)
class LayerWeights:
    """weights [decoder_layer, kv, vision layer]: mean over images, rows summing to one; labels of the vision layers."""

    weights: Tensor
    labels: list[str]


@dataclass(frozen=True)
class ReadLayers:
    """A trained adapter's mean weights, the group of each decoder layer, and each group's places among the vision layers.

    Layers are counted from 1 in what `by_group` and `by_layer` give.
    """

    weights: LayerWeights
    group_of_layer: list[int]
    members: list[list[int]]
    images: int

    def by_group(self) -> list[dict[str, Any]]:
        """Figure 3: for each group of decoder layers, the mean weight of every vision layer that it reads."""
        rows = []
        for group in sorted(set(self.group_of_layer)):
            mine = [layer for layer, other in enumerate(self.group_of_layer) if other == group]
            mean = self.weights.weights[mine].mean(0)  # [kv, vision layer]
            read = self.members[group]
            rows.append(
                {
                    "group": group + 1,
                    "decoder_layers": [layer + 1 for layer in mine],
                    "vision_layers": [self.weights.labels[place] for place in read],
                    "weights": {kv_name(kv, mean): [round(float(mean[kv, at]), 6) for at in read] for kv in range(len(mean))},
                }
            )
        return rows

    def by_layer(self) -> list[dict[str, Any]]:
        """Figure 4: for each decoder layer, the weight of every vision layer."""
        rows = []
        for layer, row in enumerate(self.weights.weights):
            weights = {kv_name(kv, row): [round(float(value), 6) for value in row[kv]] for kv in range(len(row))}
            rows.append({"decoder_layer": layer + 1, "vision_layers": self.weights.labels, "weights": weights})
        return rows


def kv_name(kv: int, weights: Any) -> str:
    """What a row of weights [kv, ...] decides: the memory's keys, its values, or both where they share one row."""
    return f"memory {KV[kv]}s" if len(weights) > 1 else "keys and values"


def read_layers(model: DehvfModel, samples: Sequence[Sample], features: FeatureSource, batch_size: int = 32) -> ReadLayers | None:
    """Average weights over the distinct images of some samples; None for a graph without a fuser, or without images.

    Weights of members that are the same vision layer are added. Labels count blocks from 1, as the paper's figures do.
    """
    found = fuser_of(model)
    distinct = each_image(samples)
    if found is None or not distinct:
        return None
    fuser, wire = found
    total: Tensor | None = None
    for start in range(0, len(distinct), batch_size):
        batch = distinct[start : start + batch_size]
        outputs = graph_outputs(model, batch, features)
        ports = list(model.graph.nodes[fuser].gives)
        weights = outputs[fuser][ports.index("weights")].float()
        levels = outputs[wire.node][list(model.graph.nodes[wire.node].gives).index(wire.port)]
        labels = _labels(model, int(levels.index.max()) + 1)
        index = levels.index[levels.group_of_layer][None, :, None, :].expand_as(weights)
        by_layer = weights.new_zeros(*weights.shape[:-1], len(labels)).scatter_add(-1, index, weights).sum(0)
        total = by_layer if total is None else total + by_layer
    mean = LayerWeights((total / len(distinct)).cpu(), labels)
    members = [sorted(set(row[kept].tolist())) for row, kept in zip(levels.index, levels.mask, strict=True)]
    return ReadLayers(mean, levels.group_of_layer.tolist(), members, len(distinct))


@torch.no_grad()
def graph_outputs(model: DehvfModel, batch: Sequence[Sample], features: FeatureSource) -> dict[str, Any]:
    """`run_graph` on a batch of samples with an image, each asked its own question where a node reads it."""
    asked = None
    if reads_prompt(model.graph):
        inputs, _ = prompts(model.processor, batch)
        asked = question(model, inputs["input_ids"].to(model.device), inputs["attention_mask"].to(model.device), None, None)
    return model.run_graph(len(batch), vision_features=stack([features.read(sample) for sample in batch]), prompt=asked)


def fuser_of(model: DehvfModel) -> tuple[str, Any] | None:
    """The node that weighs vision layers, and the wire its levels come from; None for a graph without one."""
    for name, node in model.graph.nodes.items():
        if "weights" in node.gives and "levels" in model.graph.wires[name]:
            return name, model.graph.wires[name]["levels"][0]
    return None


def _labels(model: DehvfModel, count: int) -> list[str]:
    several = len(model.towers) > 1
    labels = [
        f"{name} {layer + 1}" if several else str(layer + 1) for name, tower in model.towers.items() for layer in tower.layers
    ]
    return labels[:count]
