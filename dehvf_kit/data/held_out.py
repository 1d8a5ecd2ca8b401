"""Samples held out for validation: rows that share an image stay together."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dehvf_kit.data.samples import Sample
from dehvf_kit.errors import DataError


def image_groups(samples: Sequence[Sample], without: Callable[[Sample], str]) -> list[str]:
    """The group of each sample: samples that share an image, directly or by way of others, are of one group.

    Files are named from the folder that holds them all, so that moved data is split as before.

    without: the group of a sample that has no image.
    """
    above: dict[str, str] = {}
    files = [os.path.abspath(image) for sample in samples for image in sample.images if isinstance(image, Path)]
    folder = os.path.dirname(os.path.commonprefix(files))

    def root(name: str) -> str:
        while above[name] != name:
            above[name] = name = above[above[name]]
        return name

    firsts = []
    for sample in samples:
        names = [_image_name(image, folder) for image in sample.images] or [without(sample)]
        for name in names:
            above.setdefault(name, name)
            first, second = sorted((root(names[0]), root(name)))
            above[second] = first
        firsts.append(names[0])
    return [root(name) for name in firsts]


def _image_name(image: Any, folder: str) -> str:
    """One name for one image: its path below `folder`, or the digest of a table's cell."""
    return os.path.abspath(image)[len(folder) :] if isinstance(image, Path) else hashlib.sha256(image.read_bytes()).hexdigest()


def held_out_groups(groups: Sequence[str], share: float, seed: int) -> set[str]:
    """A share of the distinct groups, at least one and not all; the choice does not depend on their order.

    Raises: DataError where there is only one.
    """
    ranked = sorted(set(groups), key=lambda group: hashlib.sha256(f"{seed} {group}".encode()).digest())
    if len(ranked) < 2:
        raise DataError("data.validation: all samples have one image, so none can be held out; set data.test")
    return set(ranked[: min(max(1, round(share * len(ranked))), len(ranked) - 1)])
