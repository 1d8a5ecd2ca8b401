"""Features of frozen vision encoders, computed once per picture: kept in memory, or by `feature_files` on disk."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dehvf_kit.data.images import open_image
from dehvf_kit.data.samples import Sample
from dehvf_kit.errors import DataError

if TYPE_CHECKING:
    from dehvf_kit.model.model import DehvfModel


class FeatureStore:
    """`model.vision_features` of every distinct picture of some samples, in memory.

    dtype: what features are kept in; None keeps the encoder's own. Raises: DataError where a vision adapter is trained,
    since features then change with every step.
    """

    def __init__(self, model: DehvfModel, dtype: torch.dtype | None = None) -> None:
        if model.image_is_trained:
            raise DataError(
                "features cannot be kept: a vision adapter is trained inside the encoder, so they change with every step; "
                "set training.cache_features=false or remove the vision adapter"
            )
        self.model, self.dtype = model, dtype
        self._features: dict[Any, Any] = {}

    def missing(self, samples: Iterable[Sample]) -> list[Sample]:
        """One sample of each distinct picture whose features are not kept yet."""
        return list({one.image: one for one in samples if one.image and one.image not in self._features}.values())

    def fill(
        self,
        samples: Iterable[Sample],
        batch_size: int = 32,
        progress: Callable[[int, int], None] | None = None,
        share: tuple[int, int] = (0, 1),
    ) -> int:
        """Compute what is missing, and say how much that was. `progress(done, all)` is called after every batch of pictures.

        share: (rank, processes) of processes that fill a store on disk together; one in memory is each process's own.
        """
        waiting: Sequence[Sample] = self.missing(samples)
        device = next(self.model.decoder.parameters()).device
        for start in range(0, len(waiting), batch_size):
            batch = waiting[start : start + batch_size]
            pictures = [open_image(sample) for sample in batch]
            pixels = self.model.processor.image_processor(pictures, return_tensors="pt")["pixel_values"]
            moved = (
                pixels.to(device) if isinstance(pixels, Tensor) else {name: t.to(device) for name, t in pixels.items()}
            )
            with torch.no_grad():
                features = self.model.vision_features(moved)
            for row, sample in enumerate(batch):
                kept = self._row(features, row)
                self._refuse_infinite(sample, kept)
                self._keep(sample, kept)
            if progress is not None:
                progress(start + len(batch), len(waiting))
        return len(waiting)

    def _row(self, features: Any, row: int) -> Any:
        if isinstance(features, Tensor):
            kept = features[row : row + 1].to("cpu", self.dtype or features.dtype)
            return kept.clone()
        return {name: self._row(tensor, row) for name, tensor in features.items()}

    def _refuse_infinite(self, sample: Sample, features: Any) -> None:
        """Raises: DataError for features that are not finite; they would make every answer about the image void."""
        for name, tensor in ({"": features} if isinstance(features, Tensor) else features).items():
            if not tensor.isfinite().all():
                kept = str(tensor.dtype).removeprefix("torch.")
                raise DataError(
                    f"sample '{sample.id}': the features{f' of {name}' if name else ''} of '{sample.image}' are not finite "
                    f"in {kept}, so they are not kept; where that is float16, set training.cache_dtype=bfloat16 and the "
                    "encoder's dtype to float32; else the encoder's weights are damaged"
                )

    def _keep(self, sample: Sample, features: Any) -> None:
        self._features[sample.image] = features

    def read(self, sample: Sample) -> Any:
        """A picture's features with a leading axis of one. Raises: DataError if `fill` has not seen it."""
        if sample.image not in self._features:
            raise DataError(f"sample '{sample.id}': no features of '{sample.image}'; fill the store first")
        return self._features[sample.image]

    def __len__(self) -> int:
        return len(self._features)
