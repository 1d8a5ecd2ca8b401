"""The prompt names the place of its question and of its answer."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from dehvf_kit.data.samples import DataConfig, PromptConfig


def test_defaults_hold_their_places():
    prompt = PromptConfig()
    assert "{question}" in prompt.question and "{answer}" in prompt.answer


@pytest.mark.parametrize("field", ["question", "answer"])
@pytest.mark.parametrize("text", ["", "Answer:", "{other}", "{0}{0}", "{{{0}}}{0}"])
def test_a_prompt_without_its_place_is_refused(field, text):
    text = text.replace("0", field)
    with pytest.raises(ValidationError, match=f"wants `{{{field}}}` in it once, where the {field} goes"):
        PromptConfig(**{field: text})


def test_the_parent_yields_nothing():
    with pytest.raises(NotImplementedError, match="DataConfig.samples"):
        DataConfig().samples("train")
