"""Answers in pieces and the weights of one picture, without the page."""

from __future__ import annotations

from pathlib import Path
from threading import Event
from typing import Any

import pytest
import torch
from bad_files.ground import HANDLED, Case, Ground
from bad_files.image_cases import IMAGES
from chat_helpers import NEW_TOKENS, save, uploaded
from dehvf_kit_chat.answering import MAX_CHARACTERS, Answerer, Turn, load_answerer
from dehvf_kit_chat.depth_panel import depth_panel
from dehvf_kit_chat.uploads import Upload
from dehvf_kit_report.fuser_weights import EncodedImages, read_layers
from helpers import LAYERS, VISION_LAYERS

from dehvf_kit.data.samples import Sample
from dehvf_kit.errors import AdapterError, DataError, ImageError
from dehvf_kit.evaluation.answers import answer

QUESTION = "what colour is it ?"


@pytest.fixture(scope="module")
def seeing(adapter: Path) -> Answerer:
    return load_answerer(adapter)


@pytest.fixture(scope="module")
def unseeing(blind: Path) -> Answerer:
    return load_answerer(blind)


@pytest.fixture
def red(world: Path) -> Upload:
    return uploaded(world / "train0.png")


def whole(answerer: Answerer, picture: Upload | None) -> str:
    """What `eval` and `generate` print."""
    (found,) = answer(answerer.model, [Sample("one", QUESTION, "", picture)], num_beams=1)
    return found.prediction


@pytest.mark.parametrize("pictured", [True, False])
def test_the_pieces_grow_to_the_answer_that_generate_gives(seeing: Answerer, red: Upload, pictured: bool) -> None:
    picture = red if pictured else None
    first, *turns = seeing.answer(QUESTION, [picture] if picture else [])
    texts = [turn.answer for turn in turns]
    assert first.answer == "" and len(texts) > 3, "it comes in pieces"
    assert all(later.startswith(sooner) for sooner, later in zip(texts, texts[1:], strict=False))
    assert texts[-1] == whole(seeing, picture) != ""


def test_it_says_what_it_was_trained_on_and_can_be_asked(seeing: Answerer, unseeing: Answerer, world: Path) -> None:
    trained, form, asked = seeing.about
    assert trained == f"Trained on: jsonl, {world}/train.jsonl" and form == "Asked as: ..."
    assert asked.startswith("It reads one image or several with each question. A question may have ")
    assert unseeing.about[-1].startswith("It reads no images.")


def test_the_weights_are_those_of_this_picture(seeing: Answerer, red: Upload, world: Path) -> None:
    """Rows sum to one within 1e-6: eight float32 weights of a softmax (worst seen 1.2e-7)."""
    ((name, found),) = next(seeing.answer(QUESTION, [red])).depths
    assert name == "train0.png" and found.images == 1
    weights = found.weights.weights
    assert weights.shape == (LAYERS, 2, VISION_LAYERS)
    assert found.weights.labels == [str(number + 1) for number in range(VISION_LAYERS)]
    assert torch.allclose(weights.sum(-1), torch.ones(LAYERS, 2), atol=1e-6)
    alone = read_layers(seeing.model, [Sample("one", "", "", red)], EncodedImages(seeing.model))
    assert alone is not None and torch.equal(weights, alone.weights.weights)
    ((_, other),) = next(seeing.answer(QUESTION, [uploaded(world / "train1.png")])).depths
    assert other is not None and not torch.allclose(weights, other.weights.weights, atol=1e-4)


def test_the_panel_draws_a_cell_for_every_layer_that_may_be_read(seeing: Answerer, red: Upload) -> None:
    turn = next(seeing.answer(QUESTION, [red]))
    ((_, found),) = turn.depths
    drawn = depth_panel(turn)
    read = sum(len(found.members[group]) for group in found.group_of_layer)
    assert drawn.count("<rect") == 2 * read, "keys and values"
    assert "memory keys" in drawn and "memory values" in drawn
    assert f"layer {LAYERS}, {VISION_LAYERS}: {found.weights.weights[-1, 0, -1]:.3f}" in drawn


