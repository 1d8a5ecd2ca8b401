"""The model `dehvf_kit` inside the real lmms-eval: its own tasks, on rows made here."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("lmms_eval", reason="lmms-eval has an environment of its own: make lmms")

import datasets  # noqa: E402
import lmms_eval  # noqa: E402
import numpy as np  # noqa: E402
from data.small_sets import COLOURS, scienceqa  # noqa: E402
from dehvf_kit_lmms import model as entry  # noqa: E402
from evaluation.benchmarks import recipe, towers  # noqa: E402
from lmms_eval.evaluator import simple_evaluate  # noqa: E402
from lmms_eval.models import list_available_models  # noqa: E402
from lmms_eval.tasks import TaskManager  # noqa: E402
from PIL import Image  # noqa: E402

import dehvf_kit  # noqa: E402
from dehvf_kit.data.images import open_image  # noqa: E402
from dehvf_kit.data.samples import Sample  # noqa: E402
from dehvf_kit.errors import DataError  # noqa: E402
from dehvf_kit.evaluation.answers import Prediction, answer  # noqa: E402

pytestmark = pytest.mark.nightly
QUESTION, NAMES = "What colour is it?", list(COLOURS)


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lmms")
    file = recipe(towers(folder), f"{{type: scienceqa, path: {scienceqa(folder / 'sqa')}}}")
    dehvf_kit.build(dehvf_kit.load_recipe(file)).save_pretrained(folder / "adapter")
    return folder / "adapter"


@pytest.fixture(scope="module")
def task_manager(tmp_path_factory: pytest.TempPathFactory) -> TaskManager:
    """lmms-eval's tasks for ScienceQA, multiple choice, VQA and captions, each on three rows: red, green, blue."""
    folder = tmp_path_factory.mktemp("tasks")
    numbers = range(len(NAMES))
    add_task(
        folder, "scienceqa/scienceqa_img", [{"question": QUESTION, "choices": NAMES, "answer": n, "hint": ""} for n in numbers]
    )
    add_task(folder, "ai2d/ai2d", [{"question": QUESTION, "options": NAMES, "answer": str(n)} for n in numbers])
    options = ", ".join(f"{letter}: {name}" for letter, name in zip("ABC", NAMES, strict=True))
    stars = {"category": "coarse perception", "l2_category": "image style & quality"}
    add_task(
        folder,
        "mmstar/mmstar",
        [{"question": f"{QUESTION}\nOptions: {options}", "answer": "ABC"[n], "index": n, **stars} for n in numbers],
    )
    ten = [[{"answer": name, "answer_id": n} for n in range(10)] for name in NAMES]
    add_task(folder, "vqav2/vqav2_val", [{"question": QUESTION, "question_id": n, "answers": ten[n]} for n in numbers])
    captions = [{"question_id": f"COCO_{n}.jpg", "id": n, "answer": [caption(name), caption(name)]} for n, name in enumerate(NAMES)]
    metric = "\nmetric_list: [{metric: coco_CIDEr, aggregation: !function cider.coco_cider, higher_is_better: true}]"
    (folder / "cider.py").write_text("from lmms_eval.tasks.coco_cap.utils import coco_cider\n")
    add_task(folder, "coco_cap/coco2014_cap_val", captions, metric)
    return TaskManager("ERROR", include_path=str(folder), include_defaults=False)


def add_task(folder: Path, path: str, rows: Sequence[dict[str, Any]], more: str = "") -> None:
    """A task of lmms-eval, `local_NAME`, that reads `rows` in place of its data set on the hub."""
    name = path.split("/")[1]
    pictures = [Image.new("RGB", (40, 40), colour) for colour in COLOURS.values()]
    table = datasets.Dataset.from_list([{**row, "image": one} for row, one in zip(rows, pictures, strict=True)])
    table.cast_column("image", datasets.Image()).to_parquet(folder / f"{name}.parquet")
    kwargs = {"data_files": {"test": str(folder / f"{name}.parquet")}, "cache_dir": str(folder / "cache")}
    (folder / f"{name}.yaml").write_text(
        f"include: {Path(lmms_eval.__file__).parent}/tasks/{path}.yaml\ntask: local_{name}\ntest_split: test\n"
        f"dataset_path: parquet\ndataset_name: null\ndataset_kwargs: {json.dumps(kwargs)}{more}\n"
    )


def caption(name: str) -> str:
    return f"a plain {name} square"


def run(adapter: Path, tasks: list[str], task_manager: TaskManager, output: Path, more: str = "") -> dict[str, Any]:
    return simple_evaluate(
        model="dehvf_kit",
        model_args=f"pretrained={adapter}{more}",
        tasks=tasks,
        task_manager=task_manager,
        batch_size=2,
        device="cpu",
        log_samples=True,
        bootstrap_iters=0,
        cli_args=Namespace(output_path=str(output), process_with_media=False),
    )


def perfect(sentence: Callable[[str], str]) -> Callable[..., list[Prediction]]:
    """In place of `answer`: what an adapter that sees the colours says, from the image that it was given."""

    def said(model: Any, samples: Sequence[Sample], **_: Any) -> list[Prediction]:
        seen = [open_image(sample).getpixel((0, 0)) for sample in samples]
        names = [min(NAMES, key=lambda name: sum(abs(np.subtract(COLOURS[name], one)))) for one in seen]
        return [Prediction(one.id, "", one.question, "", "", sentence(name)) for one, name in zip(samples, names, strict=True)]

    return said


