"""Ways of decoding that run a second pass: assistants, guidance, continuous batching."""

from __future__ import annotations

import logging

import pytest
import torch
from helpers import HIDDEN, LAYERS, VOCAB, pixels, tiny_decoder, tiny_model, tokens
from transformers import DynamicCache

from dehvf_kit.errors import DehvfError
from dehvf_kit.model.model import DehvfModel

GREEDY = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False, "pad_token_id": 0}


@pytest.fixture(scope="module")
def model() -> DehvfModel:
    return tiny_model()


def test_a_model_answers_for_its_decoder_s_sizes_and_saves_none_of_them(model: DehvfModel) -> None:
    config = model.config
    assert config.get_text_config(decoder=True) is model.decoder.config
    assert (config.vocab_size, config.hidden_size, config.num_hidden_layers) == (VOCAB, HIDDEN, LAYERS)
    assert len(DynamicCache(config=config.get_text_config()).layers) == LAYERS
    assert "vocab_size" not in config.to_dict() and "_decoder_config" not in config.to_json_string(use_diff=False)
    assert not hasattr(config, "nothing") and not hasattr(type(config)(), "vocab_size")


def test_as_an_assistant_it_changes_no_greedy_answer(model: DehvfModel) -> None:
    ids, images = tokens(1), pixels(1)
    plain = tiny_decoder(seed=5)
    assert torch.equal(plain.generate(ids, assistant_model=model, **GREEDY), plain.generate(ids, **GREEDY))
    other = tiny_model(decoder=tiny_decoder(seed=5))
    expected = other.generate(ids, pixel_values=images, **GREEDY)
    assert torch.equal(other.generate(ids, pixel_values=images, assistant_model=model, **GREEDY), expected)
    assert torch.equal(other.generate(ids, pixel_values=images, assistant_model=plain, **GREEDY), expected)


def test_an_assistant_with_the_same_weights_drafts_with_the_image(model: DehvfModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its drafts are all accepted, so the decoder itself runs fewer passes than there are tokens."""
    ids, images, twin = tokens(1), pixels(1), tiny_model()
    passes: list[int] = []
    handle = twin.decoder.register_forward_pre_hook(lambda module, args: passes.append(1))
    assistant = model.decoder.generation_config
    monkeypatch.setattr(assistant, "num_assistant_tokens", 3)
    monkeypatch.setattr(assistant, "assistant_confidence_threshold", 0.0)
    twin.generate(ids, pixel_values=images, assistant_model=model, **GREEDY)
    handle.remove()
    assert len(passes) == 1


@torch.no_grad()
def test_guidance_goes_away_from_the_answer_without_the_image(model: DehvfModel) -> None:
    ids, images, scale = tokens(2), pixels(2), 3.0
    once = {"max_new_tokens": 1, "return_dict_in_generate": True, "output_scores": True, "pad_token_id": 0}
    given = model.generate(ids, pixel_values=images, guidance_scale=scale, negative_prompt_ids=ids, do_sample=False, **once)
    seen, blind = (torch.log_softmax(logits[:, -1], -1) for logits in (model(ids, pixel_values=images).logits, model(ids).logits))
    assert (seen - blind).abs().max() > 1e-2
    # float32's rounding of the same sums in another order: 4e-6 seen
    assert torch.allclose(given.scores[0], blind + scale * (seen - blind), atol=1e-4)


@pytest.mark.parametrize("rows", [1, 2])
def test_a_quantised_cache_is_warned_of_where_rows_share_it(
    model: DehvfModel, rows: int, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The decoder's own `generate` is left out: the cache's backends are other packages."""
    given: list[object] = []
    monkeypatch.setattr(
        model.decoder, "generate", lambda **settings: given.append(settings["generation_config"].cache_implementation)
    )
    with caplog.at_level(logging.WARNING, "dehvf_kit"):
        model.generate(tokens(rows), pixel_values=pixels(rows), cache_implementation="quantized")
    assert given == ["quantized"]
    assert ("can depend on the rows beside it" in caplog.text) == (rows > 1)


@torch.no_grad()
def test_guidance_over_several_tokens_is_worked_out_apart(model: DehvfModel) -> None:
    """Each step's scores from two passes without a cache, one with the image and one without."""
    ids, images, scale = tokens(2), pixels(2), 2.0
    asked = {"max_new_tokens": 3, "do_sample": False, "pad_token_id": 0, "return_dict_in_generate": True, "output_scores": True}
    mask = torch.ones_like(ids)
    found = model.generate(ids, pixel_values=images, attention_mask=mask, guidance_scale=scale, negative_prompt_ids=ids, **asked)
    for step, scores in enumerate(found.scores):
        so_far = found.sequences[:, : ids.shape[1] + step]
        logits = model(so_far, pixel_values=images).logits, model(so_far).logits
        seen, blind = (torch.log_softmax(one[:, -1], -1) for one in logits)
        assert torch.allclose(scores, blind + scale * (seen - blind), atol=1e-4)


def test_continuous_batching_is_refused_by_name(model: DehvfModel) -> None:
    for call in (model.generate_batch, model.init_continuous_batching, model.continuous_batching_context_manager):
        with pytest.raises(DehvfError, match="continuous batching.*one row for each question"):
            call([[1, 2, 3]])
    with pytest.raises(DehvfError, match="continuous batching"):
        model.generate(tokens(1), cache_implementation="paged")
