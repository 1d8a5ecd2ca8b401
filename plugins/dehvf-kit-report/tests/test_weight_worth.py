"""The fuser's weights replaced: by their own nothing changes, by the others exactly what the name says."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from dehvf_kit_report import weight_worth as module
from dehvf_kit_report.inside import look_inside
from dehvf_kit_report.weight_worth import REPLACEMENTS, _replacements, _ring, _weights, paired, replaced, weight_worth
from dehvf_kit_report.worth_section import worth_sections

import dehvf_kit
from dehvf_kit.api.shapes import GroupLayers
from dehvf_kit.errors import DataError, DehvfError
from dehvf_kit.evaluation.answers import answer
from dehvf_kit.model.features import FeatureStore
from dehvf_kit.model.model import DehvfModel


@pytest.fixture(scope="module")
def model(run: Path) -> DehvfModel:
    return dehvf_kit.load(run / "adapter")


@pytest.fixture(scope="module")
def samples(model: DehvfModel) -> list:
    return list(model.recipe.data.samples("test"))


@pytest.fixture(scope="module")
def store(model: DehvfModel, samples: list) -> FeatureStore:
    found = FeatureStore(model)
    found.fill(samples)
    return found


def levels() -> GroupLayers:
    """Two groups of three and two layers; decoder layers 0 and 1 read the first, 2 the second."""
    mask = torch.tensor([[True, True, True], [True, True, False]])
    return GroupLayers(torch.tensor([[0, 1, 2], [3, 4, 3]]), mask, torch.tensor([0, 0, 1]), torch.tensor([0, 1, 2]), 2, False)


def test_every_replacement_is_what_its_name_says() -> None:
    weights = torch.zeros(2, 3, 2, 3)
    weights[:, 0] = torch.tensor([0.5, 0.25, 0.25])
    weights[:, 1] = torch.tensor([0.0, 0.75, 0.25])
    weights[:, 2] = torch.tensor([0.25, 0.75, 0.0])
    weights[1, 0, 0] = torch.tensor([0.0, 0.0, 1.0])
    found = _replacements(weights, levels())
    assert set(found) == set(REPLACEMENTS) and torch.equal(found["own"], weights)
    assert all(torch.equal(one.sum(-1), torch.ones(2, 3, 2)) for name, one in found.items() if name != "uniform")
    assert found["images"][:, 0, 0].tolist() == [[0.25, 0.125, 0.625]] * 2  # of both images
    assert found["layers"][0, 0, 0].tolist() == found["layers"][0, 1, 0].tolist() == [0.25, 0.5, 0.25]
    assert found["layers"][0, 2, 0].tolist() == [0.25, 0.75, 0.0]  # alone in its group
    assert found["kv"][1, 0, 1].tolist() == found["kv"][1, 0, 0].tolist() == [0.25, 0.125, 0.625]
    assert found["uniform"][0, 2, 0].tolist() == [0.5, 0.5, 0.0]  # the missing place stays empty
    assert found["largest"][0, 1, 0].tolist() == [0.0, 1.0, 0.0]
    assert torch.equal(found["other"], weights.flip(0))
    assert all(other != image for image, other in enumerate(_ring(7))) and sorted(_ring(7)) == list(range(7))


def test_its_own_weights_leave_the_logits_bit_identical_and_others_do_not(
    model: DehvfModel, samples: list, store: FeatureStore
) -> None:
    images = samples[:4]
    weights, found = _weights(model, images, store, 4)
    text = model.processor(text=[one.question for one in images], padding=True, return_tensors="pt")
    given = {"vision_features": torch.cat([store.read(one) for one in images]), **text}
    with torch.no_grad():
        plain = model(**given).logits
        with replaced(model.nodes["fuser"], weights):
            assert torch.equal(model(**given).logits, plain)
        with replaced(model.nodes["fuser"], _replacements(weights, found)["largest"]):
            assert not torch.equal(model(**given).logits, plain)
        assert torch.equal(model(**given).logits, plain)  # nothing stays behind


def test_accuracy_as_trained_is_that_of_eval(model: DehvfModel, samples: list, store: FeatureStore) -> None:
    found = weight_worth(model, samples, store)
    rights = [one.right for one in answer(model, samples, 32, store)]
    own = found.scores["own"]
    assert own["all"].accuracy == sum(rights) / len(rights) and own["all"].questions == len(samples) == found.questions
    assert set(own) == {"all", *(one.kind for one in samples if one.kind)}
    assert all(score.lost == 0 and score.half > 0 for score in own.values())
    for name, scores in found.scores.items():
        assert scores["all"].accuracy == pytest.approx(own["all"].accuracy - scores["all"].lost), name
    assert found.as_dict()["scores"]["other"]["all"]["questions"] == len(samples)


def test_every_question_has_the_weights_of_its_own_image(
    model: DehvfModel, samples: list, store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Long words may be few tokens, and two questions may share an image: neither may move a row's weights to another row."""
    words = ["colour colour colour", "it ? it ? it ?", "is it is it is it ?", "what colour ?"]
    # Image 0 is asked about in 3 and 6 tokens, image 1 in 6 alone: `answer` would sort a batch of both lengths anew.
    which = [(0, 0), (1, 1), (0, 1), (2, 2), (3, 3), (1, 2), (2, 0), (3, 1), (0, 3), (1, 3), (2, 1), (3, 0)]
    asked = [replace(samples[image], id=str(row), question=words[word]) for row, (image, word) in enumerate(which)]
    weights, _ = _weights(model, samples[:4], store, 4)
    assert (weights[1:] - weights[:1]).abs().amax((1, 2, 3)).min() > 1e-4, "the images' weights can be told apart"
    monkeypatch.setattr(module, "_replacements", lambda weights, _: dict.fromkeys(REPLACEMENTS, weights))
    worst: list[float] = []

    @contextlib.contextmanager
    def compared(fuser: torch.nn.Module, weights: torch.Tensor | None) -> Iterator[None]:
        hook = lambda _, given, output: worst.append(0.0 if weights is None else float((output[1] - weights).abs().max()))  # noqa: E731
        handle = fuser.register_forward_hook(hook)
        yield
        handle.remove()

    monkeypatch.setattr(module, "replaced", compared)
    for size in (None, 5, 7):
        weight_worth(model, asked, store, size)
    assert max(worst) < 1e-6


