"""Our model behind lmms-eval's interface, on a stand-in of that interface as version 0.7.3 has it."""

from __future__ import annotations

import abc
import sys
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from data.small_sets import COLOURS, scienceqa
from evaluation.benchmarks import recipe, towers
from PIL import Image

import dehvf_kit
from dehvf_kit.data.samples import Sample
from dehvf_kit.errors import DataError
from dehvf_kit.evaluation.answers import answer


@dataclass(frozen=True)
class Manifest:
    model_id: str
    simple_class_path: str | None = None


class Base(abc.ABC):
    is_simple = True

    def __init__(self) -> None:
        self.cache_hook = SimpleNamespace(add_partial=lambda *_: None)
        self.task_dict: dict[str, Any] = {}

    @abc.abstractmethod
    def loglikelihood(self, requests: Any) -> Any: ...

    @abc.abstractmethod
    def generate_until(self, requests: Any) -> Any: ...

    @abc.abstractmethod
    def generate_until_multi_round(self, requests: Any) -> Any: ...


@pytest.fixture
def lmms(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, content in {
        "lmms_eval": {},
        "lmms_eval.api": {},
        "lmms_eval.api.model": {"lmms": Base},
        "lmms_eval.models": {},
        "lmms_eval.models.registry_v2": {"ModelManifest": Manifest},
    }.items():
        module = ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delitem(sys.modules, "dehvf_kit.evaluation.lmms_model", raising=False)


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    file = recipe(towers(tmp_path), f"{{type: scienceqa, path: {scienceqa(tmp_path / 'sqa')}}}")
    dehvf_kit.build(dehvf_kit.load_recipe(file)).save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def request(document: int, **keywords: Any) -> SimpleNamespace:
    def pictures_of(doc: Any) -> list[Any]:
        return [doc["image"]] if doc["image"] is not None else []

    return SimpleNamespace(args=("<image>\nWhat colour is it?", keywords, pictures_of, document, "task", "test"))


@pytest.mark.usefixtures("lmms")
def test_requests_are_answered_in_order(adapter: Path) -> None:
    from dehvf_kit.evaluation.lmms_eval import manifests

    (manifest,) = manifests()
    module, _, name = manifest.simple_class_path.rpartition(".")
    __import__(module)
    model = getattr(sys.modules[module], name)(pretrained=str(adapter), batch_size="2", device="cpu")
    documents = [{"image": Image.new("RGB", (40, 40), COLOURS["red"])}, {"image": None}]
    model.task_dict = {"task": {"test": documents}}
    requests = [
        request(0, max_new_tokens=3, temperature=0, until=["\n"]),
        request(1, max_new_tokens=2),
        request(0, max_new_tokens=3, temperature=0),
    ]
    said = model.generate_until(requests)
    assert len(said) == 3 and said[0] == said[2]
    assert len(said[1].split()) <= 2
    picture = adapter.parent / "red.png"
    documents[0]["image"].save(picture)
    (ours,) = answer(dehvf_kit.load(adapter), [Sample("0", "What colour is it?", "", picture)], max_new_tokens=3)
    assert said[0] == ours.prediction
    assert sys.modules[module]._until("red. Or so", {"until": [". ", "\n"]}) == "red"
    with pytest.raises(NotImplementedError, match="generate_until"):
        model.loglikelihood([])
    two = request(0)
    two.args = (*two.args[:2], lambda doc: [doc["image"]] * 2, *two.args[3:])
    with pytest.raises(DataError, match="asks about 2 images; an adapter reads one"):
        model.generate_until([two])


def test_the_entry_point_stands_in_the_metadata() -> None:
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    assert '[project.entry-points."lmms_eval.models"]\ndehvf_kit = "dehvf_kit.evaluation.lmms_eval:manifests"' in text
    for entry in entry_points(group="lmms_eval.models", name="dehvf_kit"):
        assert entry.value == "dehvf_kit.evaluation.lmms_eval:manifests"
