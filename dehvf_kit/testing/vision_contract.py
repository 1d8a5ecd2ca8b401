"""What must hold for every vision tower; each item of the contract is one function here.

Each takes a `VisionSubject` and raises `Broken` where the kit breaks the item, `FamilyLimit` where the family itself
refuses, or `NotRun` where the family offers nothing to compare with. `check_vision(make)` is a plugin's whole test.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from dehvf_kit.backbones.vision.layout import first_tensor, token_rows
from dehvf_kit.backbones.vision.tower import VisionTower, model_arguments, pair, settings_for_a_pass
from dehvf_kit.components.vision_adapter.parallel import ParallelVisionAdapter
from dehvf_kit.errors import DehvfError, VisionError
from dehvf_kit.testing.decoder_contract import ItemResult, none_broken, run_items
from dehvf_kit.testing.subject import FamilyLimit, NotRun, distance, require

IMAGES = 3
PROBE_SIZE = 5040 * 16  # a multiple of every patch and block in use, to read an encoder's own size
# Where features are compared with a second computation of them, they may be this far off, relative to the largest
# value. Worst measured over all encoders of transformers 5.23 (float32, CPU): 2.1e-7 among neighbours, 1.4e-7 after
# the final norm, 0 against the models' own hidden states.
TOLERANCE = 2e-6


@dataclass
class VisionSubject:
    """One tower under test: `make` builds its encoder afresh, with the same weights each time.

    `image_size`: (height, width) of the images; None: the encoder's own, or 6 patches a side.
    """

    make: Callable[[], nn.Module]
    image_size: tuple[int, int] | None = None

    def build(self, apply_post_norm: bool = True) -> VisionTower:
        """A fresh frozen tower in evaluation mode."""
        return VisionTower(self.make().eval().requires_grad_(False), self.size[0], apply_post_norm)

    @cached_property
    def size(self) -> tuple[int, int]:
        if self.image_size is not None:
            return self.image_size
        probe = VisionTower(self.make(), PROBE_SIZE)
        height, width = probe.patch_size
        return pair(probe.native_size) or (6 * height, 6 * width)

    @cached_property
    def tower(self) -> VisionTower:
        """One tower that items share; they leave it as they found it."""
        return self.build()

    @cached_property
    def pixels(self) -> Tensor:
        return self.images(*self.size)

    def images(self, height: int, width: int) -> Tensor:
        """Random images [image, 3, height, width]."""
        return torch.rand(IMAGES, 3, height, width, generator=torch.Generator().manual_seed(3))

    @cached_property
    def features(self) -> Tensor:
        with torch.no_grad():
            return self.tower(self.pixels)

    @property
    def grid(self) -> tuple[int, int]:
        height, width = self.tower.patch_size
        return self.size[0] // height, self.size[1] // width


def one_token_a_patch(subject: VisionSubject) -> None:
    """Features are [image, layer, 1 + patch, hidden], finite, other in every layer; token 0 is global."""
    features, tower = subject.features, subject.tower
    rows, columns = subject.grid
    shape = (IMAGES, tower.spec.num_layers, 1 + rows * columns, tower.spec.hidden_size)
    require(tuple(features.shape) == shape, f"features are {tuple(features.shape)}, not {shape}")
    require(bool(torch.isfinite(features).all()), "features are not finite")
    for layer in range(1, shape[1]):
        require(distance(features[:, layer], features[:, layer - 1]) > 1e-6, f"layer {layer} repeats the one before")
    if tower.layout(subject.pixels).global_token is None:
        mean = features[:, :, 1:].mean(2)
        require(distance(features[:, :, 0], mean) < TOLERANCE, "the global token is not the mean of the patches")


@torch.no_grad()
def patches_in_image_order(subject: VisionSubject) -> None:
    """A change in the image shows most at the patch where it was made, counted row by row."""
    tower, (rows, columns) = subject.tower, subject.grid
    height, width = tower.patch_size
    places = sorted({(0, 0), (0, columns - 1), (rows // 2, 1), (rows - 1, 0), (rows - 1, columns - 1)})
    before = tower(subject.pixels)[:, 0, 1:]
    for number, (row, column) in enumerate(places):
        images = subject.pixels.clone()
        patch = images[..., row * height : (row + 1) * height, column * width : (column + 1) * width]
        patch += 0.1 * torch.rand(patch.shape, generator=torch.Generator().manual_seed(number))
        changes = (tower(images)[:, 0, 1:] - before).norm(dim=-1)
        moved = int((changes / changes.amax(1, keepdim=True)).sum(0).argmax())
        require(
            moved == row * columns + column,
            f"a change at row {row}, column {column} shows at row {moved // columns}, column {moved % columns}",
        )


@torch.no_grad()
def independent_of_neighbours(subject: VisionSubject) -> None:
    """An image's features are those it has alone in a batch."""
    for number in range(IMAGES):
        alone = subject.tower(subject.pixels[number : number + 1])
        off = distance(subject.features[number : number + 1], alone)
        require(off < TOLERANCE, f"image {number} alone has features {off:.1e} off those in a batch")


