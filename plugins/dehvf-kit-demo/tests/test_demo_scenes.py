"""The composed scenes: balanced, seeded, held-out drawings unseen in training."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from dehvf_kit_demo.data import DrawingsDataConfig
from dehvf_kit_demo.scenes import COLOURS, COUNTS, KINDS, SIDES, TEXTURES, SceneSettings, compose, drawings, render
from dehvf_kit_demo.wheels import EMOJI_NAMES, TWEMOJI
from PIL import Image, ImageChops
from pydantic import ValidationError

from dehvf_kit.errors import DehvfError


@pytest.fixture(autouse=True)
def wheels() -> None:
    try:
        TWEMOJI.folder(), EMOJI_NAMES.folder()
    except DehvfError as error:
        pytest.skip(str(error))


def settings(split: str, scenes: int, seed: int = 0) -> SceneSettings:
    return SceneSettings(split, scenes, 168, (40, 56), seed)  # type: ignore[arg-type]


def test_halves_share_no_drawing_and_no_family() -> None:
    training, held_out = drawings()
    assert set(training) == set(held_out) == set(KINDS)
    codes = [{one.code for part in half.values() for one in part} for half in (training, held_out)]
    assert not codes[0] & codes[1] and min(len(part) for half in (training, held_out) for part in half.values()) >= 10
    # Astronauts of every gender are on one side: a training half with one of them would show the others too.
    sides = {any("1f680" in code.split("-") and "200d" in code for code in half) for half in codes}
    assert sides == {True, False}


def test_every_value_is_as_frequent_as_the_others() -> None:
    scenes = compose(settings("test", 480))
    for name, values in {"colour": COLOURS, "texture": TEXTURES, "side": SIDES, "count": COUNTS}.items():
        assert Counter(getattr(one, name) for one in scenes) == dict.fromkeys(values, 480 // len(values))
    for novel in (True, False):
        half = [one for one in scenes if one.held_out is novel]
        assert Counter(one.drawing.kind for one in half) == dict.fromkeys(KINDS, 24)
        assert Counter(one.presence == one.drawing.kind for one in half) == {True: 120, False: 120}


def test_training_shows_no_held_out_drawing_and_the_test_split_does() -> None:
    training, held_out = drawings()
    known = {one.code for part in training.values() for one in part}
    assert {one.drawing.code for one in compose(settings("train", 600))} <= known
    for one in compose(settings("test", 200)):
        assert one.held_out is (one.drawing.code not in known)


def test_scenes_are_seeded() -> None:
    first, again, other = (compose(settings("train", 20, seed)) for seed in (0, 0, 1))
    assert first == again != other
    assert render(first[0], settings("train", 20)).tobytes() == render(again[0], settings("train", 20)).tobytes()


def test_objects_are_drawn_where_and_as_often_as_said() -> None:
    """The pixels that differ from the plain background lie in the strip of the side, in one, two or three cells of it."""
    seen = set()
    for scene in compose(settings("train", 120)):
        if scene.texture != "plain":
            continue
        image = render(scene, settings("train", 120))
        corners = Counter(image.getpixel(place) for place in ((84, 84), (80, 90), (88, 78)))  # never under a drawing
        box = ImageChops.difference(image, Image.new("RGB", image.size, corners.most_common(1)[0][0])).getbbox()
        assert box is not None
        left, top, right, bottom = box
        inside = {"left": right <= 56, "right": left >= 112, "top": bottom <= 56, "bottom": top >= 112}
        assert inside[scene.side]
        length = bottom - top if scene.side in ("left", "right") else right - left
        assert length <= 56 if scene.count == "one" else length > 56 or scene.count == "two"
        seen.add((scene.side, scene.count))
    assert len(seen) >= 9


def test_a_drawing_alone_may_be_larger_and_keeps_its_side() -> None:
    larger = replace(settings("train", 60), alone=(112, 112))
    sides = {"left": (0, 0.5), "right": (0, 1), "top": (1, 0.5), "bottom": (1, 1)}
    for scene in compose(larger):
        if scene.count != "one" or scene.texture != "plain":
            continue
        image = render(scene, larger)
        corner = max(((0, 0), (167, 0), (0, 167), (167, 167)), key=lambda place: _share(image, place))
        left, top, right, bottom = ImageChops.difference(image, Image.new("RGB", image.size, image.getpixel(corner))).getbbox()
        axis, half = sides[scene.side]
        middle = ((left + right) / 2, (top + bottom) / 2)
        assert (middle[axis] < 84) == (half == 0.5) and 56 <= middle[1 - axis] <= 112, scene
        assert max(right - left, bottom - top) > 56


def _share(image: Image.Image, place: tuple[int, int]) -> int:
    """How many pixels are as the one at a place."""
    return sum(count for count, colour in image.getcolors(168 * 168) if colour == image.getpixel(place))


def test_data_set_asks_what_it_says(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.setenv("DEHVF_KIT_CACHE", str(tmp_path_factory.mktemp("cache")))
    config = DrawingsDataConfig(train_scenes=10, test_scenes=10)
    train, test = config.samples("train"), config.samples("test")
    assert len(train) == 70 and all(one.image.is_file() for one in train)
    # The name of a held-out drawing is not asked for, and its kind is reported apart.
    assert Counter(one.kind for one in test)["name"] == 5 == Counter(one.kind for one in test)["kind of a new drawing"]
    some = ("kind", "side", "count", "colour")
    fewer = DrawingsDataConfig(train_scenes=12, test_scenes=10, questions=some, questions_per_scene=3)
    assert Counter(one.kind for one in fewer.samples("train")) == {"kind": 12, "side": 8, "count": 8, "colour": 8}
    assert len(fewer.samples("test")) == 40
    asked = Counter(one.question for one in fewer.samples("test") if one.kind.startswith("kind"))
    assert asked == {"what is it?": 5, "what kind of thing is it?": 5}
    with pytest.raises(ValidationError, match="alone.*wants two sizes from 8 to 112"):
        DrawingsDataConfig(alone=(40, 113))
    with pytest.raises(ValidationError, match="wants two sizes from 8 to 56"):
        DrawingsDataConfig(sizes=(56, 40))
