"""Adapters by hub id, from a cache folder laid out as huggingface_hub does; nothing is fetched."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from cli.commands import at_most
from data.small_sets import picture
from evaluation.benchmarks import recipe, towers
from huggingface_hub import ModelCard
from huggingface_hub.file_download import repo_folder_name
from transformers import AutoModelForImageTextToText, AutoProcessor

import dehvf_kit
from dehvf_kit.adapter.card import card, keep
from dehvf_kit.adapter.files import CONFIG, OLD_CONFIG, WEIGHTS, adapter_folder, read_config
from dehvf_kit.adapter.hub import push_adapter
from dehvf_kit.errors import AdapterError

ID, COMMIT = "someone/eyes", "0123456789abcdef0123456789abcdef01234567"


def put_in_cache(adapter: Path, cache: Path, repo_id: str = ID) -> None:
    """A snapshot as `snapshot_download` leaves it: blobs, links to them, and `main` pointing at the commit."""
    place = cache / repo_folder_name(repo_id=repo_id, repo_type="model")
    (place / "refs").mkdir(parents=True)
    (place / "refs/main").write_text(COMMIT)
    (place / "blobs").mkdir()
    snapshot = place / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    for number, file in enumerate(sorted(adapter.iterdir())):
        shutil.copy(file, place / "blobs" / str(number))
        (snapshot / file.name).symlink_to(f"../../blobs/{number}")


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hub")
    rows = [{"id": name, "image": "red.png", "question": "What ?", "answer": "red"} for name in "ab"]
    (folder / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    picture(folder / "red.png", "red")
    model = dehvf_kit.build(dehvf_kit.load_recipe(recipe(towers(folder), f"{{type: jsonl, test: {folder}/test.jsonl}}")))
    model.save_pretrained(folder / "adapter")
    put_in_cache(folder / "adapter", folder / "cache")
    return folder / "adapter"


@pytest.fixture
def cache(adapter: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The cache in use, and no folder of the id's name."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(adapter.parent / "cache"))
    monkeypatch.chdir(tmp_path)
    return adapter.parent / "cache"


def weights(model: dehvf_kit.DehvfModel) -> torch.Tensor:
    return torch.cat([tensor.flatten() for tensor in model.named_trainable_parameters().values()])


def test_a_hub_id_loads_what_its_folder_does(adapter: Path, cache: Path) -> None:
    expected = weights(dehvf_kit.load(adapter))
    assert torch.equal(weights(dehvf_kit.load(ID, revision="main")), expected)
    assert torch.equal(weights(dehvf_kit.DehvfModel.from_pretrained(f"{ID}@{COMMIT}")), expected)
    assert torch.equal(weights(dehvf_kit.load(ID, cache_dir=cache, local_files_only=True, token=False)), expected)


def test_transformers_auto_classes_take_the_id(adapter: Path, cache: Path) -> None:
    expected = weights(dehvf_kit.load(adapter))
    model = AutoModelForImageTextToText.from_pretrained(ID, cache_dir=cache)
    assert isinstance(model, dehvf_kit.DehvfModel) and torch.equal(weights(model), expected)
    assert isinstance(AutoProcessor.from_pretrained(ID, cache_dir=cache), dehvf_kit.DehvfProcessor)


def test_a_folder_comes_before_the_hub(cache: Path, tmp_path: Path) -> None:
    (tmp_path / ID).mkdir(parents=True)
    assert adapter_folder(ID) == Path(ID)
    with pytest.raises(AdapterError, match="is a folder, which has no revision 'main'"):
        adapter_folder(ID, revision="main")


@pytest.mark.parametrize("given", ["runs/demo/adapter", "nowhere", "./a/b", "../b", "/a/b", "a/b c"])
def test_what_is_no_id_asks_nobody(cache: Path, given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: pytest.fail("asked the hub"))
    with pytest.raises(AdapterError, match="there is no such folder"):
        dehvf_kit.load(given)


def test_an_id_that_is_not_in_the_cache(cache: Path) -> None:
    with pytest.raises(AdapterError, match="someone/else: there is no such folder, and it cannot be fetched from the hub: "):
        dehvf_kit.load("someone/else")


def test_only_an_adapters_files_are_asked_for(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **given: asked.update(given) or str(cache))
    adapter_folder(ID, revision="v1", token="secret")
    assert asked["revision"] == "v1" and asked["token"] == "secret" and asked["local_files_only"] is False
    assert {WEIGHTS, CONFIG, OLD_CONFIG} <= set(asked["allow_patterns"]) and not any(
        "*" in name for name in asked["allow_patterns"]
    )


def test_commands_take_the_id(adapter: Path, cache: Path, command: Any) -> None:
    said = command("generate", adapter.parent / "red.png", "What ?", "--adapter", ID)
    assert said.code == 0, said.err
    assert command("eval", ID, "--json").code == 0
    refused = command("eval", ID, "--store")
    assert refused.code == 1 and "is on the hub" in refused.err
    before = (adapter.parent / "cache").rglob("README.md").__next__().read_text()
    found = command("verify", ID, "--questions", 2, "--batch", 2, "--json")
    assert found.code == 0 and json.loads(found.out)["stored"] is False
    assert (adapter.parent / "cache").rglob("README.md").__next__().read_text() == before


def test_the_old_name_of_the_config_is_read_and_replaced(adapter: Path, tmp_path: Path) -> None:
    old = shutil.copytree(adapter, tmp_path / "old")
    (old / CONFIG).rename(old / OLD_CONFIG)
    model = dehvf_kit.load(old)
    assert read_config(old)["recipe"] == read_config(adapter)["recipe"]
    model.save_pretrained(old)
    assert (old / CONFIG).is_file() and not (old / OLD_CONFIG).exists()


class Api:
    """Keeps what HfApi would upload."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def create_repo(self, repo_id: str, **_: Any) -> Any:
        return SimpleNamespace(repo_id=repo_id)

    def upload_folder(self, folder_path: str, **_: Any) -> Any:
        shutil.copytree(folder_path, self.place)
        return SimpleNamespace(pr_url=None, commit_url="https://hub/commit")