def test_the_interval_of_a_paired_difference() -> None:
    """Agresti and Min by hand for 100 questions about 100 images, 15 lost and 5 won."""
    mean, half = paired([1] * 15 + [-1] * 5 + [0] * 80, range(100))
    by_hand = 1.959964 * (20 - 100 * 0.1**2 + 1) ** 0.5 / 102
    assert mean == pytest.approx(0.1) and half == pytest.approx(by_hand)
    assert paired([1] * 15 + [-1] * 5 + [0] * 80, [row // 5 for row in range(100)])[1] > half  # fewer images say less
    assert paired([0] * 50, range(50)) == (0, pytest.approx(1.959964 / 52))


def test_what_cannot_be_replaced_is_told(model: DehvfModel, samples: list, world: Path) -> None:
    with pytest.raises(DataError, match="1 images among the questions"):
        weight_worth(model, samples[:1])
    blind = dehvf_kit.build(world / "tiny.yaml", overrides=["graph.fuser.type=mean", "graph.layer_query=null"])
    with pytest.raises(DehvfError, match="'mean' has no parameters"):
        weight_worth(blind, samples)
    inside = look_inside(blind, samples, 2, 1, worth=4)
    assert inside.worth is None and "has no parameters" in worth_sections(inside)[0].body
    assert worth_sections(look_inside(blind, samples, 2, 1)) == []
