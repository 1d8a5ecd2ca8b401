"""Makes transformers' Auto classes and pipelines know our adapters, without importing transformers.

`import dehvf_kit` only notes what to do; the registration happens when transformers loads its own Auto modules.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from importlib.abc import Loader, MetaPathFinder
else:
    Loader = MetaPathFinder = object  # importlib.abc brings importlib.resources and tempfile

AUTO = "transformers.models.auto"


def _register_config() -> None:
    from transformers.models.auto.configuration_auto import AutoConfig

    from dehvf_kit.model.config import DehvfConfig

    AutoConfig.register("dehvf", DehvfConfig, exist_ok=True)


def _register_model() -> None:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, AutoModelForImageTextToText

    from dehvf_kit.model.config import DehvfConfig
    from dehvf_kit.model.model import DehvfModel

    AutoModelForImageTextToText.register(DehvfConfig, DehvfModel, exist_ok=True)
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES["dehvf"] = "DehvfModel"  # where the Trainer's label smoothing looks


def _register_processor() -> None:
    from transformers.models.auto.processing_auto import AutoProcessor

    from dehvf_kit.data.processing import DehvfProcessor
    from dehvf_kit.model.config import DehvfConfig

    AutoProcessor.register(DehvfConfig, DehvfProcessor, exist_ok=True)


def _register_image_processor() -> None:
    from transformers.models.auto.image_processing_auto import AutoImageProcessor

    from dehvf_kit.data.processing import SeveralImageProcessor
    from dehvf_kit.model.config import DehvfConfig

    AutoImageProcessor.register(DehvfConfig, SeveralImageProcessor, exist_ok=True)


def _register_pipeline() -> None:
    from transformers.pipelines import PIPELINE_REGISTRY

    from dehvf_kit.data.pipeline import CheckedImagePipeline

    PIPELINE_REGISTRY.supported_tasks["image-text-to-text"]["impl"] = CheckedImagePipeline


WANTED: dict[str, Callable[[], None]] = {
    f"{AUTO}.configuration_auto": _register_config,
    f"{AUTO}.modeling_auto": _register_model,
    f"{AUTO}.processing_auto": _register_processor,
    f"{AUTO}.image_processing_auto": _register_image_processor,
    "transformers.pipelines": _register_pipeline,
}


class _AfterImport(MetaPathFinder):
    """Finds a wanted module with the other finders, and acts right after it has been loaded."""

    def __init__(self, waiting: Mapping[str, Callable[[], None]]) -> None:
        self.waiting = dict(waiting)

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        register = self.waiting.pop(name, None)
        if register is None:
            return None
        spec = find_spec(name)
        if spec is not None and spec.loader is not None:
            spec.loader = _Registering(spec.loader, register)
        if not self.waiting and self in sys.meta_path:
            sys.meta_path.remove(self)
        return spec


class _Registering(Loader):
    """A module's own loader, followed by a registration."""

    def __init__(self, loader: Loader, register: Callable[[], None]) -> None:
        self.loader, self.register = loader, register

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self.loader.exec_module(module)
        self.register()


def after_import(actions: Mapping[str, Callable[[], None]]) -> None:
    """Act now for modules that are loaded already, and right after they are loaded for others."""
    finder = _AfterImport({name: act for name, act in actions.items() if name not in sys.modules})
    for name, act in actions.items():
        if name not in finder.waiting:
            act()
    if finder.waiting:
        sys.meta_path.insert(0, finder)


def register_with_transformers() -> None:
    """Register now where transformers' Auto modules are loaded already, and when they load where they are not."""
    after_import(WANTED)
