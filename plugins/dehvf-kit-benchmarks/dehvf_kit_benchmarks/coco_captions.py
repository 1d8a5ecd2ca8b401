"""COCO captions in Karpathy's layout: `dataset_coco.json` beside the folders `train2014` and `val2014`.

Source: Karpathy and Fei-Fei 2015, arXiv:1412.2306; captions by Chen et al. 2015, arXiv:1504.00325.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from dehvf_kit.data.rows import named
from dehvf_kit.data.samples import PREPARE, DataConfig, Issue, PromptConfig, Published, Reading, Sample, Split, refuse, require_file
from dehvf_kit.errors import DataError, shown
from dehvf_kit.utils.atomic import is_file, is_folder
from dehvf_kit.utils.plain_data import read_json

if TYPE_CHECKING:
    from dehvf_kit.data.metrics.scores import Scores

SOURCE = "Karpathy and Fei-Fei 2015, arXiv:1412.2306"
COUNTS = {"train": 82_783, "restval": 30_504, "val": 5_000, "test": 5_000}
USUAL_CAPTIONS = 5


class CocoCaptionsDataConfig(DataConfig):
    """COCO captions, Karpathy's split: a training sample for each caption, a test sample for each image."""

    type: Literal["coco_captions"] = "coco_captions"
    metric: Literal["captions"] = Field("captions", description="BLEU, METEOR, ROUGE-L and CIDEr")
    annotations: Path = Field(Path("data/coco/dataset_coco.json"), description="Karpathy's file")
    images: Path = Field(Path("data/coco"), description="folder that holds train2014 and val2014")
    restval: bool = Field(description="train on `restval` too: 113,287 images, the field's usual set, instead of 82,783")
    test_split: Literal["test", "val"] = Field("test", description="what is scored")
    question: str = Field("Generate caption of this image.", min_length=1, description="what is asked of every image")
    prompt: PromptConfig = Field(
        default_factory=lambda: PromptConfig(question="Instruction: {question}\nResponse:", answer=" {answer}"),
        description="what stands around question and caption (choice: the paper's Table 6 does not survive as text)",
    )

    @classmethod
    def recognise(cls, place: Path) -> dict[str, Any] | None:
        file = place / "dataset_coco.json" if is_folder(place) else place
        if file.name != "dataset_coco.json" or not is_file(file):
            return None
        return {"annotations": str(file), "images": str(file.parent), "restval": True}

    def prompt_facts(self) -> dict[str, Any]:
        return {**super().prompt_facts(), "asked": self.question}

    def part_of(self, split: Split) -> str:
        return {"train": "train", "validation": "val", "test": self.test_split}[split]

    def samples(self, split: Split) -> list[Sample]:
        reading = self.read(self.part_of(split))
        refuse(str(self.annotations), reading.issues, PREPARE)
        return list(reading.samples)

    def parts(self) -> Sequence[str]:
        return ("train", "val", "test")

    def read(self, part: str) -> Reading:
        wanted = {"train", "restval"} if part == "train" and self.restval else {part}
        samples, issues, count, references = [], [], 0, 0
        for place, row in self._rows(wanted, issues):
            captions = list(_captions(row, place, issues))
            count, references = count + 1, references + len(captions)
            place = self.images / row.get("filepath", "") / row["filename"]
            image_id = str(row["cocoid"])
            if part != "train":
                captions = captions[:1]
            for number, caption in enumerate(captions):
                key = f"{image_id}/{number}" if part == "train" else image_id
                samples.append(Sample(key, self.question, caption, place))
        return Reading(samples, issues, count, {"captions": references})

    def published(self, part: str) -> Published | None:
        count = COUNTS[part] + (COUNTS["restval"] if part == "train" and self.restval else 0)
        return Published(count, "pictures", SOURCE)

    def references(self) -> dict[str, list[str]]:
        """Every caption of the images scored, by image id; five each in the published file."""
        issues: list[Issue] = []
        found = {str(row["cocoid"]): list(_captions(row, place, issues)) for place, row in self._rows({self.test_split}, issues)}
        if self.on_bad_sample == "error":
            refuse(str(self.annotations), issues, PREPARE)
        return found

    def check_scoring(self) -> None:
        from dehvf_kit_benchmarks.caption_metrics import require_programs

        require_programs()

    def score(self, predictions: Sequence[Any]) -> Scores:
        """BLEU, METEOR, ROUGE-L and CIDEr of the captions given."""
        from dehvf_kit_benchmarks.caption_metrics import score

        references = self.references()
        given = {one.id: one.prediction for one in predictions}
        return score({key: references[key] for key in given}, given)

    def _rows(self, wanted: set[str], issues: list[Issue]) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """(place, row) of each usable image of these splits."""
        require_file(self.annotations, "data.annotations")
        found = read_json(self.annotations)
        rows = found.get("images") if isinstance(found, dict) else None
        if not isinstance(rows, list):
            raise DataError(f"{self.annotations}: wants an object with `images`, as in Karpathy's dataset_coco.json")
        seen: set[str] = set()
        for number, row in enumerate(rows):
            place = f"images[{number}]"
            if not isinstance(row, Mapping):
                issues.append(Issue("not an image", place, shown(row)))
                continue
            if not isinstance(row.get("split"), str):
                issues.append(Issue("unknown split", place, shown(row.get("split"))))
                continue
            if row["split"] not in wanted:
                if row["split"] not in COUNTS:
                    issues.append(Issue("unknown split", place, shown(row["split"])))
                continue
            if named(row.get("cocoid"), None) is None:
                issues.append(Issue("image without id", place))
            elif not isinstance(row.get("filepath", ""), str):
                issues.append(Issue("folder is no text", str(row["cocoid"]), shown(row["filepath"])))
            elif not isinstance(row.get("filename"), str) or not row["filename"]:
                issues.append(Issue("image without file name", str(row["cocoid"])))
            elif str(row["cocoid"]) in seen:
                issues.append(Issue("id twice", str(row["cocoid"])))
            else:
                seen.add(str(row["cocoid"]))
                yield str(row["cocoid"]), row


