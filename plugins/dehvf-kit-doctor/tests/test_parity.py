"""`verify`: small differences where a model is sound, plain ones where padding leaks; the card says what was found."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from cli.commands import Command
from dehvf_kit_doctor.parity import batch_parity
from helpers import randomise

import dehvf_kit
from dehvf_kit.adapter.hub import push_adapter
from dehvf_kit.data.samples import Sample
from dehvf_kit.errors import AdapterError, DataError
from dehvf_kit.model.model import DehvfModel

QUESTIONS = ["what colour is it ?", "what ?", "is it red ?", "colour ?", "what is it ?"]


@pytest.fixture(scope="module")
def model(world: Path) -> DehvfModel:
    model = dehvf_kit.build(dehvf_kit.load_recipe(world / "tiny.yaml"))
    randomise(model.nodes)
    return model


@pytest.fixture
def adapter(model: DehvfModel, tmp_path: Path) -> Path:
    model.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


@pytest.fixture
def samples(world: Path) -> list[Sample]:
    """Questions of several lengths, the last one without a picture."""
    pictures = [world / f"test{number}.png" for number in range(4)] + [None]
    return [
        Sample(str(number), question, "red", picture)
        for number, (question, picture) in enumerate(zip(QUESTIONS, pictures, strict=True))
    ]


def test_a_sound_model_says_the_same(model: DehvfModel, samples: list[Sample]) -> None:
    found = batch_parity(model, samples, batch=4, new_tokens=4)
    assert [one.variant for one in found.differences] == ["batch 1, cached", "batch 4, uncached", "batch 4, cached"]
    assert found.changed == [] and found.questions == 5
    # float32 sums in another order: worst seen 1.3e-5, where logits reach 5.4.
    assert 0 < found.largest < 1e-4 * found.logit_range


def test_padding_that_leaks_is_found(model: DehvfModel, samples: list[Sample], monkeypatch: pytest.MonkeyPatch) -> None:
    generate = model.decoder.generate

    def without_mask(**arguments: Any) -> Any:
        arguments["attention_mask"] = torch.ones_like(arguments["attention_mask"])
        return generate(**arguments)

    monkeypatch.setattr(model.decoder, "generate", without_mask)
    found = batch_parity(model, samples, batch=4, new_tokens=4)
    alone, uncached, cached = found.differences
    assert alone.largest < 1e-4 * found.logit_range
    assert min(uncached.largest, cached.largest) > 1e-2 * found.logit_range


def test_one_question_is_refused(model: DehvfModel, samples: list[Sample]) -> None:
    with pytest.raises(DataError, match="needs two questions"):
        batch_parity(model, samples[:1])


def test_the_command_keeps_what_it_found(adapter: Path, command: Command) -> None:
    assert "Not measured; `dehvf-kit verify" in (adapter / "README.md").read_text()
    ended = command("verify", adapter, "--questions", 6, "--batch", 3, "--new-tokens", 3, "--json")
    assert ended.code == 0, ended.err
    facts = json.loads(ended.out)
    assert facts["questions"] == 6 and facts["batch"] == 3 and len(facts["differences"]) == 3
    kept = json.loads((adapter / "measured.json").read_text())
    assert kept["batch_parity"]["differences"] == facts["differences"]
    card = (adapter / "README.md").read_text()
    assert f"| batch 3, cached | {facts['differences'][2]['largest']:.2e} | 0 |" in card
    assert "| fuser | cross_attention |" in card and "prompt fingerprint: `" in card
    plain = command("verify", adapter, "--questions", 4, "--batch", 2, "--no-store")
    assert "largest logit difference" in plain.out and json.loads((adapter / "measured.json").read_text()) == kept


def test_scores_go_into_the_card_too(adapter: Path, command: Command) -> None:
    assert command("eval", adapter, "--limit", 4, "--store").code == 0
    card = (adapter / "README.md").read_text()
    assert "On the first 4 questions of the test split of its `jsonl` data." in card and "| all | " in card


def test_what_was_measured_goes_with_its_weights_alone(adapter: Path, command: Command, tmp_path: Path) -> None:
    command("verify", adapter, "--questions", 2, "--batch", 2, "--new-tokens", 1)
    again = dehvf_kit.load(adapter)
    again.save_pretrained(tmp_path / "same")
    assert (tmp_path / "same" / "measured.json").is_file()
    with torch.no_grad():
        again.trainable_parameters()[0].add_(1)
    again.save_pretrained(tmp_path / "same")
    assert not (tmp_path / "same" / "measured.json").exists()
    assert "Not measured; `dehvf-kit verify" in (tmp_path / "same" / "README.md").read_text()


class FakeApi:
    """Takes what HfApi takes, and keeps what would be uploaded."""

    def __init__(self, place: Path, fails: bool = False) -> None:
        self.place, self.fails, self.calls = place, fails, []

    def create_repo(self, repo_id: str, **settings: Any) -> Any:
        if self.fails:
            raise ConnectionError("no network")
        self.calls.append((repo_id, settings))
        return SimpleNamespace(repo_id=repo_id)

    def upload_folder(self, **settings: Any) -> Any:
        self.calls.append(settings)
        shutil.copytree(settings["folder_path"], self.place)
        return SimpleNamespace(pr_url=None, commit_url="https://hub/commit")


def test_push_to_hub_uploads_the_adapter_and_its_own_card(model: DehvfModel, tmp_path: Path) -> None:
    api = FakeApi(tmp_path / "hub")
    assert model.push_to_hub("me/eyes", private=True, api=api) == "https://hub/commit"
    assert api.calls[0] == ("me/eyes", {"private": True, "token": None, "exist_ok": True})
    assert (tmp_path / "hub/README.md").read_text().startswith("---\nlibrary_name: dehvf-kit")
    restored = dehvf_kit.load(tmp_path / "hub").named_trainable_parameters()
    assert all(torch.equal(weight, restored[name]) for name, weight in model.named_trainable_parameters().items())


def test_push_says_what_went_wrong(adapter: Path, tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="me/eyes: cannot be uploaded to the hub: no network"):
        push_adapter(adapter, "me/eyes", api=FakeApi(tmp_path / "hub", fails=True))
    (tmp_path / "empty").mkdir()
    with pytest.raises(AdapterError, match="not an adapter of dehvf-kit"):
        push_adapter(tmp_path / "empty", "me/eyes", api=FakeApi(tmp_path / "hub"))


def test_the_card_names_licences_and_parents(world: Path, tmp_path: Path) -> None:
    shutil.copytree(world / "decoder", tmp_path / "decoder")
    (tmp_path / "decoder" / "README.md").write_text("---\nlicense: llama2\n---\n# Base\n")
    (tmp_path / "mine.yaml").write_text(f"extends: {world}/tiny.yaml\nname: mine\ndecoder: {{model: {tmp_path}/decoder}}\n")
    dehvf_kit.build(dehvf_kit.load_recipe(tmp_path / "mine.yaml")).save_pretrained(tmp_path / "adapter")
    card = (tmp_path / "adapter" / "README.md").read_text()
    assert f"- decoder: {tmp_path}/decoder; licence: llama2" in card
    assert f"- vision: {world}/vision; licence: not known" in card
    assert "- recipe: mine, which extends tiny.yaml" in card and "- data: type `jsonl`" in card
