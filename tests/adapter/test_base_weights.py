"""The record of a base's weights: any single changed weight is refused; the same base is accepted however it is held."""

from __future__ import annotations

import json
import logging
import shutil

import pytest
import torch
from accelerate import cpu_offload
from helpers import tiny_decoder, tiny_model, tiny_vision
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import ViTModel

import dehvf_kit
from dehvf_kit.adapter.base_weights import compare, record
from dehvf_kit.backbones.vision.config import load_encoder
from dehvf_kit.errors import AdapterError

pytestmark = pytest.mark.usefixtures("builtins_alone")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
PAIRS = [(one, other) for one in DTYPES for other in DTYPES]


def uneven(model: nn.Module) -> nn.Module:
    """A model whose norms are not all ones, so that every tensor differs from every other."""
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base") / "adapter"
    tiny_model(uneven(tiny_decoder()), uneven(tiny_vision())).save_pretrained(folder)
    return folder


@pytest.mark.nightly
def test_any_single_changed_weight_shows(saved):
    bases = json.loads((saved / "dehvf_config.json").read_text())["bases"]
    for base, model in (("decoder", uneven(tiny_decoder())), ("vision", uneven(tiny_vision()))):
        names = [name for name, _ in model.named_parameters()]
        assert list(bases[base]["weights"]) == names
        for number, (name, parameter) in enumerate(model.named_parameters()):
            place = (0, parameter.numel() // 2, parameter.numel() - 1)[number % 3]
            before = parameter.detach().reshape(-1)[place].clone()
            parameter.data.view(-1)[place] = torch.nextafter(before, torch.tensor(9.0))
            found = compare(bases[base]["weights"], record(model))
            assert found.other == [name] and not found.missing and not found.uncompared
            parameter.data.view(-1)[place] = before
        assert compare(bases[base]["weights"], record(model)).other == []


@pytest.mark.parametrize("name", ["decoder", "vision"])
def test_a_final_norm_times_a_million_is_refused(name, saved):
    bases = {"decoder": uneven(tiny_decoder()), "vision": uneven(tiny_vision())}
    last = [(key, part) for key, part in bases[name].named_parameters() if "norm" in key][-1]
    last[1].data.mul_(1e6)
    with pytest.raises(AdapterError, match=f"{name}: other weights than the adapter was trained on .*'{last[0]}' differ"):
        dehvf_kit.load(saved, **bases)


@pytest.mark.parametrize(("then", "now"), PAIRS)
def test_the_same_base_in_another_dtype(then, now):
    found = compare(record(uneven(tiny_decoder()).to(then)), record(uneven(tiny_decoder()).to(now)))
    assert (found.other, found.missing, found.uncompared) == ([], [], 0)
    assert found.compared == len(list(tiny_decoder().parameters()))


@pytest.mark.parametrize(("then", "now"), [(one, other) for one, other in PAIRS if torch.float32 in (one, other)])
def test_a_single_weight_shows_in_another_dtype(then, now):
    changed = uneven(tiny_decoder())
    changed.model.layers[2].mlp.up_proj.weight.data[3, 5] *= 1.02  # two units in the last place of bfloat16
    found = compare(record(uneven(tiny_decoder()).to(then)), record(changed.to(now)))
    assert found.other == ["model.layers.2.mlp.up_proj.weight"]


@pytest.mark.parametrize(("then", "now"), [(torch.float16, torch.bfloat16), (torch.bfloat16, torch.float16)])
def test_other_tensors_show_between_the_two_half_dtypes(then, now):
    changed = uneven(tiny_decoder())
    for name, parameter in changed.named_parameters():
        if name.endswith("up_proj.weight"):
            parameter.data = torch.randn_like(parameter)
    found = compare(record(uneven(tiny_decoder()).to(then)), record(changed.to(now)))
    assert found.other == [f"model.layers.{layer}.mlp.up_proj.weight" for layer in range(4)]


def test_names_of_a_compiled_base_are_those_of_the_plain_one():
    plain, compiled = tiny_decoder(), torch.compile(tiny_decoder())
    compiled.model.layers[1] = torch.compile(compiled.model.layers[1])
    assert any("_orig_mod" in name for name, _ in compiled.named_parameters())
    assert record(plain) == record(compiled)


def test_names_of_a_base_with_lora_are_those_of_the_plain_one():
    peft = pytest.importorskip("peft", reason="peft is not installed")
    wrapped = peft.get_peft_model(tiny_decoder(), peft.LoraConfig(target_modules=["q_proj"], r=2))
    found = compare(record(tiny_decoder()), record(wrapped))
    assert (found.other, found.missing) == ([], []) and found.compared == len(list(tiny_decoder().parameters()))
    assert found.uncompared == 2 * 4, "LoRA's own weights, of which nothing was known"


class Packed(nn.Parameter):
    """Stands for a library's packed weight: of a dtype with fractions, its bytes garbled."""


def pack(model: nn.Module, name: str) -> nn.Module:
    layer = model.get_submodule(name)
    layer.weight = Packed(torch.full_like(layer.weight, torch.nan), requires_grad=False)
    return model


def test_what_is_packed_is_left_out_by_itself_and_counted(tmp_path, caplog):
    name = "model.layers.0.mlp.up_proj"
    packed = record(pack(tiny_decoder(), name))
    assert packed[f"{name}.weight"] == "skipped: Packed" and "nan" not in json.dumps(packed)
    plain = record(tiny_decoder())
    for saved, model in ((packed, tiny_decoder()), (plain, pack(tiny_decoder(), name))):
        found = compare(saved, record(model))
        assert (found.other, found.missing, found.uncompared) == ([], [], 1)
        model.lm_head.weight.data[0, 0] += 1
        assert compare(saved, record(model)).other == ["lm_head.weight"]
    tiny_model().save_pretrained(tmp_path / "adapter")
    with caplog.at_level(logging.WARNING):
        dehvf_kit.load(tmp_path / "adapter", decoder=pack(tiny_decoder(), name), vision=tiny_vision()).detach()
    assert "decoder: 1 weights could not be compared" in caplog.text and "vision" not in caplog.text


def test_one_weight_on_meta_does_not_turn_the_check_off():
    model = tiny_decoder()
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.to("meta"))
    saved = record(model)
    assert saved["lm_head.weight"] == "skipped: meta"
    assert compare(saved, record(tiny_decoder(seed=5))).other and compare(record(tiny_decoder(seed=5)), record(model)).other
    assert record(tiny_decoder().to("meta")) is None


