"""Trained parameters of many methods side by side, each beside what was published for it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from dehvf_kit.api import DehvfError
from dehvf_kit.costs.parameters import ParameterTable, parameter_table
from dehvf_kit.recipe.recipe import load_recipe


@dataclass(frozen=True)
class MethodRow:
    """One recipe's counts; `table` has its terms, `matches` is None where nothing was published for it."""

    name: str
    description: str
    source: str
    table: ParameterTable

    @property
    def trained(self) -> int:
        """Parameters this kit trains."""
        return self.table.trainable

    @property
    def as_published(self) -> int:
        """The count in the published convention, with parameters that nothing uses."""
        return self.table.as_published

    @property
    def published(self) -> str:
        """The figure as printed, empty where there is none."""
        return self.table.published.parameters if self.table.published else ""

    @property
    def published_in(self) -> str:
        """Table and work that the figure is from."""
        return self.table.published.source if self.table.published else ""

    @property
    def matches(self) -> bool | None:
        return self.table.matches

    def plain(self) -> dict[str, object]:
        """The row as plain data."""
        return {
            "name": self.name,
            "description": self.description,
            "recipe": self.source,
            "trained": self.trained,
            "as_published": self.as_published,
            "published": self.published or None,
            "published_in": self.published_in or None,
            "matches": self.matches,
        }


def method_table(files: Iterable[str | Path]) -> list[MethodRow]:
    """Count every recipe from its configs alone, in the order given. Cost: about a second a recipe, no weights.

    Raises: RecipeError for a faulty recipe, DehvfError where a base model's config is not at hand.
    """
    rows = []
    for file in files:
        recipe = load_recipe(file)
        rows.append(MethodRow(recipe.name, recipe.description, str(file), parameter_table(recipe.check(), recipe.published)))
    return rows


# Every size that was published, DEHVF and its ablations first: below the repository's root.
PUBLISHED = (
    "recipes/llama7b_clip.yaml",
    "recipes/llama13b_clip.yaml",
    "recipes/ablations/no_visual_prompts.yaml",
    "recipes/ablations/mean_weights.yaml",
    "recipes/ablations/penultimate_only.yaml",
    "recipes/ablations/keys_values_same.yaml",
    "recipes/ablations/keys_only.yaml",
    "recipes/ablations/values_only.yaml",
    "plugins/dehvf-kit-baselines/recipes/memvp_7b.yaml",
    "plugins/dehvf-kit-baselines/recipes/memvp_13b.yaml",
    "plugins/dehvf-kit-baselines/recipes/lavin_7b.yaml",
    "plugins/dehvf-kit-baselines/recipes/lavin_13b.yaml",
    "plugins/dehvf-kit-baselines/recipes/llama_adapter_7b.yaml",
    "plugins/dehvf-kit-baselines/recipes/llava_lora_7b.yaml",
)


def published_recipes(root: Path) -> Sequence[Path]:
    """The recipes of every published size. Raises: DehvfError where the repository's files are not below `root`."""
    files = [root / name for name in PUBLISHED]
    missing = [str(file) for file in files if not file.is_file()]
    if missing:
        raise DehvfError(f"these recipes are not there; name the repository's folder: {', '.join(missing)}")
    return files
