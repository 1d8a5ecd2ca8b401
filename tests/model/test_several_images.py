"""Several images in a row of text: the literal reference with as many times the slots, mixed batches, order, cost."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from data.small_sets import picture
from data.test_tokens import tokenizer
from helpers import literal_logits, pixels, randomise, tiny_decoder, tiny_model, tiny_recipe, tiny_vision, tokens, worst
from torch.utils.flop_counter import FlopCounterMode

from dehvf_kit import parse_recipe
from dehvf_kit.data.encoding import Collator, EncodedSamples
from dehvf_kit.data.samples import Sample
from dehvf_kit.errors import ShapeError
from dehvf_kit.evaluation.answers import answer
from dehvf_kit.model.builder import build
from dehvf_kit.model.features import FeatureStore
from dehvf_kit.model.model import DehvfModel

ROWS = [[0, 1], [], [1, 2, 0], [2]]
ORDER = {"graph": {"image_order": {"role": "position", "type": "image_order", "max_images": 4}}}


def model(form: str = "auto", order: bool = False, visual_in: tuple[str, ...] = ("key", "value")) -> DehvfModel:
    made = tiny_model(**(ORDER if order else {}))
    made.nodes["injector"].form, made.nodes["injector"].visual_in = form, visual_in
    return made


@pytest.mark.parametrize("order", [False, True])
@pytest.mark.parametrize(
    ("form", "visual_in"), [("factored", ("key", "value")), ("built", ("key", "value")), ("factored", ("value",))]
)
def test_k_images_equal_the_literal_reference_with_k_times_the_slots(form: str, visual_in: tuple[str, ...], order: bool) -> None:
    """Logits and gradients, of a batch of two, no, three and one images. Worst errors measured: 9.5e-7 and 7.2e-6."""
    made = tiny_model(**{"graph": {"injector": {"form": form, "visual_in": list(visual_in)}, **(ORDER["graph"] if order else {})}})
    features, text = made.vision_features(pixels()), tokens(4)
    logits = made(text, vision_features=features, image_index=ROWS).logits
    expected = literal_logits(made, tiny_decoder(), text, [[features[n] for n in row] or None for row in ROWS])
    assert worst(logits, expected) < 1e-5
    weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(5))
    trained = made.named_trainable_parameters()
    found = torch.autograd.grad((logits * weights).sum(), list(trained.values()), retain_graph=True)
    wanted = torch.autograd.grad((expected * weights).sum(), list(trained.values()))
    for name, ours, theirs in zip(trained, found, wanted, strict=True):
        scale = max(1.0, theirs.abs().max().item())
        assert worst(ours / scale, theirs / scale) < 1e-5, name


@pytest.mark.parametrize("order", [False, True])
def test_a_mixed_batch_equals_one_row_at_a_time(order: bool) -> None:
    made, text, shots = model(order=order), tokens(4), pixels()
    together = made(text, pixel_values=shots, image_index=ROWS).logits
    for number, row in enumerate(ROWS):
        images = {"pixel_values": shots[row], "image_index": [list(range(len(row)))]} if row else {}
        assert worst(together[number], made(text[number : number + 1], **images).logits[0]) < 1e-5, row
    kept = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
    said = made.generate(text, pixel_values=shots, image_index=ROWS, **kept)
    alone = made.generate(text[2:3], pixel_values=shots[ROWS[2]], image_index=[[0, 1, 2]], **kept)
    assert torch.equal(said[2], alone[0])
    beams = made.generate(text, pixel_values=shots, image_index=ROWS, num_beams=2, **kept)
    assert torch.equal(beams[2], made.generate(text[2:3], pixel_values=shots, image_index=[ROWS[2]], num_beams=2, **kept)[0])


def test_one_image_a_row_is_bit_identical_however_it_is_given() -> None:
    made, text, shots = model(), tokens(3), pixels()
    plain = made(text, pixel_values=shots[[2, 0]], has_image=[True, False, True]).logits
    assert torch.equal(plain, made(text, pixel_values=shots[[2, 0]], image_index=[[0], [], [1]]).logits)
    everywhere = made(text, pixel_values=shots).logits
    assert torch.equal(everywhere, made(text, pixel_values=shots, image_index=[[0], [1], [2]]).logits)


def test_an_order_is_read_and_begins_as_none() -> None:
    """The same images in another order: the same without an order embedding, and before it is trained."""
    made, text, shots = model(order=True), tokens(1), pixels(2)
    first, second = (made(text, pixel_values=shots, image_index=[row]).logits for row in ([0, 1], [1, 0]))
    assert worst(first, second) > 1e-3
    torch.nn.init.zeros_(made.nodes["image_order"].keys), torch.nn.init.zeros_(made.nodes["image_order"].values)
    blind = made(text, pixel_values=shots[:2], image_index=[[0, 1]]).logits
    assert worst(blind, made(text, pixel_values=shots, image_index=[[1, 0]]).logits) < 1e-5
    plain = model()
    plain.nodes.load_state_dict(made.nodes.state_dict(), strict=False)
    assert worst(plain(text, pixel_values=shots, image_index=[[0, 1]]).logits, blind) < 1e-5


def test_flops_are_linear_in_the_images() -> None:
    made, text, shots = model("factored"), tokens(1), pixels(4)
    made.vision_features(shots[:1])  # an encoder's first pass also probes its layers
    counts = []
    for images in (2, 3, 4):
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            made(text, pixel_values=shots[:images], image_index=[list(range(images))])
        counts.append(counter.get_total_flops())
    assert counts[2] - counts[1] == counts[1] - counts[0] > 0
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        made(text, pixel_values=shots[:1])
    assert counts[1] - counts[0] == counts[0] - counter.get_total_flops()


def test_what_cannot_be_read_is_refused() -> None:
    made, text, shots = model(order=True), tokens(2), pixels()
    with pytest.raises(ShapeError, match="5 images in a row; the order table has numbers for 4"):
        made(text, pixel_values=shots, image_index=[[0, 1, 2, 0, 1], []])
    with pytest.raises(ShapeError, match="wants a row for each of 2 rows of text"):
        made(text, pixel_values=shots[:2], image_index=[[0, 1]])
    assert made.one_image_nodes == []
    made.graph.wires["injector"].pop("text_row")
    with pytest.raises(ShapeError, match=r"several images in a row of text, of which injector \(ffn_memory\) can read one"):
        made(text, pixel_values=shots[:2], image_index=[[0, 1], []])
    with pytest.raises(ShapeError, match="3 images were given, and image_index names 2 of them"):
        made(text, pixel_values=shots, image_index=[[0, 1], []])


def test_training_batches_cached_features_and_questions_agree(tmp_path: Path) -> None:
    """Rows with three, no and one image, one of them shared: the same loss and answers from pixels and from kept features."""
    recipe = tiny_recipe(data={"type": "jsonl", "prompt": {"question": "{question}", "answer": "{answer}"}})
    graph = {name: node for name, node in recipe.resolved()["graph"].items() if name != "vision_adapter"}
    recipe = parse_recipe({**recipe.resolved(), "graph": graph})
    made = build(recipe, decoder=tiny_decoder(), vision=tiny_vision(), tokenizer=tokenizer())
    randomise(made.nodes)
    files = [picture(tmp_path / f"{colour}.png", colour) for colour in ("red", "green", "blue")]
    samples = [
        Sample("a", "what colour is it ?", "red", files[0], further_images=(files[1], files[2])),
        Sample("b", "what ?", "blue"),
        Sample("c", "is it ?", "white", files[1]),
    ]
    store = FeatureStore(made)
    assert store.fill(samples) == 3
    losses, collate = [], Collator(0)
    for features in (None, store):
        encoded = EncodedSamples(samples, made.processor, recipe.data.prompt, 16, features=features)
        batch = collate([encoded[place] for place in range(3)])
        assert batch["image_index"].tolist() == [[0, 1, 2], [-1, -1, -1], [1, -1, -1]]
        losses.append(made(**batch).loss.item())
    assert abs(losses[0] - losses[1]) < 1e-5
    kept = {"max_new_tokens": 3}
    said = [one.prediction for one in answer(made, samples, 3, **kept)]
    assert said == [one.prediction for sample in samples for one in answer(made, [sample], 1, store, **kept)]
