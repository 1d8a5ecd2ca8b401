"""What every component's config is: a pydantic model that names its ports, counts its parameters and builds its module."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator

from dehvf_kit.api.shapes import MAX_LAYERS, Cost, DecoderSpec, VisionSpec

if TYPE_CHECKING:
    from torch import nn


MAX_SEED, MAX_SIZE, MAX_COUNT = 2**32 - 1, 2**20, 2**31 - 1
"""The largest seed, the largest width or number of things held at once, the largest count over time."""
MAX_WORKERS, MAX_EPOCHS = 2**10, 1_000_000
"""The largest number of processes beside one another, and of passes over a training set."""
MAX_BEAMS = 64
"""The largest number of answers that a beam search keeps beside one another."""
MAX_PARAMETERS = 2**40
"""Trained parameters that a graph may have: 4 TiB of them."""
REASONS = {
    MAX_SEED: "a seed has 32 bits",
    MAX_SIZE: "no machine holds more",
    MAX_COUNT: "no run gets further",
    MAX_WORKERS: "each is a process, and no machine has more cores",
    MAX_EPOCHS: "no run makes more passes",
    MAX_BEAMS: "each beam is a row with a cache of its own",
    MAX_LAYERS: "four times the depth of the deepest models",
}


class Settings(BaseModel):
    """A frozen part of a recipe that refuses fields it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, protected_namespaces=(), allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _reject_ambiguous_scalars(cls, value: Any, info: ValidationInfo) -> Any:
        """YAML reads `yes` and `on` as true, which pydantic would take for the number 1; no name or path holds a null."""
        if isinstance(value, bool) and cls.model_fields[info.field_name or ""].annotation in (int, float):
            raise ValueError(f"given {value}; wants a number")
        if isinstance(value, str) and "\0" in value:
            raise ValueError(f"given {value!r}; wants a text without null characters")
        return value


class ConfigMismatchError(Exception):
    """Raised by `ComponentConfig.resolve`: this node does not fit what it is wired to. `field` names the setting."""

    def __init__(self, message: str, field: str = "") -> None:
        super().__init__(message)
        self.field = field


Misfit = ConfigMismatchError
"""The old name of ConfigMismatchError, kept for one release."""


@dataclass(frozen=True)
class BuildContext:
    """What a component learns only when it is wired: axis sizes, and the two towers.

    axes: size of each axis its input ports carry, and `decoder_layer`, `decoder_hidden`, `kv`; None where it varies.
    wires: for each connected input port, one mapping of axis sizes per wire (ports that take many wires have several).
    encoders: for each connected input port, the names of the encoders behind each of its wires.
    vision: the tower this node reads from (None where it reads from none or from several).
    layers: the vision layers of that tower that are read, as 0-based block indices (the `layer` axis in order).
    """

    axes: Mapping[str, int | None]
    decoder: DecoderSpec
    wires: Mapping[str, tuple[Mapping[str, int | None], ...]] = field(default_factory=dict)
    vision: VisionSpec | None = None
    layers: tuple[int, ...] = ()
    encoders: Mapping[str, tuple[tuple[str, ...], ...]] = field(default_factory=dict)

    def size(self, axis: str) -> int:
        """Size of an axis that must be known by now. Raises: ConfigMismatchError if it is not."""
        size = self.axes.get(axis)
        if size is None:
            if axis not in self.axes:
                raise ConfigMismatchError(f"needs the size of axis '{axis}', which no port that is wired has")
            raise ConfigMismatchError(f"needs the size of axis '{axis}', which is not known before an image is seen")
        return size


class ComponentConfig(Settings):
    """Parent of all component configs. A subclass names its role (the node's place), its `type`, and its ports.

    takes, gives: ports as `"name: axis axis ..."`; `name?` is optional, `name*` takes any number of wires.
    attaches: "decoder" or "vision" for a component whose module hooks itself onto a tower (`module.attach(tower)`);
    "input" for one whose forward returns `InputTokens` for the decoder's input (`module.attach(decoder, tokenizer)`).
    takes_unprojected: True where its module reads codes that come as `Unprojected`; others are given the codes themselves.
    counts_positions: True where its output depends on a token's position in its row, not only on the tokens before it.
    strength: the field that scales what a component attached to the decoder adds there; `compare --strengths` tunes it.
    """

    role: ClassVar[str] = ""
    takes: ClassVar[tuple[str, ...]] = ()
    gives: ClassVar[tuple[str, ...]] = ()
    attaches: ClassVar[str] = ""
    takes_unprojected: ClassVar[bool] = False
    counts_positions: ClassVar[bool] = False
    strength: ClassVar[str] = ""

    def resolve(self, context: BuildContext) -> dict[str, int | None]:
        """Sizes of the axes this node adds to its outputs.

        Raises:
            ConfigMismatchError: where its settings and its wires disagree.
        """
        return {}

    def vision_layers(self, num_layers: int) -> tuple[int, ...] | None:
        """0-based vision layers this node reads out of `num_layers`; None where it has no say."""
        return None

    def num_params(self, context: BuildContext) -> dict[str, int]:
        """Trained parameters, term by term; the sum equals the built module's."""
        return {}

    def cost(self, context: BuildContext) -> Cost:
        """Forward FLOPs of this node."""
        return Cost()

    def input_tokens(self, context: BuildContext) -> int:
        """Tokens that this node puts into the decoder's input for a sample with an image."""
        return 0

    def build(self, context: BuildContext) -> nn.Module:
        """The module; its forward takes the connected input ports as keywords and returns the output ports in order."""
        raise NotImplementedError(f"{type(self).__name__}.build")

    def summary(self) -> str:
        """First line of the docstring."""
        return (type(self).__doc__ or "").strip().splitlines()[0]


def too_many(count: int) -> str:
    """The message for more than MAX_PARAMETERS trained parameters."""
    return f"its graph makes {count:,} trained parameters, more than any machine holds; make its sizes smaller"


def settings_of(config: BaseModel) -> dict[str, Any]:
    """A config as plain data, in field order."""
    return config.model_dump(mode="json")