def test_why_there_are_no_weights(seeing: Answerer, unseeing: Answerer, red: Upload) -> None:
    assert next(seeing.answer(QUESTION, [])).why == "No image was asked about."
    first, *_, last = unseeing.answer(QUESTION, [red])
    assert not first.depths and first.why == "This graph reads no image."
    assert last.answer == whole(unseeing, red)
    assert "This graph reads no image." in depth_panel(first)
    assert "&lt;b&gt;" in depth_panel(Turn("", why="<b>"))


def test_a_baseline_without_a_fuser_answers_too(world: Path, tmp_path: Path, red: Upload) -> None:
    """Tokens in the input and LoRA: nothing of DEHVF's graph is left."""
    pytest.importorskip("dehvf_kit_baselines")
    nodes = [
        *(f"graph.{node}=null" for node in ("grouper", "layer_query", "fuser", "position", "injector")),
        "graph.reader={type: patch_tokens, layer: -2}",
        "graph.projector={type: bottleneck_mlp, bottleneck_size: 8, inputs: {patches: reader}}",
        "graph.visual_tokens={type: visual_tokens}",
        "graph.lora={role: decoder_adapter, type: lora, rank: 3}",
    ]
    baseline = load_answerer(save(world, tmp_path / "llava", *nodes))
    first, *turns = baseline.answer(QUESTION, [red])
    assert not first.depths and first.why.startswith("This graph has no fuser")
    assert turns[-1].answer == whole(baseline, red) != ""


def test_beams_are_left_out_where_the_answer_is_streamed(adapter: Path, red: Upload) -> None:
    beams = load_answerer(adapter, ["generation.num_beams=3"])
    *_, last = beams.answer(QUESTION, [red])
    assert last.answer == whole(beams, red)


def test_a_temperature_samples(seeing: Answerer, red: Upload) -> None:
    torch.manual_seed(0)
    answers = {list(seeing.answer(QUESTION, [red], 2.0))[-1].answer for _ in range(4)}
    assert len(answers) > 1
    assert len({list(seeing.answer(QUESTION, [red], 0.0))[-1].answer for _ in range(2)}) == 1
    with pytest.raises(DataError, match="the temperature is 3.0; 0 to 2 would do"):
        list(seeing.answer(QUESTION, [red], 3.0))


def test_the_recipes_temperature_is_where_the_page_begins(adapter: Path, seeing: Answerer) -> None:
    assert seeing.temperature == 0
    assert load_answerer(adapter, ["generation.do_sample=true", "generation.temperature=0.7"]).temperature == 0.7


@pytest.mark.parametrize("bad", [case for case in IMAGES if not case.needs], ids=lambda case: case.name)
def test_every_kind_of_bad_image(bad: Case, seeing: Answerer, world: Path, adapter: Path, tmp_path: Path) -> None:
    """The kit's reader, with the name that the owner knows."""
    file = Path(str(bad.make(Ground(tmp_path, world, adapter))[1]))
    if not file.is_file():
        pytest.skip("not a file that can be uploaded")
    if bad.outcome == HANDLED:
        assert all(turn.depths for turn in seeing.answer(QUESTION, [uploaded(file)]))
        return
    with pytest.raises(ImageError) as refused:
        next(seeing.answer(QUESTION, [uploaded(file)]))
    assert f"'{file.name}' cannot be read: " in str(refused.value)
    assert str(tmp_path) not in str(refused.value)


@pytest.mark.parametrize(
    ("question", "says"),
    [(" \n", "the question is empty"), ("x" * (MAX_CHARACTERS + 1), "the question has 20,001 characters; 20,000 are read at most")],
)
def test_questions_that_are_not_asked(seeing: Answerer, red: Upload, question: str, says: str) -> None:
    with pytest.raises(DataError, match=says):
        next(seeing.answer(question, [red]))


def test_scores_that_are_not_finite_end_the_answer(seeing: Answerer, red: Upload) -> None:
    def spoil(module: object, inputs: object, output: Any) -> None:
        output.logits[:, -1, 3] = torch.nan

    hook = seeing.model.decoder.register_forward_hook(spoil)
    try:
        with pytest.raises(DataError, match="scores of the next token are not finite"):
            list(seeing.answer(QUESTION, [red]))
    finally:
        hook.remove()
    assert list(seeing.answer(QUESTION, [red]))[-1].answer == whole(seeing, red), "nothing stays behind"