def _captions(row: Mapping[str, Any], place: str, issues: list[Issue]) -> Iterator[str]:
    """The captions of an image, without the blanks and line breaks some of them end with."""
    sentences = row.get("sentences")
    count = 0
    for sentence in sentences if isinstance(sentences, list) else []:
        raw = sentence.get("raw") if isinstance(sentence, Mapping) else None
        if not isinstance(raw, str) or not raw.strip():
            issues.append(Issue("empty caption", place, fatal=False))
            continue
        count += 1
        yield " ".join(raw.split())
    if not count:
        issues.append(Issue("image without captions", place))
    elif count < USUAL_CAPTIONS:
        issues.append(Issue("fewer than five captions", place, str(count), fatal=False))


def read_captions(file: Path, references: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Anybody's captions, `[{"image_id", "caption"}]`. Raises: DataError listing missing, unknown and repeated ids."""
    rows = read_json(file)
    if not isinstance(rows, list):
        raise DataError(f'{file}: wants [{{"image_id": 391895, "caption": "..."}}, ...]')
    found: dict[str, str] = {}
    issues = []
    for number, row in enumerate(rows):
        key = str(row["image_id"]) if isinstance(row, dict) and isinstance(row.get("image_id"), int | str) else ""
        if not key or not isinstance(row.get("caption"), str):
            issues.append(Issue("no image_id and caption", f"[{number}]", shown(row)))
        elif key in found:
            issues.append(Issue("image_id twice", key))
        elif key not in references:
            issues.append(Issue(f"image_id not among the {len(references):,} images of this split", key))
        else:
            found[key] = row["caption"]
    issues += [Issue("image without a prediction", key) for key in references if key not in found]
    refuse(str(file), issues)
    return found


def read_references(file: Path, split: str = "test") -> dict[str, list[str]]:
    """References from Karpathy's dataset_coco.json (of a split), or from a COCO captions file with `annotations` (all of it)."""
    found = read_json(file)
    if isinstance(found, dict) and isinstance(found.get("annotations"), list):
        captions: dict[str, list[str]] = {}
        for number, row in enumerate(found["annotations"]):
            if not isinstance(row, dict) or "image_id" not in row or not isinstance(row.get("caption"), str):
                raise DataError(f"{file}: annotations[{number}]: wants image_id and caption, given {shown(row)}")
            captions.setdefault(str(row["image_id"]), []).append(" ".join(row["caption"].split()))
        return captions
    return CocoCaptionsDataConfig(annotations=file, restval=True, test_split=split).references()
