"""Features of frozen vision encoders on disk: one safetensors file per image, named by all that decides what is in it.

    folder / <space> / <first two digits> / <sha256 of the image's bytes>.safetensors

<space> is the sha256 of what the features depend on beside the image: every weight of the encoders, their configs, the
layers read, the final norm, the image processor's settings and the dtype kept. Another image, size, weight, layer or dtype
therefore has another name, and a file that is there is the right one.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import time
import uuid
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from dehvf_kit.data.samples import Sample, each_image
from dehvf_kit.errors import DataError
from dehvf_kit.model.features import FeatureStore
from dehvf_kit.model.features_in_use import in_use, mark, one_at_a_time
from dehvf_kit.utils.atomic import cache_folder, refused

if TYPE_CHECKING:
    from dehvf_kit.model.model import DehvfModel
    from dehvf_kit.recipe.sections import TrainingConfig

FORMAT = 3
"""Counted up where an encoder's features changed: 3, the norm of a mean over tokens is not the final norm."""
SUFFIX, TEMPORARY = ".safetensors", ".part"
HEADER_BYTES = 512
"""Room for a file's header, in estimates."""
STALE_SECONDS = 24 * 3600
"""Age at which a file that somebody began and never finished is taken away."""
SPARE_BYTES = 2**28
"""Disk space that is left free."""


def default_folder() -> Path:
    """`features` in the kit's cache."""
    return cache_folder() / "features"


@dataclass(frozen=True)
class Need:
    """What filling will take: distinct images, those that are missing, and bytes per image."""

    images: int
    missing: int
    bytes_per_image: int

    @property
    def bytes(self) -> int:
        """Bytes that will be written."""
        return self.missing * self.bytes_per_image