def test_saved_buffers_count_and_those_computed_anew_do_not():
    def model(mean: float, frequency: float) -> nn.Module:
        made = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 4))
        torch.nn.init.ones_(made[1].weight)
        torch.nn.init.ones_(made[1].bias)
        made[0].running_mean.fill_(mean)
        made[1].register_buffer("inv_freq", torch.full((3,), frequency))
        made[1].register_buffer("scratch", torch.full((3,), frequency), persistent=False)
        return made

    assert compare(record(model(0.0, 1.0)), record(model(1.0, 1.0))).other == ["0.running_mean"]
    found = compare(record(model(0.0, 1.0)), record(model(0.0, 2.0)))
    assert found.other == [] and found.uncompared == 0


def test_a_large_tensor_is_digested_in_pieces(monkeypatch):
    whole = record(tiny_decoder())
    monkeypatch.setattr("dehvf_kit.adapter.base_weights.CHUNK", 7)
    assert record(tiny_decoder()) == whole


def test_what_a_checkpoint_lacks_and_no_feature_depends_on_is_no_identity(tmp_path):
    encoder = tiny_vision("vit")
    encoder.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    save_file(
        {name: tensor for name, tensor in weights.items() if "pooler" not in name}, tmp_path / "model.safetensors", {"format": "pt"}
    )
    first, second = (record(load_encoder(ViTModel, str(tmp_path), encoder.config)) for _ in range(2))
    assert first == second and first["pooler.dense.weight"] == "skipped: random"
    for then, now in ((first, record(encoder)), (record(encoder), first)):
        found = compare(then, now)
        assert found.compared and (found.other, found.missing, found.uncompared) == ([], [], 0)


@pytest.mark.parametrize("line", ["float32=xyz values=", "float32=0123456789abcdef values=nan", "skipped:", "", 3, None])
def test_a_garbled_record_is_refused(saved, tmp_path, line):
    shutil.copytree(saved, tmp_path / "adapter")
    config = json.loads((saved / "dehvf_config.json").read_text())
    config["bases"]["vision"]["weights"]["class_embedding"] = line
    (tmp_path / "adapter" / "dehvf_config.json").write_text(json.dumps(config))
    with pytest.raises(AdapterError, match="bases: 'vision' has a garbled 'weights'"):
        dehvf_kit.load(tmp_path / "adapter", decoder=tiny_decoder(), vision=tiny_vision())