@torch.no_grad()
def equal_to_own_hidden_states(subject: VisionSubject) -> None:
    """Every layer is what the model itself hands out as its hidden states."""
    tower = subject.build(apply_post_norm=False)
    raw = tower(subject.pixels)
    states = _own_output(subject, tower, output_hidden_states=True).get("hidden_states")
    layers = tower.spec.num_layers
    if not isinstance(states, (tuple, list)) or len(states) not in (layers, layers + 1):
        raise NotRun("the model hands out no hidden state a block")
    given = {layer: _as_patches(subject, tower, state) for layer, state in enumerate(states[-layers:])}
    if all(own is None for own in given.values()):
        raise NotRun("the model's hidden states have another shape than its blocks' outputs")
    for layer, own in given.items():
        if own is None:  # the last entry of some families is what comes after the blocks
            require(layer == layers - 1, f"hidden state {layer} of the model has another shape than its block's output")
            continue
        off = distance(raw[:, layer, 1:], own)
        if layer == layers - 1:
            off = min(off, distance(subject.features[:, layer, 1:], own))
        require(off < TOLERANCE, f"layer {layer} is {off:.1e} off the model's own hidden state")


@torch.no_grad()
def post_norm_is_the_models_own(subject: VisionSubject) -> None:
    """Layers pass the encoder's final norm; the last one is then the model's own last hidden state, where it has one."""
    raw_tower = subject.build(apply_post_norm=False)
    raw, norm = raw_tower(subject.pixels), subject.tower.post_norm(subject.pixels)
    expected = raw if norm is None else norm(raw)
    if subject.tower.layout(subject.pixels).global_token is None:
        expected = torch.cat([expected[:, :, 1:].mean(2, keepdim=True), expected[:, :, 1:]], dim=2)
    require(distance(subject.features, expected) < TOLERANCE, "features are not the final norm of the blocks' outputs")
    output = _own_output(subject, raw_tower)
    given = first_tensor(output.get("last_hidden_state", output.get("tensor")))
    if given is None:
        raise NotRun("the model hands out neither a last_hidden_state nor a tensor alone")
    own = _as_patches(subject, raw_tower, given)
    if own is None:
        raise NotRun(f"what the model hands out, {tuple(given.shape)}, is not one state a token")
    off = min(distance(features[:, -1, 1:], own) for features in (raw, subject.features))
    if "tensor" in output and off >= TOLERANCE:
        raise NotRun("the tensor that the model hands out is not its last block's output, with or without the final norm")
    require(off < TOLERANCE, f"the last layer is {off:.1e} off the model's own last hidden state")


