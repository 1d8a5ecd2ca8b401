"""Mutated recipes, adapter configs and data lines: the kit's own error or none, within 2 s, and every error names the place.

200 examples by default, 20,000 in `make nightly` and `make fuzz` (DEHVF_KIT_FUZZ); they are the same ones every time.
"""

from __future__ import annotations

import contextlib
import gc
import io
import json
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from data.small_sets import coco, scienceqa
from dehvf_kit_benchmarks.coco_captions import CocoCaptionsDataConfig
from dehvf_kit_benchmarks.scienceqa import ScienceQaDataConfig
from dehvf_kit_doctor.data_report import inspect_data
from dehvf_kit_streams.llava import LlavaDataConfig
from dehvf_kit_streams.table import TableDataConfig
from fuzz.mutations import CHANGES, ODD, TEXT_CHANGES, cut, mutated
from fuzz.settings import share
from helpers import LLAMA, randomise, raw_recipe, tiny_decoder, tiny_vision
from hypothesis import given
from hypothesis import strategies as st
from training.conftest import WORDS, tokenizer  # noqa: F401 - a fixture

import dehvf_kit
from dehvf_kit.backbones.decoder import HfDecoderConfig
from dehvf_kit.backbones.vision.config import HfVisionConfig
from dehvf_kit.cli.check import check
from dehvf_kit.data.jsonl import JsonlDataConfig
from dehvf_kit.data.samples import DataConfig
from dehvf_kit.errors import DehvfError, RecipeError
from dehvf_kit.model.builder import build
from dehvf_kit.recipe.files import read_with_parents

pytestmark = pytest.mark.scaled

LIMIT_S = 2.0
RECIPES = Path(__file__).parents[2] / "recipes"
LAYERS = {32: 4, 40: 4, 30: 4, 24: 6, 12: 6}
"""Layers of a real tower, and of the one that stands for it here, so that a changed config costs milliseconds."""


@contextlib.contextmanager
def quickly() -> Iterator[None]:
    """Processor time, so that a busy machine makes no failure; garbage of all that was imported is not collected meanwhile."""
    gc.disable()
    try:
        began = time.process_time()
        yield
        assert time.process_time() - began < LIMIT_S
    finally:
        gc.enable()


def attempt(work: Callable[[], object], *where: str) -> None:
    """Run; only the kit's own error may come out, every line of it naming one of these places."""
    with quickly(), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            work()
        except DehvfError as error:
            caught = error
        else:
            return
    if isinstance(caught, RecipeError):
        for fault in caught.faults:
            assert fault.path or OF_THE_FILE.search(fault.message), f"names no field: {fault}"
    assert str(caught).strip(), "an error without a message"
    assert any(place in str(caught) for place in where), f"names no place: {caught}"
    str(caught).encode("utf-8", "backslashreplace")


OF_THE_FILE = re.compile("is empty|holds a|cannot be read|has .* bytes|not valid YAML|is no regular file|holds half")
"""Faults of a recipe as a whole, which have no field."""


# Recipes


def remembered(method: Any) -> Any:
    """A tower's sizes, asked for once for each config."""
    known: dict[str, Any] = {}

    def spec(self: Any, sources: Any) -> Any:
        key = f"{type(self).__name__} {self!r}"
        if key not in known:
            try:
                known[key] = method(self, sources)
            except DehvfError as error:
                known[key] = error
        if isinstance(known[key], DehvfError):
            raise known[key]
        return known[key]

    return spec


@pytest.fixture(scope="module")
def towers_once() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for config in (HfDecoderConfig, HfVisionConfig):
            patch.setattr(config, "spec", remembered(config.spec))
        yield


def small(tree: Any) -> Any:
    """A recipe with fewer layers in its towers."""
    if isinstance(tree, dict):
        return {key: LAYERS.get(value, value) if key == "num_hidden_layers" else small(value) for key, value in tree.items()}
    return tree


def real_recipes() -> list[Any]:
    """The repository's recipes whose towers' configs they carry, merged over their parents."""
    found = [read_with_parents(file, str(file)) for file in sorted(RECIPES.rglob("*.yaml"))]
    return [small(raw) for raw in found if "config" in raw["decoder"]]