def offloaded(decoder: nn.Module) -> nn.Module:
    return cpu_offload(decoder, torch.device("cpu"))


@pytest.mark.parametrize("settings", [{}, {"tie_word_embeddings": True}], ids=["apart", "tied"])
def test_an_offloaded_base_is_the_same_and_another_one_is_not(settings):
    """`cpu_offload` leaves every parameter on the meta device, and gives tied weights two names."""
    plain, held = record(tiny_decoder(**settings)), record(offloaded(tiny_decoder(**settings)))
    for then, now in ((plain, held), (held, plain)):
        found = compare(then, now)
        assert (found.other, found.missing, found.uncompared) == ([], [], 0) and found.compared == len(plain)
    other = record(tiny_decoder(seed=5, **settings))
    assert compare(held, other).other and compare(other, held).other


def test_an_offloaded_base_is_checked_on_loading(saved):
    dehvf_kit.load(saved, decoder=offloaded(uneven(tiny_decoder())), vision=uneven(tiny_vision()))
    with pytest.raises(AdapterError, match="decoder: other weights than the adapter was trained on"):
        dehvf_kit.load(saved, decoder=offloaded(uneven(tiny_decoder(seed=5))), vision=uneven(tiny_vision()))


def in_bits(decoder: nn.Module, bits: int) -> nn.Module:
    """One linear map in bitsandbytes' form, made in memory: there is no checkpoint to compare with."""
    bnb = pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    mlp = decoder.model.layers[1].mlp
    kind = bnb.nn.Linear4bit(32, 64, False, quant_type="nf4") if bits == 4 else bnb.nn.Linear8bitLt(32, 64, False, False)
    kind.load_state_dict({"weight": mlp.up_proj.weight})
    mlp.up_proj = kind.to("cpu")
    return decoder


@pytest.mark.parametrize("bits", [4, 8])
def test_a_base_quantised_in_memory(bits):
    name = "model.layers.1.mlp.up_proj.weight"
    plain, held = record(uneven(tiny_decoder())), record(in_bits(uneven(tiny_decoder()), bits))
    for then, now in ((plain, held), (held, plain)):
        found = compare(then, now)
        assert (found.other, found.missing, found.uncompared) == ([], [], 1), "within the error of quantisation; no more is known"
    assert compare(held, record(in_bits(uneven(tiny_decoder()), bits))) == compare(held, held)
    other = uneven(tiny_decoder())
    other.model.layers[1].mlp.up_proj.weight.data.mul_(-1)
    assert compare(held, record(other)).other == compare(record(other), held).other == [name]
    near = in_bits(uneven(tiny_decoder()), bits)
    near.model.layers[1].mlp.up_proj.weight.data.view(-1)[5] += 1
    assert compare(held, record(near)).other == [name], "quantised alike, so compared to the last bit"


class PackedLinear(torch.nn.Module):
    """A linear layer as GPTQ keeps one: integers and a scale, no weight."""

    def __init__(self, linear: torch.nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features, self.bits, self.bias = linear.in_features, linear.out_features, 8, None
        scale = linear.weight.detach().abs().max() / 127
        self.register_buffer("qweight", (linear.weight.detach() / scale).round().to(torch.int8))
        self.register_buffer("scales", scale)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ (self.qweight.to(x.dtype) * self.scales).T


def test_a_layer_without_a_weight_of_its_own_is_one_weight() -> None:
    plain, packed = tiny_decoder(), tiny_decoder()
    mlp = packed.model.layers[0].mlp
    mlp.up_proj = PackedLinear(mlp.up_proj)
    name = "model.layers.0.mlp.up_proj.weight"
    before, after = record(plain), record(packed)
    assert before.keys() == after.keys() and after[name].startswith("PackedLinear8_")
    found = compare(before, after)
    assert not found.missing and not found.other and found.uncompared == 1
    mlp.up_proj.qweight[3, 5] += 1
    assert compare(after, record(packed)).other == [name]
    mlp.up_proj.scales *= -1
    assert compare(before, record(packed)).other == [name]