def test_a_question_beyond_the_decoders_positions_is_cut_as_in_training_and_said(
    seeing: Answerer, red: Upload, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dehvf_kit.data.tokens.text_positions", lambda graph: 32)
    fits = "what " * (32 - NEW_TOKENS)
    within = list(seeing.answer(fits, [red]))[-1]
    cut = list(seeing.answer(f"red green {fits}", [red]))
    assert within.note == "" and cut[-1].answer == within.answer
    assert all("lost 2 tokens at its beginning" in turn.note for turn in cut)


def test_closing_the_answer_ends_the_generation(seeing: Answerer, red: Upload) -> None:
    """The decoder waits before its fourth token until the answer is closed, and makes none after that."""
    passes, closed = [0], Event()

    def slow(*_: object) -> None:
        passes[0] += 1
        if passes[0] > 3:
            assert closed.wait(20)

    hook = seeing.model.decoder.register_forward_pre_hook(slow)
    turns = seeing.answer(QUESTION, [red])
    next(turns), next(turns)
    turns.close()
    closed.set()
    assert seeing.idle(20)
    hook.remove()
    assert passes[0] <= 4 < NEW_TOKENS
    assert list(seeing.answer(QUESTION, [red]))[-1].answer == whole(seeing, red)


def test_what_goes_wrong_inside_is_raised_outside(seeing: Answerer, red: Upload) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("out of something")

    hook = seeing.model.decoder.register_forward_pre_hook(broken)
    with pytest.raises(RuntimeError, match="out of something"):
        list(seeing.answer(QUESTION, [red]))
    hook.remove()
    assert list(seeing.answer(QUESTION, [red]))[-1].answer == whole(seeing, red)


def test_what_is_no_adapter(tmp_path: Path) -> None:
    with pytest.raises(AdapterError):
        load_answerer(tmp_path)


def test_several_images_are_read_and_weighed_one_by_one(seeing: Answerer, red: Upload, world: Path) -> None:
    green = uploaded(world / "train1.png")
    first, *_, last = seeing.answer(QUESTION, [red, green])
    (found,) = answer(seeing.model, [Sample("two", QUESTION, "", red, further_images=(green,))], num_beams=1)
    assert last.answer == found.prediction
    assert [name for name, _ in first.depths] == ["train0.png", "train1.png"]
    for image, (_, read) in zip((red, green), first.depths, strict=True):
        ((_, alone),) = next(seeing.answer(QUESTION, [image])).depths
        assert torch.equal(read.weights.weights, alone.weights.weights)
    drawn = depth_panel(first)
    assert "read for train0.png" in drawn and "read for train1.png" in drawn


def test_a_conversation_is_rendered_as_training_does(world: Path, tmp_path: Path, red: Upload, seeing: Answerer) -> None:
    template = "{% for m in messages %}{{ m.role }} : {{ m.content }} {% endfor %}"
    template += "{% if add_generation_prompt %}assistant :{% endif %}"
    chatting = load_answerer(save(world, tmp_path / "chatting"), ["data.prompt.chat=true"])
    chatting.model.processor.tokenizer.chat_template = template
    assert chatting.converses and not seeing.converses
    earlier = [("what is it ?", "red")]
    sample = chatting._sample("what colour ?", [red], earlier)
    assert chatting.model.processor.with_prompt(sample.asked) == (
        "user : what is it ? assistant : red user : what colour ? assistant :"
    )
    assert sample.images == (red,)
    *_, last = chatting.answer("what colour ?", [red], 0.0, earlier)
    (found,) = answer(chatting.model, [sample], num_beams=1)
    assert last.answer == found.prediction
    *_, alone = seeing.answer(QUESTION, [red], 0.0, earlier)
    assert alone.answer == whole(seeing, red), "an adapter that was not trained on conversations answers each question on its own"
    with pytest.raises(DataError, match="begin a new one"):
        next(chatting.answer("what ?", [], 0.0, [("what ?", "red" * MAX_CHARACTERS)]))