def _own_output(subject: VisionSubject, tower: VisionTower, **settings: Any) -> dict[str, Any]:
    """What the untouched model returns for the images, as a mapping."""
    given = model_arguments(tower.model, subject.pixels, tower.patch_size, tower.override)
    try:
        with settings_for_a_pass(tower.model, tower.override):
            output = tower.model(**given, **settings)
    except Exception as error:  # noqa: BLE001 - a family may fail in any way after its blocks
        raise NotRun(f"the model alone ends with {type(error).__name__}: {str(error)[:80]}") from error
    return {"tensor": output} if isinstance(output, Tensor) else dict(output) if hasattr(output, "keys") else {}


def _as_patches(subject: VisionSubject, tower: VisionTower, states: Any) -> Tensor | None:
    """A model's own states [image, patch, hidden] in image order, or None where their shape is another."""
    layout = tower.layout(subject.pixels)
    try:
        tokens = token_rows(states, IMAGES, tower.spec.hidden_size, layout.tokens_first)
    except VisionError:
        return None
    return tokens[:, list(layout.patches)] if tokens.shape[1] > max(layout.patches) else None


def only_adapter_gets_gradients(subject: VisionSubject) -> None:
    """A vision adapter at zero changes nothing, bit for bit; alive it changes every layer and alone gets gradients."""
    tower = subject.build()
    adapter = ParallelVisionAdapter(tower.spec.num_layers, tower.spec.hidden_size, bottleneck_size=3).eval()
    with torch.no_grad():
        before = tower(subject.pixels)
    adapter.attach(tower.model)
    try:
        with torch.no_grad():
            require(torch.equal(tower(subject.pixels), before), "an adapter at zero changes the features")
            adapter.up.normal_(std=0.5, generator=torch.Generator().manual_seed(7))
        after = tower(subject.pixels)
        after.square().mean().backward()
    finally:
        adapter.detach()
    for layer in range(tower.spec.num_layers):
        moved = distance(after[:, layer].detach(), before[:, layer])
        require(moved > 1e-6, f"the adapter of layer {layer} does not change its features")
        for name, weight in (("down", adapter.down), ("up", adapter.up)):
            require(weight.grad is not None and bool(weight.grad[layer].any()), f"{name}[{layer}] gets no gradient")
    require(all(weight.grad is None for weight in tower.model.parameters()), "a weight of the encoder gets a gradient")
    with torch.no_grad():
        require(torch.equal(tower(subject.pixels), before), "detach does not restore the features")


@torch.no_grad()
def half_precision_runs(subject: VisionSubject) -> None:
    """In bfloat16 the features are finite and near those in float32."""
    model = subject.make().eval()  # complex tables (Llama 4's rotary) stay as they are
    model._apply(lambda tensor: tensor.bfloat16() if tensor.is_floating_point() else tensor)
    tower = VisionTower(model, subject.size[0])
    try:
        features = tower(subject.pixels)
    except DehvfError:
        raise
    except RuntimeError as error:
        given = model_arguments(tower.model, subject.pixels.bfloat16(), tower.patch_size, tower.override)
        try:
            tower.model(**given)
        except RuntimeError as own:
            raise FamilyLimit(f"the model itself does not run in bfloat16: {str(own)[:80]}") from error
        raise
    require(bool(torch.isfinite(features).all()), "features in bfloat16 are not finite")
    # Worst measured over all encoders of transformers 5.23: 2.6% (Gemma 4), 0.9% without it.
    off = float((features.float() - subject.features).norm() / subject.features.norm())
    require(off < 0.05, f"features in bfloat16 are {off:.0%} off those in float32")


@torch.no_grad()
def other_sizes(subject: VisionSubject) -> None:
    """A larger image that is not square gives its own grid, in image order, where the family takes one."""
    tower = subject.build()
    height, width = tower.patch_size
    rows, columns = subject.grid[0] + 2, subject.grid[1] + 4
    other = VisionSubject(subject.make, (rows * height, columns * width))
    try:
        features = tower(other.pixels)
    except VisionError as refusal:
        raise FamilyLimit(" ".join(str(refusal).split())[:160]) from refusal
    require(features.shape[2] == 1 + rows * columns, f"{features.shape[2]} tokens for {rows} x {columns} patches")
    patches_in_image_order(other)


