"""The contract that every component must keep in a whole graph, on tiny towers: the whole test of a plugin's component."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dehvf_kit.adapter.checkpoint import load
from dehvf_kit.api.config import ComponentConfig
from dehvf_kit.api.registry import checked, type_name
from dehvf_kit.errors import PluginError
from dehvf_kit.model.builder import build
from dehvf_kit.model.model import DehvfModel
from dehvf_kit.recipe.files import merge
from dehvf_kit.recipe.plugin_manager import plugins
from dehvf_kit.recipe.recipe import parse_recipe
from dehvf_kit.testing.decoder_contract import ItemResult, none_broken, run_items
from dehvf_kit.testing.subject import require
from dehvf_kit.testing.tiny_models import tiny_decoder
from dehvf_kit.testing.vision_models import tiny_vision

# A node of the component's role takes the place of the one here.
GRAPH: Mapping[str, Any] = {
    "grouper": {"type": "contiguous", "num_groups": 2},
    "layer_query": {"type": "embedding_mlp", "embedding_size": 8, "query_size": 8},
    "projector": {"type": "bottleneck_mlp", "bottleneck_size": 4},
    "fuser": {"type": "cross_attention", "hidden_size": 8, "num_blocks": 1, "num_heads": 2, "intermediate_size": 16},
    "position": {"type": "learned", "num_slots": 64},
    "injector": {"type": "ffn_memory", "dropout": 0},
}
IDS = torch.tensor([[3, 4, 5, 6], [7, 8, 9, 10]])
TOLERANCE = 1e-4


@dataclass
class ComponentSubject:
    """A component under test, in a graph of its own on tiny towers that have the same weights each time."""

    config: type[ComponentConfig]
    settings: Mapping[str, Any] = field(default_factory=dict)
    graph: Mapping[str, Any] | None = None

    def towers(self) -> tuple[Any, Any]:
        torch.manual_seed(0)
        return tiny_decoder("llama").eval(), tiny_vision("vit").eval()

    def model(self) -> DehvfModel:
        """The built model, all that is trained random (an untrained memory adds nothing to see)."""
        (decoder, vision), role = self.towers(), self.config.role
        node = {"role": role, "type": type_name(self.config), **self.settings}
        size = vision.config.image_size
        sections = {
            "vision": {"config": vision.config.to_dict(), "image": {"size": size}},
            "decoder": {"config": decoder.config.to_dict()},
            "graph": merge(dict(GRAPH if self.graph is None else self.graph), {role: None}) | {role: node},
        }
        model = build(parse_recipe(sections), decoder=decoder, vision=vision)
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for weight in model.trainable_parameters():
                weight.copy_(0.3 * torch.randn(weight.shape, generator=generator))
        return model

    def pixels(self, model: DehvfModel) -> Tensor:
        tower: Any = next(iter(model.towers.values()))
        size: int = tower.model.config.image_size
        return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(2))

    def logits(self, model: DehvfModel, rows: slice = slice(None), seen: tuple[bool, ...] = (True, True)) -> Tensor:
        """Of some rows, of which some may have no image. Raises: Broken where they are not finite."""
        has_image = torch.tensor(seen[rows])
        images = {"pixel_values": self.pixels(model)[rows][has_image], "has_image": has_image} if any(seen[rows]) else {}
        with torch.no_grad():
            logits: Tensor = model(input_ids=IDS[rows], **images).logits
        require(bool(logits.isfinite().all()), "the logits are not finite")
        return logits


def gradients(subject: ComponentSubject, checkpointing: bool = False) -> dict[str, Tensor | None]:
    model = subject.model()
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    if checkpointing:
        model.activation_checkpointing_enable()
    torch.manual_seed(3)
    model(input_ids=IDS, labels=IDS, pixel_values=subject.pixels(model)).loss.backward()
    frozen = [name for name, weight in model.named_parameters() if not name.startswith("nodes.") and weight.grad is not None]
    require(not frozen, f"frozen weights got a gradient: {frozen[:3]}")
    return {name: weight.grad for name, weight in model.named_trainable_parameters().items()}


def trains_all_it_counts(subject: ComponentSubject) -> None:
    """`num_params` is right (building compares it), each trained weight gets a gradient, and no frozen one does."""
    without = [name for name, grad in gradients(subject).items() if grad is None and name.startswith(f"{subject.config.role}.")]
    require(not without, f"no gradient reaches {', '.join(without)}; use them in forward, or do not make them")
    subject.model().train()(input_ids=IDS, labels=IDS).loss.backward()  # a batch without images is a step like others


def recomputed_layers_train_alike(subject: ComponentSubject) -> None:
    """With gradient checkpointing the gradients are the same: hooks see the memory when a layer runs again."""
    plain, again = gradients(subject), gradients(subject, checkpointing=True)
    for name, grad in plain.items():
        other = again[name]
        same = grad is other or (grad is not None and other is not None and torch.allclose(grad, other, rtol=1e-3, atol=1e-5))
        require(same, f"the gradient of {name} differs with gradient checkpointing; read self.memory in the hooks, not a copy")


def detached_leaves_nothing(subject: ComponentSubject) -> None:
    """After `detach()` decoder and encoder are bit-identical to before, with the same modules and no hook left."""
    decoder, vision = subject.towers()
    before, seen = decoder(input_ids=IDS).logits, list(decoder.state_dict())
    model = subject.model()
    subject.logits(model)  # what a component keeps of a batch must not outlive it
    require(
        torch.equal(model.decoder(input_ids=IDS).logits, before),
        "the decoder alone answers otherwise while attached; read self.memory in the hooks, add nothing where it is None",
    )
    model.detach()
    require(torch.equal(model.decoder(input_ids=IDS).logits, before), "the decoder differs after detach()")
    require(list(model.decoder.state_dict()) == seen, "detach() left modules in the decoder")
    inner: tuple[Any, ...] = (model.decoder, *(tower.model for tower in model.towers.values()))
    left = [name for tower in inner for name, part in tower.named_modules() if part._forward_hooks or part._forward_pre_hooks]
    require(not left, f"detach() left hooks at {', '.join(left[:3])}")


def saved_and_restored(subject: ComponentSubject) -> None:
    """An adapter with the component gives the same logits when it is loaded, bit for bit (buffers are saved too)."""
    model = subject.model()
    before = subject.logits(model)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(Path(folder) / "adapter")
        decoder, vision = subject.towers()
        again = load(Path(folder) / "adapter", decoder=decoder, vision=vision)
    require(torch.equal(subject.logits(again), before), "loaded again it gives other logits; register state as parameter or buffer")


def rows_stand_alone(subject: ComponentSubject) -> None:
    """A sample of a batch gives what it gives alone, whether both have an image or one has none."""
    model = subject.model()
    for seen in ((True, True), (True, False)):
        together = subject.logits(model, seen=seen)
        alone = torch.cat([subject.logits(model, slice(row, row + 1), seen) for row in range(2)])
        apart = float((together - alone).abs().max())
        cause = "rows depend on one another" if all(seen) else "a row without image differs beside one that has; take has_image?"
        require(apart <= TOLERANCE, f"{cause}: {apart:.1e}")


def generates(subject: ComponentSubject) -> None:
    """Beams repeat rows, and each sample is generated as it is alone."""
    model = subject.model()
    ask: dict[str, Any] = {"max_new_tokens": 3, "min_new_tokens": 3, "num_beams": 2, "do_sample": False}
    pixels = subject.pixels(model)
    together = model.generate(input_ids=IDS, pixel_values=pixels, **ask)
    alone = torch.cat([model.generate(input_ids=IDS[i : i + 1], pixel_values=pixels[i : i + 1], **ask) for i in range(2)])
    require(torch.equal(together, alone), "with beams a sample is generated otherwise than alone; repeat each row of the memory")


COMPONENT_CONTRACT: dict[str, Callable[[ComponentSubject], None]] = {
    "trains": trains_all_it_counts,
    "checkpointing": recomputed_layers_train_alike,
    "detach": detached_leaves_nothing,
    "save": saved_and_restored,
    "rows": rows_stand_alone,
    "generation": generates,
}


def check_component(
    config: type[ComponentConfig],
    settings: Mapping[str, Any] | None = None,
    graph: Mapping[str, Any] | None = None,
    items: Iterable[str] | None = None,
) -> list[ItemResult]:
    """Run the contract of a component in a graph on a tiny LLaMA and a tiny ViT, a few seconds.

    Args:
        config: the component's config class; it need not be installed.
        settings: its fields in the recipe.
        graph: the graph's other nodes as in a recipe; a node named after the component's role is replaced. None: the
            default recipe's nodes, tiny.
        items: some of the contract's items; None: all.

    Returns:
        How each item went.

    Raises:
        Broken: naming every item that does not hold.
        RecipeError: where the component does not fit the graph.
        PluginError: where its type is not its type's default.
    """
    subject, known, own = ComponentSubject(config, settings or {}, graph), plugins().registry.entries, checked(config)
    if (default := config.model_fields["type"].default) != own[1]:
        raise PluginError(f"{config.__name__}: its type is Literal['{own[1]}'], and its default '{default}'; make them the same")
    before, known[own] = known.get(own), config  # this class, also where an older one of that name is installed
    try:
        subject.model().detach()
        return none_broken(config.__name__, run_items(COMPONENT_CONTRACT, subject, items))
    finally:
        known[own] = before or config
