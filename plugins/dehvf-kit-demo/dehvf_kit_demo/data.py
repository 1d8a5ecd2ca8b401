"""The demo's data sets, as recipes name them: `data: {type: easy_vqa}` and `data: {type: drawings}`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from dehvf_kit.data.samples import DataConfig, Sample, Split
from dehvf_kit_demo.easy_vqa import load_easy_vqa, subset
from dehvf_kit_demo.scenes import CELLS, Scene, SceneSettings, compose, scene_folder

Kind = Literal["name", "kind", "colour", "texture", "side", "count", "presence"]
ARTICLE = {"animal": "an animal", "clothing": "clothing", "food": "food"}


class EasyVqaDataConfig(DataConfig):
    """easy-VQA: short questions about one coloured shape on a 64 x 64 image; the test images are never trained on."""

    type: Literal["easy_vqa"] = "easy_vqa"
    train_questions: int = Field(0, ge=0, description="training questions; 0: all 38,575")
    test_questions: int = Field(0, ge=0, description="test questions; 0: all 9,673")
    questions_per_image: int = Field(4, ge=1, description="questions sampled per image, where not all are used")
    balanced: bool = Field(False, description="draw a training image's questions from yes/no, colour and shape in turn")
    seed: int = Field(0, ge=0, description="seed of the sampled images and questions")

    @model_validator(mode="after")
    def _something_is_drawn(self) -> EasyVqaDataConfig:
        if self.balanced and not self.train_questions:
            raise ValueError("balanced: draws some of the questions; with train_questions=0 all are used")
        return self

    def samples(self, split: Split) -> list[Sample]:
        records = load_easy_vqa(split)
        count = self.train_questions if split == "train" else self.test_questions
        if count:
            balanced = self.balanced and split == "train"
            records = subset(records, count, questions_per_image=self.questions_per_image, seed=self.seed, balanced=balanced)
        return [
            Sample(f"{split}/{number}", record.question, record.answer, record.image, record.question_type)
            for number, record in enumerate(records)
        ]


class DrawingsDataConfig(DataConfig):
    """Composed scenes of Twemoji drawings: seven kinds of questions, balanced so that no answer is right by its frequency.

    Half of the drawings are held out. The test split asks about them in every other scene, as kind `kind of a new drawing`; their
    names are not asked for, since no training scene says them. Where `questions` has no names, "what is it?" asks for the kind
    of every other scene.
    """

    type: Literal["drawings"] = "drawings"
    train_scenes: int = Field(2000, ge=1, le=1_000_000, description="training images")
    test_scenes: int = Field(400, ge=1, le=1_000_000, description="test images, every other one of a held-out drawing")
    questions: tuple[Kind, ...] = Field(
        ("name", "kind", "colour", "texture", "side", "count", "presence"),
        min_length=1,
        description="kinds of questions asked of each image",
    )
    questions_per_scene: int | None = Field(
        None, ge=1, description="questions of each training image: the first kind, then the others in turn; null: all kinds"
    )
    canvas: int = Field(168, ge=48, le=2048, description="pixels of an image's sides")
    sizes: tuple[int, int] = Field((40, 56), description="smallest and largest drawing, in pixels; small ones are harder")
    alone: tuple[int, int] | None = Field(
        None, description="sizes of a drawing that is the only one of its image, up to two thirds of it; null: as `sizes`"
    )
    seed: int = Field(0, ge=0, le=2**32 - 1, description="seed of the scenes")

    @model_validator(mode="after")
    def _drawings_fit(self) -> DrawingsDataConfig:
        for field, given, most, share in (
            ("sizes", self.sizes, self.canvas // CELLS, f"canvas / {CELLS}"),
            ("alone", self.alone, 2 * self.canvas // CELLS, f"canvas * 2 / {CELLS}"),
        ):
            if given is not None and not 8 <= given[0] <= given[1] <= most:
                raise ValueError(f"{field}: given {list(given)}; wants two sizes from 8 to {most} ({share}), in order")
        return self

    def scenes(self, split: Split) -> SceneSettings:
        """What decides the images of a split."""
        count = self.train_scenes if split == "train" else self.test_scenes
        return SceneSettings(split, count, self.canvas, self.sizes, self.seed, self.alone)

    def samples(self, split: Split) -> list[Sample]:
        settings = self.scenes(split)
        folder = scene_folder(settings)
        return [
            Sample(f"{split}/{number}/{kind}", question, answer, folder / scene.file, told)
            for number, scene in enumerate(compose(settings))
            for kind in (self.questions if split == "test" else self._asked_in_training(number))
            for question, answer, told in _asked(scene, kind, plainly="name" not in self.questions and number % 2 == 1)
        ]

    def _asked_in_training(self, number: int) -> tuple[Kind, ...]:
        """The kinds of questions about a training image."""
        first, *others = self.questions
        more = len(others) if self.questions_per_scene is None else min(self.questions_per_scene - 1, len(others))
        return (first, *(others[(number * more + place) % len(others)] for place in range(more)))


def _asked(scene: Scene, kind: Kind, plainly: bool) -> list[tuple[str, str, str]]:
    """(question, answer, kind of question as reported) of a scene; none for the name of a held-out drawing.

    plainly: ask for the kind as for a name, "what is it?".
    """
    match kind:
        case "name":
            return [] if scene.held_out else [("what is it?", scene.drawing.name, "name")]
        case "kind":
            told = "kind of a new drawing" if scene.held_out else "kind"
            return [("what is it?" if plainly else "what kind of thing is it?", scene.drawing.kind, told)]
        case "colour":
            return [("what color is the background?", scene.colour, kind)]
        case "texture":
            return [("what pattern does the background have?", scene.texture, kind)]
        case "side":
            return [("on which side is it?", scene.side, kind)]
        case "count":
            return [("how many are there?", scene.count, kind)]
        case "presence":
            asked = ARTICLE.get(scene.presence, f"a {scene.presence}")
            return [(f"is there {asked}?", "yes" if scene.presence == scene.drawing.kind else "no", kind)]