REAL = real_recipes()


def as_yaml(value: Any) -> str:
    """By libyaml, ten times as fast, where it is there and the value holds no half characters."""
    try:
        return yaml.dump(value, Dumper=getattr(yaml, "CSafeDumper", yaml.SafeDumper), sort_keys=False)
    except UnicodeEncodeError:
        return yaml.safe_dump(value, sort_keys=False)


@share(0.4)
@given(raw=st.sampled_from(REAL), changes=CHANGES, text_changes=TEXT_CHANGES)
@pytest.mark.usefixtures("towers_once")
def test_recipes(tmp_path_factory, raw, changes, text_changes):
    file = place(tmp_path_factory) / "recipe.yaml"
    file.write_bytes(cut(as_yaml(mutated(raw, changes)).encode(), text_changes))
    attempt(lambda: check(file), str(file))


PATHS = st.sampled_from(
    ["graph.fuser.num_heads", "decoder", "decoder.config.hidden_size", "vision.image.size", "graph", "training.betas", "data.type",
     "training.epochs", "graph.fuser.type", "name", "a" * 300, "a.b.c", ".", "graph..x", "extends", "format"]
)  # fmt: skip


@share(0.05)
@given(path=PATHS, value=st.one_of(ODD.map(str), st.text(max_size=12), st.sampled_from(["[", "*a", "{a: 1}", "!!x", "9" * 5000])))
@pytest.mark.usefixtures("towers_once")
def test_overrides(tmp_path_factory, path, value):
    file = place(tmp_path_factory) / "sound.yaml"
    if not file.exists():
        file.write_text(yaml.safe_dump(REAL[0], sort_keys=False))
    attempt(lambda: check(file, [f"{path}={value}"]), str(file), "override")


# Adapters


@pytest.fixture(scope="module")
def towers() -> tuple[Any, Any]:
    return tiny_decoder(vocab_size=len(WORDS)), tiny_vision()


@pytest.fixture(scope="module")
def adapter(tmp_path_factory, towers, tokenizer) -> Path:  # noqa: F811
    """A sound adapter on base models in memory."""
    recipe = dehvf_kit.parse_recipe(small_adapter_recipe())
    model = build(recipe, decoder=towers[0], vision=towers[1], tokenizer=tokenizer)
    randomise(model.nodes)
    folder = tmp_path_factory.mktemp("adapter") / "adapter"
    model.save_pretrained(folder)
    model.detach()
    return folder


def small_adapter_recipe() -> dict[str, Any]:
    return raw_recipe(
        decoder={"config": {"model_type": "llama", **LLAMA, "vocab_size": len(WORDS)}},
        data={"type": "jsonl", "train": "a.jsonl", "prompt": {"question": "{question}"}},
    )


@share(0.2)
@given(changes=CHANGES, text_changes=TEXT_CHANGES)
def test_adapter_configs(adapter, towers, tokenizer, changes, text_changes):  # noqa: F811
    file = adapter / "dehvf_config.json"
    sound = adapter.parent / "sound.json"
    if not sound.exists():
        shutil.copy(file, sound)
    text = json.dumps(mutated(json.loads(sound.read_text()), changes), indent=1)
    file.write_bytes(cut(text.encode(), text_changes))

    def load() -> None:
        dehvf_kit.load(adapter, decoder=towers[0], vision=towers[1], tokenizer=tokenizer).detach()

    try:
        attempt(load, str(adapter), "decoder:", "vision:")
    finally:
        shutil.copy(sound, file)
        assert not any(module._forward_hooks for module in towers[0].modules()), "a refused adapter leaves hooks"


# Data


def jsonl(folder: Path) -> tuple[Any, Callable[[bytes], DataConfig]]:
    rows = [{"id": n, "image": "a.png", "question": "what ?", "answer": "red", "kind": "colour"} for n in range(3)]
    return rows, lambda data: JsonlDataConfig(train=_file(folder / "a.jsonl", data))


