"""Writes the tables of docs/scale.md from plans: `python -m tools.scale_page`, in the repository's root."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from dehvf_kit_plan.gpus import GPUS
from dehvf_kit_plan.plan import Counts, Workload, count_work, feature_bytes, make_plan

from dehvf_kit.recipe.recipe import Recipe, load_recipe

GPU = "a100-80gb"
RECIPES = ("llama7b_clip", "llama13b_clip", "llama2_70b_clip")
GPU_COUNTS = (1, 8, 64)
BEGIN, END = "<!-- table: written by python -m tools.scale_page -->", "<!-- end of table -->"
IMAGES = 10_000


def options(gpus: int) -> Iterator[tuple[str, list[str], bool]]:
    """(what follows the recipe on `dehvf-kit plan`, overrides, whether the decoder is sharded) of each row."""
    yield "", [], False
    if gpus == 1:
        yield "decoder.quantization=int8", ["decoder.quantization=int8"], False
        yield "decoder.quantization=int4", ["decoder.quantization=int4"], False
    else:
        yield "--shard", [], True


def rows(folder: Path, name: str, counts: Counts | None = None) -> list[str]:
    """The rows of one recipe."""
    found = []
    for gpus in GPU_COUNTS:
        for words, overrides, shard in options(gpus):
            recipe = load_recipe(folder / f"{name}.yaml", overrides)
            work = Workload(gpus=gpus, shard=shard)
            counts = counts or count_work(recipe, work)
            plan = make_plan(recipe, GPUS[GPU], work, counts)
            fits = "yes" if plan.fits_train else "**no**"
            found.append(
                f"| {name} | {gpus} | {f'`{words}`' if words else ''} | {plan.weights / 1e9:.1f} | "
                f"{plan.train_bytes / 1e9:.1f} | {fits} | {plan.train_seconds:.3f} | {plan.steps:,} | "
                f"{plan.gpu_hours / gpus:.2f} | {plan.traffic / 1e6:,.1f} |"
            )
    return found


def feature_line(folder: Path) -> str:
    """Size of the feature cache, which depends on the encoder alone."""
    from dehvf_kit.model.builder import build_on_meta

    recipe: Recipe = load_recipe(folder / f"{RECIPES[0]}.yaml", ["graph.vision_adapter=null"])
    size = feature_bytes(build_on_meta(recipe)) or 0
    return (
        f"Feature cache (CLIP ViT-L/14, all 24 layers, bfloat16): {size / 1e6:.1f} MB per image, "
        f"{IMAGES * size / 1e9:.0f} GB for {IMAGES:,} images, independent of the decoder."
    )


def table(folder: Path, names: tuple[str, ...] = RECIPES) -> str:
    """The page's generated part."""
    lines = [
        "| recipe | GPUs | options | frozen weights per GPU, GB | memory per GPU, GB | fits 80 GB | s per step | steps | "
        "hours | MB sent per GPU and step |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name in names:
        lines += rows(folder, name)
    return "\n".join([BEGIN, "", *lines, "", feature_line(folder), "", END])


def main() -> None:
    """Put the tables into docs/scale.md."""
    page = Path("docs/scale.md")
    text = page.read_text(encoding="utf-8")
    before, after = text.partition(BEGIN)[0], text.partition(END)[2]
    page.write_text(before + table(Path("recipes")) + after, encoding="utf-8")


if __name__ == "__main__":
    main()
