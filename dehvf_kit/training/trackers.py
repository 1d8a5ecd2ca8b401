"""Where a run's figures go besides its own log: TensorBoard, Weights & Biases, through transformers' callbacks."""

from __future__ import annotations

import importlib.util

from dehvf_kit.errors import DehvfError
from dehvf_kit.recipe.sections import Tracker

INSTALL = {"tensorboard": "pip install 'dehvf-kit[train]'", "wandb": "pip install wandb"}


def trackers(report_to: Tracker) -> list[str]:
    """transformers' `report_to`: `auto` is TensorBoard where it is installed. Raises: DehvfError for one that is not."""
    if report_to == "none":
        return []
    name = "tensorboard" if report_to == "auto" else report_to
    if importlib.util.find_spec(name) is not None:
        return [name]
    if report_to == "auto":
        return []
    raise DehvfError(f"training.report_to: {name} is not installed; {INSTALL[name]}, or set training.report_to=none")