@pytest.mark.parametrize(
    ("task", "metric", "sentence", "wanted"),
    [
        ("scienceqa_img", "exact_match,none", lambda name: f"The answer is {'ABC'[NAMES.index(name)]}.", 1.0),
        ("scienceqa_img", "exact_match,none", lambda name: "The answer is C.", 1 / 3),
        ("ai2d", "exact_match,flexible-extract", lambda name: f"The answer is {name}.", 1.0),
        ("mmstar", "average,none", lambda name: f"({'ABC'[NAMES.index(name)]}) {name}", 1.0),
        ("vqav2_val", "exact_match,none", lambda name: f"The answer is {name}.\nBECAUSE: it is.", 1.0),
    ],
)
def test_each_kind_of_task_gets_the_form_that_it_asks_for(
    task: str,
    metric: str,
    sentence: Callable[[str], str],
    wanted: float,
    adapter: Path,
    task_manager: TaskManager,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(entry, "answer", perfect(sentence))
    scores = run(adapter, [f"local_{task}"], task_manager, tmp_path)["results"][f"local_{task}"]
    assert scores[metric] == pytest.approx(wanted)


def test_captions_are_passed_on_in_one_line(
    adapter: Path, task_manager: TaskManager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(entry, "answer", perfect(lambda name: caption(name).replace(" ", "\r", 1)))
    scores = run(adapter, ["local_coco2014_cap_val"], task_manager, tmp_path)["results"]["local_coco2014_cap_val"]
    assert scores["coco_CIDEr,none"] == pytest.approx(10.0)  # what CIDEr gives for every reference repeated
    (file,) = (tmp_path / "submissions").iterdir()
    assert [one["caption"] for one in json.loads(file.read_text())] == [caption(name) for name in NAMES]


def test_an_adapter_answers_as_load_does(adapter: Path, task_manager: TaskManager, tmp_path: Path) -> None:
    assert "dehvf_kit" in list_available_models()
    found = run(adapter, ["local_vqav2_val"], task_manager, tmp_path, ",form=as_is")["samples"]["local_vqav2_val"]
    assert len(found) == 3
    model = dehvf_kit.load(adapter)
    asked = f"{QUESTION}\nAnswer the question using a single word or phrase."
    for name, colour in COLOURS.items():
        Image.new("RGB", (40, 40), colour).save(tmp_path / f"{name}.png")
    samples = [Sample(name, asked, "", tmp_path / f"{name}.png") for name in NAMES]
    ours = answer(model, samples, max_new_tokens=16, do_sample=False)
    said = {one["doc_id"]: one["resps"][0][0] for one in found}
    assert [said[n] for n in range(3)] == [one.prediction for one in ours]


def request(document: int, images_of: Callable[[Any], Any], text: str = QUESTION, **keywords: Any) -> SimpleNamespace:
    return SimpleNamespace(args=(text, keywords, images_of, document, "task", "test"))


def test_requests_are_answered_in_order_and_images_are_never_dropped(adapter: Path) -> None:
    model = entry.DehvfLmm(pretrained=str(adapter), batch_size="2", device="cpu")
    red = Image.new("RGB", (40, 40), COLOURS["red"])
    grey = Image.fromarray(np.full((40, 40), 200 * 256, np.uint16))
    model.task_dict = {"task": {"test": [{"image": red}, {"image": None}, {"images": [grey, [red]]}]}}
    requests = [
        request(0, lambda doc: [doc["image"]], f"<image>\n{QUESTION}", max_new_tokens=3, temperature=0, until=["\n"]),
        request(1, lambda doc: [doc["image"]], max_new_tokens=2),
        request(0, lambda doc: [[doc["image"]], None], max_new_tokens=3),
    ]
    said = model.generate_until(requests)
    assert len(said) == 3 and said[0] == said[2] and len(said[1].split()) <= 2
    seen = model._sample(0, request(2, lambda doc: [doc["images"][0].convert("RGB")])).image
    assert open_image(Sample("0", "", "", seen)).getpixel((0, 0)) == (200, 200, 200)  # Pillow's own conversion makes it white
    for several in (lambda doc: doc["images"], lambda doc: [doc["images"]], lambda doc: [red, red]):
        sample = model._sample(0, request(2, several))
        assert [open_image(one).size for one in sample.apart()] == [(40, 40)] * 2
        assert model.generate_until([request(2, several, max_new_tokens=2)]) == [
            one.prediction for one in answer(model.dehvf, [sample], max_new_tokens=2, do_sample=False)
        ]
    with pytest.raises(DataError, match="task/1: the text has <image>, and there is no image"):
        model.generate_until([request(1, lambda doc: [], f"<image> {QUESTION}")])
    with pytest.raises(DataError, match="form=words: one of task, letter"):
        entry.DehvfLmm(pretrained=str(adapter), form="words")
    with pytest.raises(NotImplementedError, match="generate_until"):
        model.loglikelihood([])
    assert entry._until("red. Or so", {"until": [". ", "\n"]}) == "red"
