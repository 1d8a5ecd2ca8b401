"""Adapters on disk: the same logits bit for bit, and an error that says so for anything that is not that adapter."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import torch
from evaluation.benchmarks import towers as base_models
from helpers import pixels, raw_recipe, tiny_decoder, tiny_model, tiny_vision, tokens
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM, PreTrainedModel

import dehvf_kit
from dehvf_kit.adapter.files import adapter_folder
from dehvf_kit.errors import AdapterError, DehvfError

pytestmark = pytest.mark.usefixtures("builtins_alone")

WEIGHTS, CONFIG = "adapter_model.safetensors", "dehvf_config.json"


@pytest.fixture(scope="module")
def towers():
    return tiny_decoder(), tiny_vision()


@pytest.fixture
def adapter(tmp_path, towers) -> Path:
    model = tiny_model(*towers)
    model.save_pretrained(tmp_path / "adapter")
    model.detach()
    return tmp_path / "adapter"


def change(adapter: Path, **fields) -> None:
    """Put fields into the adapter's config; a value of None takes the field away, a function changes it."""
    config = json.loads((adapter / CONFIG).read_text())
    for name, value in fields.items():
        config[name] = value(config[name]) if callable(value) else value
        if value is None:
            del config[name]
    (adapter / CONFIG).write_text(json.dumps(config))


def test_same_logits_bit_for_bit(adapter, towers):
    original = tiny_model()
    expected = original(tokens(), pixel_values=pixels()).logits
    model = dehvf_kit.load(adapter, decoder=towers[0], vision=towers[1])
    try:
        assert torch.equal(model(tokens(), pixel_values=pixels()).logits, expected)
        again = model.named_trainable_parameters()
        assert list(again) == list(original.named_trainable_parameters())
        assert all(torch.equal(again[name], weight) for name, weight in original.named_trainable_parameters().items())
        assert model.recipe.resolved() == original.recipe.resolved()
    finally:
        model.detach()


def test_from_pretrained_is_the_same_door(adapter):
    model = dehvf_kit.DehvfModel.from_pretrained(adapter, decoder=tiny_decoder(), vision=tiny_vision())
    assert torch.equal(model(tokens(), pixel_values=pixels()).logits, tiny_model()(tokens(), pixel_values=pixels()).logits)


def test_the_folder_holds_the_adapter_alone(adapter):
    model = tiny_model()
    weights = load_file(adapter / WEIGHTS)
    assert set(weights) == set(model.named_trainable_parameters())
    assert {file.name for file in adapter.iterdir()} == {WEIGHTS, CONFIG, "config.json", "generation_config.json", "README.md"}
    config = json.loads((adapter / CONFIG).read_text())
    assert config["trainable_parameters"] == model.num_trainable_parameters() == sum(t.numel() for t in weights.values())
    assert config["recipe"] == model.recipe.resolved()
    assert set(config["versions"]) == {"dehvf-kit", "torch", "transformers"}
    assert set(config["bases"]) == {"decoder", "vision"}
    assert json.loads((adapter / "config.json").read_text())["model_type"] == "dehvf"
    card = (adapter / "README.md").read_text()
    assert f"{model.num_trainable_parameters():,} trained parameters" in card and "| fuser | cross_attention |" in card


def test_saving_again_replaces_and_overwrite_false_refuses(adapter):
    model = tiny_model()
    with torch.no_grad():
        model.nodes.position.values.zero_()
    with pytest.raises(AdapterError, match="holds an adapter already; name another folder"):
        model.save_pretrained(adapter, overwrite=False)
    model.save_pretrained(adapter)
    assert not load_file(adapter / WEIGHTS)["position.values"].any()
    assert not [file for file in adapter.iterdir() if file.name.startswith(".")], "no half-written files"


def test_the_adapter_of_a_run_is_not_hidden(tmp_path):
    """`build` and then `train` use one folder where no other is named; the run's adapter is the trained one."""
    tiny_model().save_pretrained(tmp_path)
    assert adapter_folder(tmp_path) == tmp_path
    tiny_model().save_pretrained(tmp_path / "adapter")
    assert adapter_folder(tmp_path) == tmp_path / "adapter"
    with pytest.raises(AdapterError, match="holds a run already, whose adapter would be hidden; name another folder"):
        tiny_model().save_pretrained(tmp_path)


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(AdapterError, match="is a file; name a folder"):
        tiny_model().save_pretrained(tmp_path / "file")
    with pytest.raises(AdapterError, match="cannot be written: Not a directory"):
        tiny_model().save_pretrained(tmp_path / "file" / "below")


def reweigh(folder, weights):
    """Save weights under a config that vouches for none."""
    save_file(weights, folder / WEIGHTS)
    change(folder, weights_sha256=None)


def drop_weight(folder):
    weights = load_file(folder / WEIGHTS)
    del weights["position.keys"]
    reweigh(folder, weights)


def rename_weight(folder):
    weights = load_file(folder / WEIGHTS)
    weights["position.kes"] = weights.pop("position.keys")
    reweigh(folder, weights)


