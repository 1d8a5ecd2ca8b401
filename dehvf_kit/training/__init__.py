"""The Trainer, run folders, resuming, distributed runs."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from types import ModuleType

from dehvf_kit.backbones.quantization import import_bitsandbytes


class _BeforeTrainer(MetaPathFinder):
    """transformers' Trainer imports peft, which imports bitsandbytes; bitsandbytes is imported before, without its look-up."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> None:
        if name == "transformers.trainer_utils" and self in sys.meta_path:
            sys.meta_path.remove(self)
            import_bitsandbytes()


if "transformers.trainer_utils" not in sys.modules:
    sys.meta_path.insert(0, _BeforeTrainer())
