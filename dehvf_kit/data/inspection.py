"""Which data set a file or folder is, and what is wrong with a training split before a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dehvf_kit.api.registry import plugin_code
from dehvf_kit.data.sample_filter import no_images
from dehvf_kit.data.samples import PREPARE, DataConfig, grouped
from dehvf_kit.data.stream import LOOKED_AT, SampleStream
from dehvf_kit.errors import DataError, PluginError
from dehvf_kit.utils.atomic import exists


def recognise(place: Path, configs: Sequence[type[DataConfig]]) -> dict[str, Any]:
    """The data section of a recipe for a file or folder. Raises: DataError where no data set knows it as its own."""
    if not exists(place):
        raise DataError(f"there is no recipe, file or folder '{place}'")
    for config in configs:
        settings = config.recognise(place)
        if settings is not None:
            return {"type": config.model_fields["type"].default, **settings}
    raise DataError(
        f"{place}: no data set that the kit knows: a folder with problems.json (scienceqa) or dataset_coco.json "
        "(coco_captions), a .json of conversations (llava), a .jsonl (jsonl), a .csv, .tsv, .json or .parquet, a folder of "
        "these, or a `datasets` folder (table); shards (.tar) in a recipe with data.type=stream"
    )


def training_data_at_hand(config: DataConfig, reads_images: bool | None) -> tuple[int, list[str]]:
    """Size and faults of a training split that is on this machine, of a stream those of its first rows; images are not opened.

    The size is 0 for a data set that may be downloaded, and where the data are not here.
    """
    stream = config.stream("train")
    size = len(stream) if isinstance(stream, SampleStream) else 0
    if getattr(config, "download", False):
        return size, []
    try:
        with plugin_code(config, "data"):
            reading = stream.reading(LOOKED_AT) if size else config.read(config.part_of("train"))
    except (DataError, PluginError):
        return size, []
    blind = no_images(config, "train", reading.samples, reads_images)
    issues = [*reading.issues, *([blind] if blind is not None else [])]
    if config.on_bad_sample == "skip":
        issues = [issue for issue in issues if issue is blind]
    groups = grouped(issue for issue in issues if issue.fatal)
    faults = [f"{len(group):,} x {kind}, the first: {group[0]}; {PREPARE}" for kind, group in groups.items()]
    return size or len(reading.samples), faults
