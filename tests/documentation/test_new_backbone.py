"""The plugin of docs/new_backbone.md says in a line what a recipe asks of it in vain."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from documentation.blocks import ROOT, blocks
from pydantic import ValidationError

from dehvf_kit.errors import DehvfError


@pytest.fixture(scope="module")
def config() -> Any:
    names: dict[str, Any] = {"__name__": "page"}
    plugin = next(block for block in blocks(ROOT / "docs" / "new_backbone.md") if block.language == "python")
    assert len(plugin.text.splitlines()) < 40
    exec(compile(plugin.text, str(plugin), "exec", dont_inherit=True), names)
    return names["TorchvisionVitConfig"]


def test_a_size_that_patches_do_not_divide_is_refused(config: Any) -> None:
    with pytest.raises(DehvfError, match="^vit_b_16 wants an image.size that 16 divides, given 200$"):
        config(image={"size": 200}).spec({})
    assert config(image={"size": 32}).spec({}).num_patches == 4


@pytest.mark.parametrize("given", [None, "nowhere.pt"])
def test_weights_that_are_not_there_are_asked_for(config: Any, given: str | None, tmp_path: Path) -> None:
    file = None if given is None else tmp_path / given
    with pytest.raises(DehvfError, match="^vision.checkpoint: give a file with vit_b_16's weights"):
        config(checkpoint=file).load({})


@pytest.mark.parametrize("field", [{"model": "resnet18"}, {"revision": "main"}, {"config": {"model_type": "clip"}}])
def test_what_means_nothing_to_it_is_refused(config: Any, field: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(field))):
        config(**field)
