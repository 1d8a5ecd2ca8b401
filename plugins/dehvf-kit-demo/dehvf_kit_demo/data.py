"""easy-VQA as a data set that recipes can name: `data: {type: easy_vqa}`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from dehvf_kit.data.samples import DataConfig, Sample, Split
from dehvf_kit_demo.easy_vqa import load_easy_vqa, subset


class EasyVqaDataConfig(DataConfig):
    """easy-VQA: short questions about one coloured shape on a 64 x 64 image; the test images are never trained on."""

    type: Literal["easy_vqa"] = "easy_vqa"
    train_questions: int = Field(0, ge=0, description="training questions; 0: all 38,575")
    test_questions: int = Field(0, ge=0, description="test questions; 0: all 9,673")
    questions_per_image: int = Field(4, ge=1, description="questions sampled per image, where not all are used")
    seed: int = Field(0, ge=0, description="seed of the sampled images and questions")

    def samples(self, split: Split) -> list[Sample]:
        records = load_easy_vqa(split)
        count = self.train_questions if split == "train" else self.test_questions
        if count:
            records = subset(records, count, questions_per_image=self.questions_per_image, seed=self.seed)
        return [
            Sample(f"{split}/{number}", record.question, record.answer, record.image, record.question_type)
            for number, record in enumerate(records)
        ]
