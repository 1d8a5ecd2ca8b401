"""What a plugin's cost formula is given and returns: sizes of both base models in, costs of the baselines it knows out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class TowerSizes:
    """Sizes that closed formulas need of the decoder, the vision encoder and the memory (`num_slots` rows per FFN)."""

    decoder_hidden_size: int
    decoder_layers: int
    decoder_heads: int
    vision_hidden_size: int
    vision_layers: int
    num_patches: int
    num_slots: int


@dataclass(frozen=True, kw_only=True)
class BaselineCost:
    """Costs of one baseline method.

    Attributes:
        parameters: trained parameters, as published.
        unused: those among them that no computation reads.
        added_tokens: tokens that an image adds to the decoder's input.
        formula: the formula of `parameters`, as a reader would write it.
    """

    name: str
    parameters: int
    unused: int = 0
    added_tokens: int = 0
    formula: str = ""


CostFormula = Callable[[TowerSizes], Sequence[BaselineCost]]