def cut_weight(folder):
    weights = load_file(folder / WEIGHTS)
    weights["position.keys"] = weights["position.keys"][:-1].contiguous()
    reweigh(folder, weights)


def nan_weight(folder):
    weights = load_file(folder / WEIGHTS)
    weights["projector.fc1.bias"][3] = torch.nan
    reweigh(folder, weights)


def alter_weight(folder):
    weights = load_file(folder / WEIGHTS)
    weights["projector.fc1.bias"][3] += 1
    save_file(weights, folder / WEIGHTS)


def pickled(folder):
    (folder / WEIGHTS).write_bytes(pickle.dumps({"position.keys": 1}))


def truncated(folder):
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[: len(data) // 2])


def bases(change_them):
    return lambda folder: change(folder, bases=change_them)


BROKEN = {
    "missing weight": (drop_weight, r"adapter: weights do not fit the recipe; missing: position\.keys$"),
    "renamed weight": (rename_weight, r"missing: position\.keys; unexpected: position\.kes; did you mean 'position\.keys'\?$"),
    "misshapen weight": (cut_weight, r"'position\.keys' is \(19, 32\), the recipe makes it \(20, 32\)"),
    "NaN weight": (nan_weight, r"'projector\.fc1\.bias' holds values that are not finite"),
    "altered weight": (alter_weight, "not the weights that dehvf_config.json was saved with"),
    "truncated weights": (truncated, r"adapter_model\.safetensors: cannot be read: "),
    "pickled weights": (pickled, r"adapter_model\.safetensors: cannot be read: "),
    "empty weights": (lambda folder: (folder / WEIGHTS).write_bytes(b""), r"adapter_model\.safetensors: cannot be read: "),
    "no weights": (lambda folder: (folder / WEIGHTS).unlink(), r"incomplete, it has no adapter_model\.safetensors"),
    "no config": (lambda folder: (folder / CONFIG).unlink(), r"not an adapter of dehvf-kit, it has no dehvf_config\.json"),
    "config is no JSON": (lambda folder: (folder / CONFIG).write_text("{half"), r"dehvf_config\.json:1: not JSON: "),
    "config is binary": (lambda folder: (folder / CONFIG).write_bytes(b"\xff\xfe\x00"), r"dehvf_config\.json: not UTF-8: "),
    "config is a list": (lambda folder: (folder / CONFIG).write_text("[]"), "not written by dehvf-kit"),
    "another tool's adapter": (lambda folder: (folder / CONFIG).write_text('{"peft_type": "LORA"}'), "not written by dehvf-kit"),
    "newer format": (lambda folder: change(folder, format=2), "format 2, this kit reads up to 1; upgrade dehvf-kit"),
    "no format": (lambda folder: change(folder, format=None), "'format' is missing"),
    "no recipe": (lambda folder: change(folder, recipe=None), "'recipe' is missing"),
    "no bases": (lambda folder: change(folder, bases=[]), "'bases' is missing"),
    "no decoder among the bases": (bases({}), "bases: 'decoder' is missing"),
    "base is no mapping": (bases(lambda known: {**known, "vision": 3}), "bases: 'vision' is missing"),
    "base without architecture": (
        bases(lambda known: {**known, "decoder": {"name": "x"}}),
        "bases: 'decoder' has no 'architecture'",
    ),
    "garbled probe": (
        bases(lambda known: {**known, "decoder": {**known["decoder"], "probe": {"lm_head.weight": ["a"]}}}),
        "bases: 'decoder' has a garbled 'probe'",
    ),
    "probe beyond every weight": (
        bases(lambda known: {**known, "decoder": {**known["decoder"], "probe": {"lm_head.weight": [10**400, 0, 0, 0]}}}),
        "bases: 'decoder' has a garbled 'probe'",
    ),
    "recipe of a component that is not installed": (
        lambda folder: change(folder, recipe=lambda recipe: {**recipe, "graph": {"fuser": {"type": "gone"}}}),
        r"dehvf_config\.json: recipe: graph\.fuser\.type: no fuser is named 'gone'\. Installed: cross_attention, mean",
    ),
    "recipe of other sizes": (
        lambda folder: change(
            folder, recipe=lambda recipe: {**recipe, "graph": {**recipe["graph"], "position": {"type": "learned", "num_slots": 21}}}
        ),
        r"'position\.keys' is \(20, 32\), the recipe makes it \(21, 32\)",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_adapter_is_refused(case, adapter, towers):
    damage, message = BROKEN[case]
    damage(adapter)
    hooks = _hooks(towers)
    with pytest.raises(DehvfError, match=message):
        dehvf_kit.load(adapter, decoder=towers[0], vision=towers[1])
    assert _hooks(towers) == hooks, "a refused adapter leaves nothing on the towers"
    assert all(parameter.requires_grad for parameter in towers[0].parameters())


def _hooks(towers) -> int:
    return sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for tower in towers for part in tower.modules())


@pytest.mark.parametrize(
    ("decoder", "vision", "message"),
    [
        (
            {"hidden_size": 64},
            {},
            "decoder: the adapter was trained on a model handed over in memory with hidden_size 32; this one has hidden_size 64",
        ),
        ({"num_hidden_layers": 5}, {}, "with num_hidden_layers 4; this one has num_hidden_layers 5"),
        ({"vocab_size": 98}, {}, "with vocab_size 99; this one has vocab_size 98"),
        ({"seed": 5}, {}, r"decoder: other weights than the adapter was trained on \(a model handed over in memory\): '"),
        ({}, {"seed": 5}, "vision: other weights than the adapter was trained on"),
        ({}, {"num_hidden_layers": 9}, "vision: .* with num_hidden_layers 8; this one has num_hidden_layers 9"),
        ({}, {"patch_size": 16}, "vision: .* with patch_size 8; this one has patch_size 16"),
    ],
)
def test_another_base_model_is_refused(decoder, vision, message, adapter):
    bases = tiny_decoder(**decoder), tiny_vision(**vision)
    hooks = _hooks(bases)
    with pytest.raises(AdapterError, match=message):
        dehvf_kit.load(adapter, decoder=bases[0], vision=bases[1])
    assert _hooks(bases) == hooks


def test_another_family_is_refused(adapter):
    with pytest.raises(AdapterError, match="vision: .* with model_type clip_vision_model; this one has model_type vit"):
        dehvf_kit.load(adapter, decoder=tiny_decoder(), vision=tiny_vision("vit"))


def test_the_same_base_in_another_dtype_is_accepted(adapter):
    model = dehvf_kit.load(adapter, decoder=tiny_decoder().to(torch.bfloat16), vision=tiny_vision())
    assert model(tokens(), pixel_values=pixels()).logits.dtype == torch.bfloat16
    with pytest.raises(AdapterError, match="other weights"):
        dehvf_kit.load(adapter, decoder=tiny_decoder(seed=5).to(torch.bfloat16), vision=tiny_vision())


def test_there_is_no_such_folder(tmp_path):
    with pytest.raises(AdapterError, match="there is no such folder"):
        dehvf_kit.load(tmp_path / "nothing")


def test_a_model_without_a_recipe_says_what_to_do_instead(tmp_path):
    model = tiny_model()
    model.recipe = None
    with pytest.raises(AdapterError, match="made without a recipe; save the components' state_dict yourself"):
        model.save_pretrained(tmp_path)


def test_from_pretrained_refuses_keywords_it_does_not_know(adapter):
    with pytest.raises(AdapterError, match="takes no 'low_memory'; it takes decoder, vision, dtype, device_map, token"):
        dehvf_kit.DehvfModel.from_pretrained(adapter, low_memory=True)
    with pytest.raises(AdapterError, match="decoder.trust_remote_code=true"):
        dehvf_kit.DehvfModel.from_pretrained(adapter, trust_remote_code=True)
    with pytest.raises(AdapterError, match="is a folder, which has no revision 'v1.0'"):
        dehvf_kit.DehvfModel.from_pretrained(adapter, revision="v1.0")
    with pytest.raises(AdapterError, match="the decoder is in memory already"):
        dehvf_kit.DehvfModel.from_pretrained(adapter, decoder=tiny_decoder(), device_map="cpu")


@pytest.fixture
def adapter_of_folders(tmp_path) -> Path:
    """An adapter whose base models are folders."""
    raw = raw_recipe()
    raw["decoder"] = {"model": str(base_models(tmp_path) / "decoder")}
    raw["vision"] = {"model": str(tmp_path / "vision"), "image": {"size": 32}}
    model = dehvf_kit.build(dehvf_kit.parse_recipe(raw))
    model.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def test_from_pretrained_hands_its_keywords_to_the_base_models(adapter_of_folders, monkeypatch):
    seen = {}
    real = LlamaForCausalLM.from_pretrained.__func__

    def from_pretrained(cls, *args, **kwargs):
        seen[cls.__name__] = kwargs
        return real(cls, *args, **kwargs)

    monkeypatch.setattr(PreTrainedModel, "from_pretrained", classmethod(from_pretrained))
    given = {"token": "secret", "cache_dir": "elsewhere", "local_files_only": False}
    model = dehvf_kit.DehvfModel.from_pretrained(adapter_of_folders, dtype=torch.bfloat16, device_map="cpu", **given)
    assert model.decoder.dtype == torch.bfloat16
    assert {name: seen["LlamaForCausalLM"][name] for name in given} == given
    assert {name: seen["CLIPVisionModel"][name] for name in given} == given
    assert seen["LlamaForCausalLM"]["device_map"] == "cpu" and "device_map" not in seen["CLIPVisionModel"]
    assert "secret" not in json.dumps(model.recipe.resolved(), default=str)


def test_save_pretrained_honours_or_refuses_its_keywords(towers, tmp_path):
    model = tiny_model(*towers)
    model.save_pretrained(tmp_path / "other", is_main_process=False, max_shard_size="1GB")
    assert not (tmp_path / "other").exists()
    with pytest.raises(AdapterError, match="save_pretrained: takes no 'push_to_hub'"):
        model.save_pretrained(tmp_path / "pushed", push_to_hub=True)
    assert not (tmp_path / "pushed").exists()