class FeatureFiles(FeatureStore):
    """A `FeatureStore` on disk, memory-mapped when read; several processes may fill and read one folder.

    limit: bytes the folder may hold in all, 0 for any number; the images longest unused make room, but
    none that a running process needs. A file is written
    under another name and renamed when whole, so a kill leaves none half-written; its checksum is compared when a process
    first reads it. A folder that cannot be written serves what it holds.

    Raises: DataError where a vision adapter is trained, or the processor's settings cannot be told.
    """

    def __init__(self, model: DehvfModel, dtype: torch.dtype | None = None, folder: Path | None = None, limit: int = 0) -> None:
        self.int8 = dtype is torch.int8
        super().__init__(model, None if self.int8 else dtype)
        self.limit = limit
        self.root = folder or default_folder()
        self.folder = self.root / space(model, dtype)
        self._names: dict[Any, str] = {}
        self._checked: set[str] = set()

    def __getstate__(self) -> dict[str, Any]:
        """Worker processes read; the model stays where it is."""
        return {**self.__dict__, "model": None}

    def file(self, sample: Sample) -> Path:
        """Where an image's features are or will be. Raises: DataError where the image cannot be read."""
        name = self._names.get(sample.image)
        if name is None:
            try:
                name = hashlib.sha256(sample.image.read_bytes()).hexdigest()
            except OSError as error:
                reason = error.strerror or error
                raise DataError(f"sample '{sample.id}': image '{sample.image}' cannot be read: {reason}") from error
            self._names[sample.image] = name
        return self.folder / name[:2] / f"{name}{SUFFIX}"

    def missing(self, samples: Iterable[Sample]) -> list[Sample]:
        found: dict[Path, Sample] = {}
        for sample in each_image(samples):
            found.setdefault(self.file(sample), sample)
        return [sample for file, sample in found.items() if not os.access(file, os.R_OK)]

    def need(self, samples: Iterable[Sample]) -> Need:
        """What `fill` would write, before anything is computed."""
        samples = each_image(samples)
        distinct = {self.file(sample) for sample in samples}
        missing = sum(not os.access(file, os.R_OK) for file in distinct)
        return Need(len(distinct), missing, self._bytes_per_image(samples[0]) if samples else 0)

    def fill(self, samples: Iterable[Sample], batch_size: int = 32, progress: Any = None, share: tuple[int, int] = (0, 1)) -> int:
        """Compute and write what is missing. Raises: DataError where limit or disk leave no room, before any work.

        share: (rank, processes); each process takes its part of the images, whatever is missing of it.
        """
        samples = each_image(samples)
        need = self.need(samples)
        try:
            if need.missing:
                self.folder.mkdir(parents=True, exist_ok=True)
                tempfile.TemporaryFile(dir=self.folder).close()
            with one_at_a_time(self.root):
                self._make_room(samples, need)
            return super().fill(samples[share[0] :: share[1]], batch_size, progress)
        except OSError as error:
            raise DataError(
                f"{self.root}: the feature cache cannot be written: {error.strerror or error}; images whose features are missing "
                f"there: {need.missing:,}; name another folder by training.cache_folder, or set training.cache_features=false"
            ) from error

    def _keep(self, sample: Sample, features: Any) -> None:
        tensors = {"": features} if isinstance(features, Tensor) else features
        tensors = {f"features{'.' if name else ''}{name}": tensor.contiguous() for name, tensor in tensors.items()}
        tensors = _in_int8(tensors) if self.int8 else tensors
        file = self.file(sample)
        file.parent.mkdir(exist_ok=True)
        part = file.with_name(f"{uuid.uuid4().hex}{TEMPORARY}")
        try:
            save_file(tensors, part, metadata={name: str(_checksum(tensor)) for name, tensor in tensors.items()})
            os.replace(part, file)
        except SafetensorError as error:  # how safetensors reports a full disk
            raise refused(error) or error from error
        finally:
            part.unlink(missing_ok=True)

    def read(self, sample: Sample) -> Any:
        """An image's features [1, layer, 1 + patch, vision_hidden], memory-mapped.

        Raises: DataError if `fill` has not seen the image, or its file is damaged (it is removed, so that filling
        again makes it anew).
        """
        file = self.file(sample)
        try:
            with safe_open(file, framework="pt") as opened:
                found = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
                sums = opened.metadata() or {}
        except FileNotFoundError as error:
            raise DataError(f"sample '{sample.id}': no features of '{sample.image}'; fill the store first") from error
        except (SafetensorError, OSError) as error:
            raise self._damaged(file, sample) from error
        if file.name not in self._checked:
            if any(sums.get(name) != str(_checksum(tensor)) for name, tensor in found.items()) or not found:
                raise self._damaged(file, sample)
            self._checked.add(file.name)
        if self.int8:
            found = {name: found[name].float() * found[f"scale_of_{name}"] for name in found if not name.startswith("scale_of_")}
        return found["features"] if "features" in found else {name.partition(".")[2]: t for name, t in found.items()}

    def _damaged(self, file: Path, sample: Sample) -> DataError:
        try:
            file.unlink(missing_ok=True)
        except OSError as error:
            return DataError(
                f"sample '{sample.id}': the cached features of '{sample.image}' are damaged and cannot be removed ({file}: "
                f"{error.strerror}); let their owner do it, or name another folder by training.cache_folder"
            )
        return DataError(
            f"sample '{sample.id}': the cached features of '{sample.image}' were damaged and have been removed ({file}); "
            "start again, and they are computed anew"
        )

    def __len__(self) -> int:
        return sum(1 for _ in self.folder.glob(f"*/*{SUFFIX}"))

    def _bytes_per_image(self, sample: Sample) -> int:
        """Size of one image's file: of one that is there, or as the encoders' sizes say."""
        file = self.file(sample)
        if os.path.exists(file):
            return file.stat().st_size
        total = HEADER_BYTES
        for tower in self.model.towers.values():
            dtype = self.dtype or next(tower.model.parameters()).dtype
            token = tower.spec.hidden_size * dtype.itemsize if not self.int8 else tower.spec.hidden_size + torch.float32.itemsize
            total += len(tower.layers) * (1 + tower.spec.num_patches) * token
        return total

    def _make_room(self, samples: list[Sample], need: Need) -> None:
        mine = {self.file(sample) for sample in samples}
        for file in mine:
            with contextlib.suppress(OSError):  # not there yet, or in a folder that others share to be read
                os.utime(file)
        kept = sorted(_files(self.root), key=lambda entry: entry[1])
        if need.missing:
            if self.limit:
                self._remove_unused(kept, need, mine)
            free = shutil.disk_usage(self.folder).free
            if need.bytes + SPARE_BYTES > free:
                raise DataError(
                    f"{self.root}: {need.missing:,} images' features take {shown_bytes(need.bytes)}, the disk "
                    f"has {shown_bytes(free)} free; "
                    "name another folder by training.cache_folder, set training.cache_dtype=bfloat16, or "
                    "training.cache_features=false"
                )
        mark(self.root, mine, self)

    def _remove_unused(self, kept: list[tuple[Path, float, int]], need: Need, mine: set[Path]) -> None:
        """Remove what was longest unused until the limit is kept; never what a running process needs."""
        used = in_use(self.root) - mine
        held = sum(size for _, _, size in kept)
        others = sum(size for file, _, size in kept if file in used)
        free = sum(size for file, _, size in kept if file not in mine and file not in used)
        if held - free + need.bytes > self.limit:
            taken = shown_bytes(held - free + need.bytes)
            taken += f", {shown_bytes(others)} of it for runs that are going on" if others else ""
            raise DataError(
                f"{self.root}: these images' features take {taken}, training.cache_limit_gib is "
                f"{self.limit / 2**30:g}; raise it, set training.cache_dtype=bfloat16, or "
                "training.cache_features=false"
            )
        for file, _, size in kept:
            if held + need.bytes <= self.limit:
                break
            if file not in mine and file not in used:
                file.unlink(missing_ok=True)
                held -= size


