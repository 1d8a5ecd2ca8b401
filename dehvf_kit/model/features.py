"""Features of frozen vision encoders, computed once per image: kept in memory, or by `feature_files` on disk."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from dehvf_kit.data.images import in_threads, open_image
from dehvf_kit.data.samples import Sample, each_image
from dehvf_kit.errors import DataError
from dehvf_kit.model.run import Features, by_encoder, per_encoder, to_device
from dehvf_kit.recipe.files import SINGLE

if TYPE_CHECKING:
    from dehvf_kit.model.model import DehvfModel


@torch.no_grad()
def encode_images(model: DehvfModel, samples: Sequence[Sample]) -> Features:
    """The vision features of some samples' images, computed now. Raises: DataError for an image that cannot be read."""
    pixels = model.processor.image_processor(in_threads(open_image, samples), return_tensors="pt")["pixel_values"]
    return model.vision_features(to_device(pixels, model.device))


class FeatureStore:
    """`model.vision_features` of every distinct image of some samples, in memory.

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
        """One sample of each distinct image whose features are not kept yet."""
        return [one for one in each_image(samples) if one.image not in self._features]

    def fill(
        self,
        samples: Iterable[Sample],
        batch_size: int = 32,
        progress: Callable[[int, int], None] | None = None,
        share: tuple[int, int] = (0, 1),
    ) -> int:
        """Compute what is missing, and say how much that was. `progress(done, all)` is called after every batch of images.

        share: (rank, processes) of processes that fill a store on disk together; one in memory is each process's own.
        """
        waiting: Sequence[Sample] = self.missing(samples)
        for start in range(0, len(waiting), batch_size):
            batch = waiting[start : start + batch_size]
            features = encode_images(self.model, batch)
            for row, sample in enumerate(batch):
                kept = self._row(features, row)
                self._refuse_infinite(sample, kept)
                self._keep(sample, kept)
            if progress is not None:
                progress(start + len(batch), len(waiting))
        return len(waiting)

    def _row(self, features: Any, row: int) -> Any:
        return per_encoder(lambda tensor: tensor[row : row + 1].to("cpu", self.dtype or tensor.dtype).clone(), features)

    def _refuse_infinite(self, sample: Sample, features: Any) -> None:
        """Raises: DataError for features that are not finite; they would make every answer about the image void."""
        for name, tensor in by_encoder(features).items():
            if not tensor.isfinite().all():
                kept = str(tensor.dtype).removeprefix("torch.")
                encoder = "" if name == SINGLE else f" of {name}"
                raise DataError(
                    f"sample '{sample.id}': the features{encoder} of '{sample.image}' are not finite "
                    f"in {kept}, so they are not kept; where that is float16, set training.cache_dtype=bfloat16 and the "
                    "encoder's dtype to float32; else the encoder's weights are damaged"
                )

    def _keep(self, sample: Sample, features: Any) -> None:
        self._features[sample.image] = features

    def read(self, sample: Sample) -> Any:
        """An image's features with a leading axis of one. Raises: DataError if `fill` has not seen it."""
        if sample.image not in self._features:
            raise DataError(f"sample '{sample.id}': no features of '{sample.image}'; fill the store first")
        return self._features[sample.image]

    def __len__(self) -> int:
        return len(self._features)