def test_a_run_is_pushed_with_its_widget(adapter: Path, tmp_path: Path) -> None:
    old = shutil.copytree(adapter, tmp_path / "run/adapter")
    (old / CONFIG).rename(old / OLD_CONFIG)
    (tmp_path / "run/log.jsonl").write_text("{}\n")
    push_adapter(tmp_path / "run", ID, api=Api(tmp_path / "hub"), widget=(adapter.parent / "red.png", "What colour?"))
    files = {file.name for file in (tmp_path / "hub").iterdir()}
    assert {CONFIG, WEIGHTS, "widget.png"} <= files and not files & {OLD_CONFIG, "log.jsonl"}
    shown = ModelCard.load(tmp_path / "hub/README.md")
    assert shown.data.widget == [{"src": "widget.png", "text": "What colour?"}]
    assert "widget" not in ModelCard.load(old / "README.md").data.to_dict()


@pytest.mark.parametrize("size", [0, 1500])
def test_no_room_to_stage_is_one_error_and_nothing_is_pushed(adapter: Path, tmp_path: Path, size: int) -> None:
    model = dehvf_kit.load(adapter)
    for push in (
        lambda: push_adapter(adapter, ID, api=Api(tmp_path / "hub")),
        lambda: model.push_to_hub(ID, api=Api(tmp_path / "hub")),
    ):
        with at_most(size), pytest.raises(AdapterError, match="cannot be written: File too large; make room") as said:
            push()
        assert len(str(said.value).splitlines()) == 1
        assert not (tmp_path / "hub").exists()


def test_no_temporary_folder_at_all(adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "none"))
    with pytest.raises(AdapterError, match="in the temporary folder: cannot be written: No such file"):
        push_adapter(adapter, ID, api=Api(tmp_path / "hub"))


def test_the_hubs_own_reader_takes_the_card(adapter: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(adapter, tmp_path / "adapter")
    row = {"value": 0.5, "low": 0.1, "high": 0.9, "count": 4}
    keep(folder, "scores", {"data": "4 questions", "scores": {"accuracy": row}})
    config = read_config(folder)
    config["bases"]["decoder"]["name"], config["recipe"]["data"]["path"] = "meta/llama", "someone/questions"
    measured = {"scores": {"data": "4 questions", "scores": {"accuracy": row}}}
    data = ModelCard(card(config, {}, measured)).data
    assert data.base_model == ["meta/llama"] and data.base_model_relation == "adapter"
    assert data.datasets == ["someone/questions"] and data.metrics == ["accuracy"]
    (result,) = data.eval_results
    assert (result.dataset_type, result.metric_type, result.metric_value) == ("someone/questions", "accuracy", 0.5)
    assert ModelCard.load(folder / "README.md").data.eval_results[0].dataset_type == "jsonl"