def _in_int8(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Each tensor as int8, and under `scale_of_` the float32 that it is multiplied by, one a token."""
    kept = {}
    for name, tensor in tensors.items():
        scale = (tensor.float().abs().amax(-1, keepdim=True) / 127).clamp(min=torch.finfo(torch.float32).tiny)
        kept |= {name: (tensor / scale).round().to(torch.int8), f"scale_of_{name}": scale}
    return kept


def cached_features(model: DehvfModel, config: TrainingConfig) -> FeatureStore:
    """The store that a recipe's `training` section asks for."""
    if not config.cache_features:
        return FeatureStore(model)
    dtype = None if config.cache_dtype == "auto" else getattr(torch, config.cache_dtype)
    return FeatureFiles(model, dtype, config.cache_folder, int(config.cache_limit_gib * 2**30))


def space(model: DehvfModel, dtype: torch.dtype | None) -> str:
    """The sha256 of everything beside an image that its features depend on. Raises: DataError for an unknown processor."""
    processor = model.processor.image_processor
    if not hasattr(processor, "to_dict"):
        raise DataError(
            f"features cannot be kept on disk: {type(processor).__name__} does not tell its settings (no to_dict); "
            "set training.cache_features=false"
        )
    settings = {key: value for key, value in processor.to_dict().items() if not key.startswith("_")}
    towers = {
        name: {
            "class": type(tower.model).__name__,
            "config": _config(tower.model),
            "weights": weights_digest(tower.model),
            "layers": list(tower.layers),
            "post_norm": tower.apply_post_norm,
            "image_size": tower.spec.image_size,
        }
        for name, tower in model.towers.items()
    }
    decides = {"format": FORMAT, "towers": towers, "processor": settings, "dtype": str(dtype)}
    return hashlib.sha256(json.dumps(decides, sort_keys=True, default=str).encode()).hexdigest()[:32]


def _config(model: nn.Module) -> dict[str, Any]:
    """An encoder's config without what does not change its output."""
    config = getattr(model, "config", None)
    if not hasattr(config, "to_dict"):
        return {}
    return {key: value for key, value in config.to_dict().items() if key not in ("transformers_version", "_name_or_path")}


def weights_digest(model: nn.Module) -> str:
    """The sha256 of every parameter and buffer: name, dtype, shape and bytes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(memoryview(_bytes(tensor)))
    return digest.hexdigest()


def _bytes(tensor: Tensor) -> Any:
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()


def _checksum(tensor: Tensor) -> int:
    return zlib.crc32(memoryview(_bytes(tensor)))


def _files(root: Path) -> Iterator[tuple[Path, float, int]]:
    """Every file of features with its time of last use and its size; what was begun long ago is taken away."""
    for file in root.glob("*/*/*"):
        try:
            facts = file.stat()
            if file.suffix == SUFFIX:
                yield file, facts.st_mtime, facts.st_size
            elif file.suffix == TEMPORARY and time.time() - facts.st_mtime > STALE_SECONDS:
                file.unlink(missing_ok=True)
        except OSError:  # another process was faster, or the folder is shared read-only
            continue


def shown_bytes(count: int) -> str:
    """Bytes for people."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**29 else f"{count / 2**20:.1f} MiB"
