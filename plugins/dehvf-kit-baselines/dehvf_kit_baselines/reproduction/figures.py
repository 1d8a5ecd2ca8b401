"""Figures 2 to 4: FLOPs against visual tokens, and which vision layers a trained adapter reads."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from dehvf_kit_plan.meta_run import values_unknown
from dehvf_kit_plan.symbolic import symbolic_model
from dehvf_kit_report.fuser_weights import EncodedImages, ReadLayers, kv_name, read_layers

from dehvf_kit.costs.flops import counted_flops
from dehvf_kit.data.samples import samples_of
from dehvf_kit.errors import AdapterError, DataError, DehvfError
from dehvf_kit.recipe.recipe import load_recipe
from dehvf_kit.utils.atomic import write_output
from dehvf_kit.utils.plotting import MUTED, PALETTE, pyplot
from dehvf_kit_baselines.reproduction.closed_formulas import decoder, memory
from dehvf_kit_baselines.reproduction.tables import ROOT, published


@dataclass(frozen=True)
class Point:
    """FLOPs of one forward pass at `visual_tokens`: counted, and by the paper's closed formulas (decoder and slots alone)."""

    visual_tokens: int
    llava: int
    dehvf: int
    llava_formula: int
    dehvf_formula: int

    @property
    def share(self) -> float:
        """DEHVF's part of LLaVA's, counted."""
        return self.dehvf / self.llava