def table(folder: Path) -> tuple[Any, Callable[[bytes], DataConfig]]:
    rows = [{"id": n, "image": "a.png", "question": "what ?", "answer": ["red", "blue"], "kind": n} for n in range(3)]
    return rows, lambda data: TableDataConfig(train=str(_file(folder / "a.jsonl", data)), test="")


def llava(folder: Path) -> tuple[Any, Callable[[bytes], DataConfig]]:
    talk = [{"from": "human", "value": "<image>\nwhat ?"}, {"from": "gpt", "value": "red"}] * 2
    rows = [{"id": n, "image": "a.png", "conversations": talk} for n in range(2)]
    return rows, lambda data: LlavaDataConfig(train=_file(folder / "a.json", data))


def science(folder: Path) -> tuple[Any, Callable[[bytes], DataConfig]]:
    scienceqa(folder / "sqa")
    rows = json.loads((folder / "sqa/problems.json").read_text())
    kept = {key: rows[key] for key in list(rows)[:4]}
    (folder / "sqa/pid_splits.json").write_text(json.dumps({"train": list(kept), "val": [], "test": []}))

    def config(data: bytes) -> DataConfig:
        _file(folder / "sqa/problems.json", data)
        return ScienceQaDataConfig(path=str(folder / "sqa"), captions=True)

    return kept, config


def splits(folder: Path) -> tuple[Any, Callable[[bytes], DataConfig]]:
    scienceqa(folder / "sqa")

    def config(data: bytes) -> DataConfig:
        _file(folder / "sqa/pid_splits.json", data)
        return ScienceQaDataConfig(path=str(folder / "sqa"), captions=True)

    return {"train": ["1", "2", 3], "val": ["4"], "test": ["5"]}, config


def captions(folder: Path) -> tuple[Any, Callable[[bytes], DataConfig]]:
    file = coco(folder / "coco") / "dataset_coco.json"

    def config(data: bytes) -> DataConfig:
        return CocoCaptionsDataConfig(annotations=_file(file, data), images=file.parent, restval=True)

    return json.loads(file.read_text()), config


def _file(file: Path, data: bytes) -> Path:
    file.write_bytes(data)
    return file


READERS = {"jsonl": jsonl, "table": table, "llava": llava, "scienceqa": science, "splits": splits, "coco": captions}
LINES = ("jsonl", "table")
_made: dict[str, tuple[Any, Callable[[bytes], DataConfig]]] = {}


@pytest.mark.parametrize("reader", READERS)
@share(0.35 / len(READERS))
@given(changes=CHANGES, text_changes=TEXT_CHANGES, skip=st.booleans())
def test_data(tmp_path_factory, reader, changes, text_changes, skip):
    folder = place(tmp_path_factory)
    if reader not in _made:
        (folder / reader).mkdir()
        _made[reader] = READERS[reader](folder / reader)
    rows, config_of = _made[reader]
    rows = mutated(rows, changes)
    text = "\n".join(map(json.dumps, rows)) if reader in LINES and isinstance(rows, list) else json.dumps(rows)
    config = config_of(cut(text.encode(), text_changes))
    if skip:
        config = config.model_copy(update={"on_bad_sample": "skip"})
    attempt(lambda: list(config.usable("train").samples), str(folder), "data.train")
    attempt(lambda: [report.row() for report in inspect_data(config, open_images=False)])


def test_what_is_mutated_is_sound(tmp_path: Path, adapter, towers, tokenizer) -> None:  # noqa: F811
    """Else every mutation would be refused for what all of them share."""
    assert len(REAL) > 10
    for raw in REAL:
        dehvf_kit.parse_recipe(raw).check()
    dehvf_kit.load(adapter, decoder=towers[0], vision=towers[1], tokenizer=tokenizer).detach()
    for name, reader in READERS.items():
        (tmp_path / name).mkdir()
        rows, config_of = reader(tmp_path / name)
        text = "\n".join(map(json.dumps, rows)) if name in LINES else json.dumps(rows)
        assert config_of(text.encode()).samples("train"), name


_places: list[Path] = []


def place(factory: pytest.TempPathFactory) -> Path:
    """One folder for all examples of a process."""
    if not _places:
        _places.append(factory.mktemp("fuzz"))
    return _places[0]
