"""Runs the vision contract on tiny models of transformers' image encoder types, and keeps the results."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from transformers import CONFIG_MAPPING

from dehvf_kit.backbones.vision.overrides import VISION_OVERRIDES, VisionOverride
from dehvf_kit.backbones.vision.tower import VisionTower
from dehvf_kit.errors import VisionError
from dehvf_kit.testing.decoder_contract import ItemResult
from dehvf_kit.testing.vision_contract import PROBE_SIZE, VisionSubject, run_vision_contract
from dehvf_kit.testing.vision_models import build_vision, random_vision, tiny_vision_config
from dehvf_kit_doctor.decoder_family import quiet

PATCHES, LEVELS, CLIPS, OTHER, UNBUILT = ("patch sequence", "hierarchical", "clips", "no vision transformer", "cannot be built")
NO_ENCODER = "no image-only encoder"


@dataclass(frozen=True)
class EncoderResult:
    """One encoder type's class, what it yields, and how its contract went; `note` says why it has none."""

    model_type: str
    kind: str
    class_name: str = ""
    items: tuple[ItemResult, ...] = ()
    num_layers: int = 0
    hidden_size: int = 0
    tokens: str = ""
    post_norm: str = ""
    described: str = ""
    note: str = ""

    @property
    def status(self) -> str:
        """`pass` or `broken` for patch-sequence encoders, else the kind."""
        if self.kind != PATCHES:
            return self.kind
        return "broken" if any(item.status == "broken" for item in self.items) else "pass"


def encoder_result(model_type: str) -> EncoderResult:
    """The contract on one tiny encoder, or the reason why it has none; whatever goes wrong is in the result."""
    try:
        config = tiny_vision_config(model_type)
        class_name = type(random_vision(config)).__name__
    except VisionError as error:
        return EncoderResult(model_type, NO_ENCODER, note=_line(error))
    except Exception as error:  # noqa: BLE001 - the reason goes into the page
        return _without_tiny(model_type, error)
    subject = VisionSubject(lambda: random_vision(config))
    try:
        layout = subject.tower.layout(subject.pixels)
        items = tuple(run_vision_contract(subject.make, subject.size))
    except VisionError as error:
        return EncoderResult(model_type, _kind(error), class_name, note=_line(error))
    except Exception as error:  # noqa: BLE001 - the reason goes into the page
        item = ItemResult("features", "broken", f"{type(error).__name__}: {_line(error)}")
        return EncoderResult(model_type, PATCHES, class_name, (item,))
    norm = subject.tower.post_norm(subject.pixels)
    return EncoderResult(
        model_type,
        kind=PATCHES,
        class_name=class_name,
        items=items,
        num_layers=subject.tower.spec.num_layers,
        hidden_size=subject.tower.spec.hidden_size,
        tokens=_tokens(list(layout.patches), layout.global_token),
        post_norm="" if norm is None else type(norm).__name__,
        described=VISION_OVERRIDES.get(model_type, VisionOverride()).reason,
    )


def _without_tiny(model_type: str, reason: Exception) -> EncoderResult:
    """What is known of a type whose configuration cannot be shrunk: its structure at full size, without weights."""
    try:
        with torch.device("meta"):
            model = build_vision(CONFIG_MAPPING[model_type]())
        VisionTower(model, PROBE_SIZE)
    except VisionError as error:
        return EncoderResult(model_type, _kind(error), note=_line(error))
    except Exception as error:  # noqa: BLE001 - the reason goes into the page
        return EncoderResult(model_type, UNBUILT, note=_line(error))
    return EncoderResult(model_type, UNBUILT, type(model).__name__, note=f"no tiny configuration: {_line(reason)}")


def _kind(error: VisionError) -> str:
    text = str(error)
    if "is hierarchical" in text:
        return LEVELS
    if "clips of frames" in text:
        return CLIPS
    return NO_ENCODER if NO_ENCODER in text or "forward also needs" in text else OTHER


def _tokens(patches: list[int], global_token: int | None) -> str:
    """How the tokens of one image lie, in words."""
    first = min(patches)
    order = "in rows" if patches == list(range(first, first + len(patches))) else "permuted"
    if global_token is None:
        return f"no class token; patches {order}"
    place = "class token last" if global_token > max(patches) else f"class token first, patches from {first}"
    return f"{place}; patches {order}"


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:240] or type(error).__name__


def run_vision_matrix(model_types: Sequence[str], on_result: Callable[[EncoderResult], None] | None = None) -> list[EncoderResult]:
    """The results of encoder types, in the order given, on one thread; `on_result` is told of each as it comes."""
    results = []
    with quiet():
        for model_type in model_types:
            results.append(encoder_result(model_type))
            if on_result is not None:
                on_result(results[-1])
    return results