def figure2() -> list[Point]:
    """Count both at every number of visual tokens, without encoders, on the meta device.

    LLaVA: the decoder on image and text tokens, without its projector. DEHVF: the decoder on the text alone, with all
    components, and as many slots as patches. Logits of the last token alone. Raises: DehvfError without the recipe.
    """
    data = published()["figure2"]
    if not (ROOT / data["recipe"]).is_file():
        raise DehvfError(f"figure2 needs {data['recipe']}, which is in the repository")
    tokens = data["tokens"]
    points = []
    for side in data["pixels"]:
        slots = (side // 14) ** 2
        changes = [f"vision.image.size={side}", f"graph.position.num_slots={slots}", "graph.vision_adapter=null"]
        model = symbolic_model(load_recipe(ROOT / data["recipe"], changes))
        (tower,) = model.towers.values()
        spec = next(iter(model.graph.contexts.values())).decoder
        h, d, visual = spec.hidden_size, spec.num_layers, tower.spec.num_patches
        features = torch.empty(1, len(tower.layers), 1 + visual, tower.spec.hidden_size, device="meta")
        ids = torch.zeros(1, tokens, dtype=torch.long, device="meta")
        with torch.no_grad(), values_unknown():
            with counted_flops() as counter:
                model(input_ids=ids, vision_features=features, logits_to_keep=1)
            ours = counter.get_total_flops()
            longer = torch.empty(1, visual + tokens, h, dtype=model.decoder.dtype, device="meta")
            with counted_flops() as counter:
                model.decoder(inputs_embeds=longer, logits_to_keep=1)
        closed = decoder(visual + tokens, h, d), decoder(tokens, h, d) + memory(tokens, visual, h, d)
        points.append(Point(visual, counter.get_total_flops(), ours, *closed))
    return points


def draw_figure2(points: list[Point], file: Path) -> Path:
    """TFLOPs against visual tokens. Raises: DehvfError where matplotlib is missing."""
    plt = pyplot()
    figure, axes = plt.subplots(figsize=(6.4, 4.2), layout="constrained")
    x = [point.visual_tokens for point in points]
    for name, colour in (("llava", PALETTE[1]), ("dehvf", PALETTE[0])):
        label = {"llava": "LLaVA: tokens in the input", "dehvf": "DEHVF: slots in the FFN"}[name]
        axes.plot(x, [getattr(point, name) / 1e12 for point in points], "o-", color=colour, label=f"{label}, counted")
        closed = [getattr(point, f"{name}_formula") / 1e12 for point in points]
        axes.plot(x, closed, ":", color=colour, label=f"{label}, closed formula")
    axes.set_xlabel("visual tokens")
    axes.set_ylabel(f"TFLOPs, one sample of {published()['figure2']['tokens']} text tokens")
    axes.set_ylim(0)
    axes.legend(frameon=False, fontsize=8)
    last = points[-1]
    axes.annotate(
        f"{last.share:.1%} at {last.visual_tokens}", (last.visual_tokens, last.dehvf / 1e12), textcoords="offset points",
        xytext=(0, 9), ha="right", fontsize=8, color=MUTED,
    )  # fmt: skip
    return _save(plt, figure, file)


def read_adapter(adapter: Path, limit: int | None) -> ReadLayers:
    """Average an adapter's weights over the images of its test split, or those of its first `limit` questions.

    Raises: AdapterError for what is no adapter or has no fuser with weights, DataError where it has no images.
    """
    from dehvf_kit.adapter.checkpoint import load

    model = load(adapter)
    if model.recipe.data is None:
        raise DataError(f"{adapter}: its recipe has no `data` section, so there are no images to average over")
    samples = [sample for sample in samples_of(model.recipe.data, "test") if sample.image is not None][:limit]
    if not samples:
        raise DataError(f"{adapter}: the test split of its data set has no images")
    found = read_layers(model, samples, EncodedImages(model))
    if found is None:
        raise AdapterError(f"{adapter}: its graph has no fuser, so no decoder layer reads several vision layers")
    return found


def draw_figure3(found: ReadLayers, file: Path) -> Path:
    """One panel per group: mean weights of its vision layers, by their numbers."""
    plt = pyplot()
    rows = found.by_group()
    figure, panels = plt.subplots(1, len(rows), figsize=(2.9 * len(rows), 3.1), sharey=True, squeeze=False, layout="constrained")
    for axes, row in zip(panels[0], rows, strict=True):
        places = range(len(row["vision_layers"]))
        width = 0.8 / len(row["weights"])
        for number, (name, values) in enumerate(row["weights"].items()):
            axes.bar([at + number * width for at in places], values, width, color=PALETTE[number], label=name)
        axes.set_xticks([at + 0.4 - width / 2 for at in places], row["vision_layers"], fontsize=8)
        first, last = row["decoder_layers"][0], row["decoder_layers"][-1]
        axes.set_title(f"group {row['group']}: decoder layers {first} to {last}", fontsize=8, loc="left")
        axes.set_xlabel("vision layer")
    panels[0][0].set_ylabel(f"mean weight over {found.images:,} images")
    panels[0][-1].legend(frameon=False, fontsize=8)
    return _save(plt, figure, file)


def draw_figure4(found: ReadLayers, file: Path) -> Path:
    """One heat map for keys and one for values: decoder layers down, vision layers across, by their numbers."""
    plt = pyplot()
    weights = found.weights.weights
    layers, kinds, columns = weights.shape
    size = (1.4 + 0.28 * columns * kinds + 0.6, max(3.2, 1.2 + 0.17 * layers))
    figure, panels = plt.subplots(1, kinds, figsize=size, sharey=True, squeeze=False, layout="constrained")
    for kv, axes in enumerate(panels[0]):
        image = axes.imshow(weights[:, kv].numpy(), cmap="Blues", vmin=0, vmax=float(weights.max()), aspect="auto")
        axes.set_xticks(range(columns), found.weights.labels, fontsize=7)
        axes.set_yticks(range(0, layers, max(1, layers // 16)), range(1, layers + 1, max(1, layers // 16)), fontsize=7)
        axes.set_title(kv_name(kv, weights[0]), fontsize=9, loc="left")
        axes.set_xlabel("vision layer")
        axes.spines[:].set_visible(False)
    panels[0][0].set_ylabel("decoder layer")
    figure.colorbar(image, ax=panels[0].tolist(), label=f"mean weight over {found.images:,} images")
    return _save(plt, figure, file)


def _save(plt: Any, figure: Any, file: Path) -> Path:
    try:
        return write_output(file, lambda place: figure.savefig(place, dpi=150))
    finally:
        plt.close(figure)
