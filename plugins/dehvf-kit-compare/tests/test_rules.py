"""The rules of a fair comparison: identical data and budget, one grid, and a validation part that no run trains on."""

from __future__ import annotations

from pathlib import Path

import pytest
from dehvf_kit_compare.job import HoldOut
from dehvf_kit_compare.rules import Search, Tuning, hold_out, require_identical_budget

from dehvf_kit.data.samples import Sample
from dehvf_kit.errors import DehvfError
from dehvf_kit.recipe.recipe import load_recipe


def samples(pictures: int, each: int) -> list[Sample]:
    return [
        Sample(f"{picture}-{number}", "what ?", "red", Path(f"{picture}.png"))
        for picture in range(pictures)
        for number in range(each)
    ]


def test_every_recipe_gets_its_own_rate_times_the_same_factors() -> None:
    assert Tuning().grid(0.05) == [0.0125, 0.025, 0.05, 0.1, 0.2]
    assert Tuning(factors=(4.0, 1.0)).grid(0.009) == [0.009, 0.036]


def test_absolute_rates_are_the_same_for_all() -> None:
    tuning = Tuning(rates=(0.1, 0.01))
    assert tuning.grid(0.05) == tuning.grid(7.0) == [0.01, 0.1]
    assert "base learning rates 0.1, 0.01" in tuning.words()


@pytest.mark.parametrize(
    ("scores", "best"),
    [
        ([(1, 0.1), (2, 0.9), (3, 0.2)], 2),
        ([(1, 0.1), (2, 0.2), (3, 0.9)], 3),
        ([(1, 0.5), (2, 0.5), (3, 0.5)], 2),
        ([(1, 0.5), (2, 0.4), (3, 0.4), (4, 0.5), (5, 0.3)], 4),
        ([(1, 0.5)], 1),
    ],
)
def test_the_best_value_wins_and_of_equals_the_middle_one(scores: list[tuple[float, float]], best: float) -> None:
    assert Search(7.0, scores).best == best


def test_without_a_trial_the_recipes_own_value_stands() -> None:
    assert Search(7.0).best == 7.0 and not Search(7.0).at_the_edge and Search(7.0).beyond() == []


@pytest.mark.parametrize(
    ("scores", "beyond"),
    [
        ([(1, 0.9), (2, 0.1), (4, 0.1)], [0.5]),
        ([(1, 0.1), (2, 0.1), (6, 0.9)], [18.0]),
        ([(1, 0.1), (2, 0.9), (4, 0.1)], []),
        ([(1, 0.1), (2, 0.9)], []),
    ],
)
def test_a_grid_goes_on_beyond_an_edge_that_is_best(scores: list[tuple[float, float]], beyond: list[float]) -> None:
    search = Search(7.0)
    for value, score in reversed(scores):
        search.add(value, score)
    assert search.tried == scores and search.beyond() == beyond and search.at_the_edge == bool(beyond)


def test_whole_pictures_are_held_out() -> None:
    everything = samples(20, 3)
    rest, part = hold_out(everything, HoldOut(0.25, 500))
    assert {one.image for one in rest}.isdisjoint({one.image for one in part})
    assert sorted(one.id for one in [*rest, *part]) == sorted(one.id for one in everything)
    assert len({one.image for one in part}) == 5
    assert hold_out(everything, HoldOut(0.25, 500)) == (rest, part)
    assert part != everything[:15]


def test_samples_that_share_any_image_stay_together() -> None:
    pair = [Sample(f"{n}", "what ?", "red", Path(f"{n}.png"), further_images=(Path(f"{n + n % 2 * 10}.png"),)) for n in range(20)]
    rest, part = hold_out(pair, HoldOut(0.5, 500))
    assert part and {image for one in rest for image in one.images}.isdisjoint(image for one in part for image in one.images)


def test_the_part_has_no_more_questions_than_wanted() -> None:
    _, part = hold_out(samples(20, 3), HoldOut(0.5, 10))
    assert len(part) == 9


def test_samples_without_a_picture_are_held_out_one_by_one() -> None:
    blind = [Sample(str(number), "what ?", "red") for number in range(10)]
    rest, part = hold_out(blind, HoldOut(0.3, 500))
    assert (len(rest), len(part)) == (7, 3)


@pytest.mark.parametrize(("pictures", "part"), [(1, HoldOut(0.9, 500)), (20, HoldOut(0.01, 500)), (20, HoldOut(0.5, 2))])
def test_a_part_that_leaves_nothing_is_refused(pictures: int, part: HoldOut) -> None:
    with pytest.raises(DehvfError, match="change --validation"):
        hold_out(samples(pictures, 3), part)


def test_recipes_with_identical_budget_pass(recipes: list[Path]) -> None:
    require_identical_budget([load_recipe(file) for file in recipes])


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("training.epochs=3", "training.epochs is 3.0, in "),
        ("training.max_steps=7", "training.max_steps is 7, in "),
        ("training.batch_size=2", "training.batch_size is 2, in "),
        ("data.prompt.question=Q {question}", "data.prompt.question is 'Q {question}', in "),
        ("data.test=other.jsonl", "data.test is 'other.jsonl', in "),
        ("vision.image.size=16", "vision.image.size is 16, in "),
        ("decoder.dtype=bfloat16", "decoder.dtype is 'bfloat16', in "),
        ("generation.max_new_tokens=5", "generation.max_new_tokens is 5, in "),
    ],
)
def test_a_difference_is_refused_with_field_and_recipe(recipes: list[Path], override: str, says: str) -> None:
    one, other = load_recipe(recipes[0]), load_recipe(recipes[1], [override])
    with pytest.raises(DehvfError) as error:
        require_identical_budget([one, other])
    assert f"{recipes[1]}: {says}{recipes[0]}" in str(error.value)
    assert len(str(error.value).splitlines()) == 2
    require_identical_budget([one, other], [override.partition("=")[0]])
    require_identical_budget([one, other], [override.split(".")[0]])


def test_every_difference_is_named_at_once(recipes: list[Path]) -> None:
    others = [load_recipe(recipes[1], ["training.epochs=3", "vision.image.size=16"]), load_recipe(recipes[1])]
    with pytest.raises(DehvfError) as error:
        require_identical_budget([load_recipe(recipes[0]), *others], ["trainning"])
    lines = str(error.value).splitlines()
    assert len(lines) == 4 and lines[0].startswith("--allow trainning: no such field")


def test_what_a_method_may_choose_for_itself(recipes: list[Path]) -> None:
    own = [
        "training.base_learning_rate=0.3",
        "training.weight_decay=0",
        "training.cache_features=false",
        "vision.apply_post_norm=false",
    ]
    require_identical_budget([load_recipe(recipes[0]), load_recipe(recipes[1], own)])