@torch.no_grad()
def stops_at_the_deepest_layer(subject: VisionSubject) -> None:
    """Reading fewer layers gives the same features, bit for bit, and runs no block after the deepest."""
    tower = subject.build()
    tower(subject.pixels)
    ran: list[int] = []
    handles = [
        block.register_forward_pre_hook(lambda module, args, number=number: ran.append(number))
        for number, block in enumerate(tower.blocks)
    ]
    tower.layers = (0,)
    features = tower(subject.pixels)
    for handle in handles:
        handle.remove()
    require(torch.equal(features, subject.features[:, :1]), "the first layer alone has other features")
    require(set(ran) == {0}, f"blocks {sorted(set(ran))} ran where layer 0 is read")


def spec_without_weights(subject: VisionSubject) -> None:
    """On the meta device, without any weight, the tower tells the sizes it has."""
    spec = VisionTower(subject.make().to("meta"), subject.size[0]).spec
    require(spec == subject.tower.spec, f"on the meta device {spec}, in memory {subject.tower.spec}")
    if subject.size[0] == subject.size[1]:
        patches = subject.features.shape[2] - 1
        require(spec.num_patches == patches, f"the spec says {spec.num_patches} patches, there are {patches}")


# Name of an item -> its check, in the order they are run and reported.
VISION_CONTRACT: dict[str, Callable[[VisionSubject], None]] = {
    "features": one_token_a_patch,
    "image order": patches_in_image_order,
    "neighbours": independent_of_neighbours,
    "hidden states": equal_to_own_hidden_states,
    "post norm": post_norm_is_the_models_own,
    "adapter": only_adapter_gets_gradients,
    "bfloat16": half_precision_runs,
    "other sizes": other_sizes,
    "deepest layer": stops_at_the_deepest_layer,
    "meta": spec_without_weights,
}


def run_vision_contract(
    make: Callable[[], nn.Module], image_size: tuple[int, int] | None = None, items: Iterable[str] | None = None
) -> list[ItemResult]:
    """Run the contract, or some of its items, on an encoder.

    Args:
        make: builds it afresh at each call with the same weights (small, on the CPU).
        image_size: [height, width] in pixels; its config's where not given.
        items: their names; all where not given.

    Nothing raises but a wrong item name or a `make` that gives other weights each time (DehvfError), and an encoder the
    kit does not read (VisionError).
    Cost: about a second for a tiny encoder.
    """
    subject = VisionSubject(make, image_size)
    _require_one_model(subject)
    _ = subject.features
    return run_items(VISION_CONTRACT, subject, items)


def _require_one_model(subject: VisionSubject) -> None:
    """Raises: DehvfError where `make` gives other weights each time."""
    first, second = (dict(subject.make().named_parameters()) for _ in range(2))
    for name, weight in first.items():
        other = second.get(name)
        same = other is not None and other.shape == weight.shape and other.dtype == weight.dtype
        if not same or not bool(((weight == other) | (weight != weight)).all()):
            raise DehvfError(
                f"make() gives other weights each time (first seen in {name}); seed it: torch.manual_seed(0) as its first line"
            )


def check_vision(
    make: Callable[[], nn.Module], image_size: tuple[int, int] | None = None, items: Iterable[str] | None = None
) -> list[ItemResult]:
    """Run the contract as `run_vision_contract` does and raise Broken, naming every item that does not hold.

    Args: make, image_size, items, as in `run_vision_contract`.
    Prints nothing; the results say item by item how it went (`for result in check_vision(make): print(result)`).
    """
    return none_broken(make, run_vision_contract(make, image_size, items))
