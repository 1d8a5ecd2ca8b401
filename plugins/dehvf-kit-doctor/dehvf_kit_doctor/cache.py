"""`dehvf-kit cache`: features of every image of a recipe's data, computed before training."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

from dehvf_kit.cli.arguments import Json, Overrides, RecipeFile
from dehvf_kit.cli.console import print_json, reporting
from dehvf_kit.errors import DataError


def cache(recipe: RecipeFile, overrides: Overrides = None, as_json: Json = False) -> None:
    """Print how much will be written, and write it.

    Raises: RecipeError for a faulty recipe, DataError where features cannot be cached.
    """
    from dehvf_kit.data.sample_filter import SKIPPED, SampleFilter, summary, write_skipped
    from dehvf_kit.model.builder import build
    from dehvf_kit.model.feature_files import FeatureFiles, cached_features, shown_bytes
    from dehvf_kit.recipe.recipe import load_recipe

    loaded = load_recipe(recipe, [*(overrides or ()), "training.cache_features=true"])
    if loaded.data is None:
        raise DataError(f"{recipe}: has no `data` section, so there are no images")
    model = build(loaded)
    if not model.reads_images:
        raise DataError(f"{recipe}: nothing in its graph reads images, so there are no features to cache")
    store = cached_features(model, loaded.training)
    assert isinstance(store, FeatureFiles)
    splits: list[Any] = ["train", loaded.data.validation_split, "test"]
    filters = [SampleFilter(loaded.data, split) for split in dict.fromkeys(splits) if split is not None]
    with reporting() as report:
        opened = partial(report, "opening images")
        samples = [sample for sample_filter in filters for sample in sample_filter.readable(opened)]
    skipped = [one for sample_filter in filters for one in sample_filter.skipped]
    need = store.need(samples)
    if not as_json:
        print(
            f"{need.images:,} images, {need.missing:,} of them new, {shown_bytes(need.bytes_per_image)} each: "
            f"{shown_bytes(need.bytes)} to write into {store.folder}"
        )
    started = time.perf_counter()
    with reporting() as report:
        written = store.fill(samples, progress=lambda done, total: report("reading images", done, total))
    seconds = time.perf_counter() - started
    listed = write_skipped(store.folder / SKIPPED, skipped)
    if as_json:
        facts = {"images": need.images, "written": written, "bytes_per_image": need.bytes_per_image}
        facts |= {"skipped": [one.row() for one in skipped]}
        print_json({**facts, "bytes": need.bytes, "folder": str(store.folder), "seconds": round(seconds, 1)})
        return
    print(f"{written:,} images in {seconds:.0f} s; `dehvf-kit train` uses them where training.cache_features is true")
    if skipped:
        print(summary(skipped, listed))
