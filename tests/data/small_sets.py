"""Small data sets in their published layouts, made of nothing but a few lines and coloured pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from PIL import Image

COLOURS = {"red": (220, 30, 30), "green": (30, 180, 60), "blue": (30, 60, 220)}
SUBJECTS = ("natural science", "social science", "language science")
SIZES = {"train": 8, "val": 4, "test": 6}


def picture(path: Path, colour: str = "red", size: int = 40) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (size, size), COLOURS[colour]).save(path)
    return path


def problem(number: int, split: str, **changes: Any) -> dict[str, Any]:
    """A question as problems.json has it: even ones have a picture, every third one a hint."""
    return {
        "question": "What colour is it?",
        "choices": list(COLOURS),
        "answer": number % 3,
        "hint": "Look closely." if number % 3 == 0 else "",
        "image": "image.png" if number % 2 == 0 else None,
        "task": "closed choice",
        "grade": f"grade{1 + number % 12}",
        "subject": SUBJECTS[number % 3],
        "topic": "",
        "category": "",
        "skill": "",
        "lecture": "Light has\ncolours.",
        "solution": f"It is {list(COLOURS)[number % 3]}.",
        "split": split,
        **changes,
    }


def scienceqa(folder: Path, **changes: dict[str, Any]) -> Path:
    """ScienceQA in its upstream layout. changes: fields of single questions, by `q` and their id."""
    problems, splits, number = {}, {}, 0
    for split, size in SIZES.items():
        ids = [str(number + place) for place in range(1, size + 1)]
        number += size
        splits[split] = ids
        for key in ids:
            problems[key] = problem(int(key), split, **changes.get(f"q{key}", {}))
            if problems[key]["image"]:
                picture(folder / "images" / split / key / "image.png", list(COLOURS)[int(key) % 3])
    folder.mkdir(exist_ok=True)
    (folder / "problems.json").write_text(json.dumps(problems))
    (folder / "pid_splits.json").write_text(json.dumps(splits))
    captions = {key: f"A picture, number {key}." for key, one in problems.items() if one["image"]}
    (folder / "captions.json").write_text(json.dumps({"captions": captions}))
    return folder


def coco(folder: Path) -> Path:
    """COCO captions in Karpathy's layout: 3 pictures of train, 1 of restval, 2 of val, 3 of test."""
    rows = []
    for number, split in enumerate(["train"] * 3 + ["restval"] + ["val"] * 2 + ["test"] * 3, start=1):
        name = list(COLOURS)[number % 3]
        place = "train2014" if split == "train" else "val2014"
        picture(folder / place / f"{number}.jpg", name)
        said = ["a {} square", "the square is {}", "a {} picture", "one {} square.", "a square that is {}\n"]
        sentences = [{"raw": text.format(name), "sentid": 10 * number + n} for n, text in enumerate(said)]
        rows.append({"cocoid": number, "split": split, "filepath": place, "filename": f"{number}.jpg", "sentences": sentences})
    (folder / "dataset_coco.json").write_text(json.dumps({"images": rows, "dataset": "coco"}))
    return folder
