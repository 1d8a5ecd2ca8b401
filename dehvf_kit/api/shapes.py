"""The axis legend, and the small frozen records that travel between the towers and the graph.

Axes have one name everywhere, in ports, docstrings and einops patterns:

    batch           samples (text rows before beams are expanded)
    layer           vision layers that are read, shallow to deep
    patch           patch tokens of one image
    vision_hidden   width of the vision encoder
    group member    hierarchy groups, and the vision layers inside one of them
    decoder_layer   decoder layers that have a feed-forward network, in the order they run
    kv              0: key (the FFN's up projection), 1: value (its down projection)
    query           width of the layer queries and of the fuser
    code            width of the projector's bottleneck
    image           an image's number in its row of text, from 0
    slot            key/value rows added to one FFN
    decoder_hidden  width of the decoder
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

KV = ("key", "value")
MAX_LAYERS = 512
"""Layers a tower may have: four times those of the deepest models there are; each is built, even to check."""


@dataclass(frozen=True)
class VisionSpec:
    """What the kit needs to know of a vision encoder; `num_patches` is None where it depends on the image."""

    hidden_size: int
    num_layers: int
    num_patches: int | None
    image_size: int | None = None
    intermediate_size: int | None = None
    model_type: str = ""


@dataclass(frozen=True)
class DecoderSpec:
    """What the kit needs to know of a decoder; `num_layers` counts the layers that have a feed-forward network.

    num_heads, num_key_value_heads, head_dim: of its first layer's attention; 0 where `attention_sites` refuses.
    max_positions: tokens it has positions for; None where its config names no limit.
    modules: path -> (class, (in, out) of a linear map, shapes of its own weights); empty where only a config was read.
    """

    hidden_size: int
    num_layers: int
    vocab_size: int = 0
    intermediate_size: int | None = None
    num_parameters: int = 0
    activation: str = ""
    model_type: str = ""
    num_heads: int = 0
    num_key_value_heads: int = 0
    head_dim: int = 0
    max_positions: int | None = None
    modules: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)

    @property
    def embedding_size(self) -> int:
        """Width of its word embeddings, which a few families project to `hidden_size`."""
        found = (w["weight"] for kind, _, w in self.modules.values() if kind.endswith("Embedding") and "weight" in w)
        return next((shape[1] for shape in found if shape[0] == self.vocab_size), self.hidden_size)

    def sizes(self) -> dict[str, Any]:
        """All of it but the modules, as plain data."""
        return {name: value for name, value in asdict(self).items() if name != "modules"}


@dataclass(frozen=True)
class GroupLayers:
    """Which vision layers each hierarchy group holds, and which group each decoder layer reads.

    index [group, member]: positions along the `layer` axis (long); mask [group, member]: False where a group has fewer
    members than the largest; group_of_layer [decoder_layer]: the group read by each decoder layer (long); place
    [decoder_layer]: each decoder layer's row in a table of `group * largest` rows, `largest` being the number of decoder
    layers of the largest group; full: whether every place of `mask` is True.
    """

    index: Tensor
    mask: Tensor
    group_of_layer: Tensor
    place: Tensor
    largest: int
    full: bool


@dataclass(frozen=True)
class Readout:
    """The projector's last step, applied lazily: `activation(codes) @ weight.T + bias`.

    weight [decoder_hidden, code]; bias [decoder_hidden] or None. Keeping it apart lets the injector multiply text
    activations with the narrow codes instead of building full-width memory (method: exact identities).
    """

    activation: Callable[[Tensor], Tensor]
    weight: Tensor
    bias: Tensor | None


@dataclass(frozen=True)
class Unprojected:
    """Codes that are not computed yet because mixing patches first is cheaper: `project(patches)`.

    patches [batch, layer, patch, vision_hidden]; project: affine, [..., vision_hidden] -> [..., code], so that weights
    that sum to one may be applied before it or after it.
    """

    patches: Tensor
    project: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Cost:
    """FLOPs of one component's forward pass (a multiply-add is two): per step, per image, and per text token."""

    per_step: int = 0
    per_image: int = 0
    per_token: int = 0
