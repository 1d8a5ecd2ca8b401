"""peft's tuners as a component: literal references, counts, an untouched start, saving, detaching, half precision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from baseline_helpers import baseline, decoder, encoder, ids, literal_llama, norm, randomise, recipe, tokenizer, worst
from dehvf_kit_baselines.peft_tuner import METHODS, PeftConfig
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

import dehvf_kit
from dehvf_kit.errors import DecoderError, RecipeError

LOGITS = 2e-5  # float32 sums in another order; worst seen 6e-6
SETTINGS: dict[str, dict[str, Any]] = {
    "dora": {"r": 3, "use_dora": True},
    "oft": {"oft_block_size": 4, "r": 0},
    "boft": {"boft_block_size": 4},
    "fourierft": {"n_frequency": 20},
    "waveft": {"n_frequency": 20},
    "c3a": {"block_size": 8},
    "miss": {"r": 4},
    "road": {"group_size": 16},
    "gralora": {"r": 8},
    "vera": {"r": 4},
    "randlora": {"r": 4},
}
EXACT = {*METHODS, "dora"} - {"hra", "fourierft", "c3a"}
"""They start as the identity; FourierFT and C3A by their defaults do not, and HRA's reflections cancel up to rounding."""
EVERY_CHANGE = ("lora", "dora", "ln_tuning")
NIGHTLY = [pytest.param(name, marks=pytest.mark.nightly) for name in METHODS if name not in EVERY_CHANGE]


def tuner(name: str, **more: Any) -> dict[str, Any]:
    method = "lora" if name == "dora" else name
    node = {"role": "decoder_adapter", "type": "peft", "method": method, "settings": SETTINGS.get(name, {}), **more}
    return {"reader": None, "projector": None, "visual_tokens": None, "vision_adapter": None, "lora": None, "tuner": node}


def tuned(name: str, base: nn.Module | None = None, random: bool = False, **more: Any) -> dehvf_kit.DehvfModel:
    return baseline("llava_lora", random=random, base=base, **tuner(name, **more))


def push(model: dehvf_kit.DehvfModel) -> None:
    """Move the weights away from where they start."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in model.nodes.parameters():
            weight.add_(0.1 * torch.randn(weight.shape, generator=generator))


@pytest.mark.parametrize("name", [*EVERY_CHANGE, *NIGHTLY])
def test_every_method_starts_exact_saves_loads_and_leaves_the_decoder_as_it_was(name: str, tmp_path: Path) -> None:
    base = decoder()
    plain, weights = base(input_ids=ids()).logits, {key: value.clone() for key, value in base.state_dict().items()}
    model = tuned(name, base)
    start = model(input_ids=ids()).logits
    if name in EXACT:
        assert torch.equal(start, plain)
    push(model)
    changed = model(input_ids=ids()).logits
    assert worst(changed, start) > 0.01
    model.save_pretrained(tmp_path / "adapter")
    again = dehvf_kit.load(tmp_path / "adapter", decoder=decoder(), vision=encoder(), tokenizer=tokenizer())
    assert torch.equal(again(input_ids=ids()).logits, changed)
    model(input_ids=ids()).logits.square().sum().backward()
    assert all(weight.grad is not None and weight.grad.any() for weight in model.trainable_parameters())
    model.detach()
    assert torch.equal(base(input_ids=ids()).logits, plain) and not hasattr(base, "peft_config")
    assert base.state_dict().keys() == weights.keys() and all(torch.equal(base.state_dict()[key], weights[key]) for key in weights)


@pytest.mark.parametrize("name", ["lora", "ln_tuning", *(p for p in NIGHTLY if p.values[0] != "hra")])
def test_float32_weights_run_beside_a_decoder_of_half_precision(name: str) -> None:
    base = decoder().to(torch.bfloat16)
    plain = base(input_ids=ids()).logits
    model = tuned(name, base)
    found = model(input_ids=ids()).logits
    assert found.dtype == torch.bfloat16 and {weight.dtype for weight in model.trainable_parameters()} == {torch.float32}
    assert name not in EXACT or torch.equal(found, plain)


@torch.no_grad()
def test_dora_ia3_and_norm_tuning_equal_their_formulas() -> None:
    plain = decoder()
    embeds = plain.get_input_embeddings()(ids()[0])

    model = tuned("dora", decoder(), targets=["query"])
    push(model)
    get = model.nodes["tuner"].get_parameter

    def dora(layer: int, name: str, x: torch.Tensor) -> Any:
        if name != "q_proj":
            return 0.0
        place = f"model.layers.{layer}.self_attn.q_proj"
        weight = plain.get_submodule(place).weight
        moved = weight + 8 / 3 * get(f"{place}.lora_B.weight") @ get(f"{place}.lora_A.weight")
        direction = moved / moved.norm(dim=1, keepdim=True)
        return x @ (get(f"{place}.lora_magnitude_vector.weight")[:, None] * direction - weight).T

    assert worst(model(input_ids=ids()).logits[0], literal_llama(plain, embeds, update=dora)) < LOGITS

    model = tuned("ia3", decoder())
    push(model)
    get = model.nodes["tuner"].get_parameter

    def keys_and_values(layer: int, name: str, x: torch.Tensor) -> Any:
        if name not in ("k_proj", "v_proj"):
            return 0.0
        place = f"model.layers.{layer}.self_attn.{name}"
        return (x @ plain.get_submodule(place).weight.T) * (get(f"{place}.ia3_l")[:, 0] - 1)

    def inner(layer: int, x: torch.Tensor) -> torch.Tensor:
        mlp = plain.model.layers[layer].mlp
        hidden = nn.functional.silu(mlp.gate_proj(x)) * mlp.up_proj(x)
        return mlp.down_proj(hidden * (get(f"model.layers.{layer}.mlp.down_proj.ia3_l")[0] - 1))

    assert worst(model(input_ids=ids()).logits[0], literal_llama(plain, embeds, update=keys_and_values, ffn=inner)) < LOGITS

    model = tuned("ln_tuning", decoder())
    push(model)
    get, moved = model.nodes["tuner"].get_parameter, decoder()
    for place in (
        "model.norm",
        *(f"model.layers.{i}.{n}" for i in range(4) for n in ("input_layernorm", "post_attention_layernorm")),
    ):
        moved.get_submodule(place).weight.copy_(get(f"{place}.ln_tuning_layers.weight"))
    assert norm(embeds, moved.model.norm).shape == embeds.shape
    assert worst(model(input_ids=ids()).logits[0], literal_llama(moved, embeds)) < LOGITS


def test_counts_and_names_are_those_of_the_roles_on_any_decoder() -> None:
    """GPT-2's maps are transposed and its query, key and value are one map; widths are the map's own."""
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 60, "bos_token_id": 1, "eos_token_id": 2}
    base = GPT2LMHeadModel(GPT2Config(**sizes)).eval()
    plain = base(input_ids=ids()).logits

    def on_gpt2(**node: Any) -> dehvf_kit.DehvfModel:
        node = {"role": "decoder_adapter", "type": "peft", **node}
        raw = {**recipe("llava_lora", **tuner("lora")).resolved(), "decoder": {"config": {"model_type": "gpt2", **sizes}}}
        raw = {name: section for name, section in raw.items() if section is not None} | {"graph": {"tuner": node}}
        return dehvf_kit.build(raw, decoder=base, vision=encoder(), tokenizer=tokenizer())

    model = on_gpt2(targets=["qkv", "mlp.c_proj"], settings={"r": 2})
    assert model.num_trainable_parameters() == 2 * 2 * (32 + 96) + 2 * 2 * (128 + 32)
    assert torch.equal(model(input_ids=ids()).logits, plain)
    push(model)
    assert worst(model(input_ids=ids()).logits, plain) > 0.01
    model.detach()
    assert on_gpt2(method="ln_tuning").num_trainable_parameters() == 5 * 2 * 32


def test_the_first_weights_follow_the_seed_and_the_global_generator_is_left_alone() -> None:
    first = tuned("lora")
    torch.manual_seed(99)
    second = tuned("lora")
    state = torch.get_rng_state()
    with second.hooks_disabled():
        pass
    assert torch.equal(torch.get_rng_state(), state)
    ours, theirs = first.named_trainable_parameters(), second.named_trainable_parameters()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_dropout_acts_in_training_alone() -> None:
    model = tuned("lora", settings={"r": 2, "lora_dropout": 0.5})
    push(model)
    model.eval()
    first, second = (model(input_ids=ids()).logits for _ in range(2))
    assert torch.equal(first, second)
    model.train()
    first, second = (model(input_ids=ids()).logits for _ in range(2))
    assert not torch.equal(first, second)


def test_an_adapter_of_the_earlier_component_loads_and_says_what_the_new_one_does(tmp_path: Path) -> None:
    old = {"role": "decoder_adapter", "type": "lora", "rank": 2, "alpha": 4.0, "targets": ["q_proj", "v_proj"]}
    graph = {**tuner("lora"), "tuner": None, "earlier": old}
    model = dehvf_kit.build(recipe("llava_lora", **graph), decoder=decoder(), vision=encoder(), tokenizer=tokenizer())
    assert {name.rsplit(".", 2)[0] for name in model.named_trainable_parameters()} == {
        f"earlier.{way}.{name}" for way in ("down", "up") for name in ("q_proj", "v_proj")
    }
    randomise(model.nodes)
    said = model(input_ids=ids()).logits
    model.save_pretrained(tmp_path / "adapter")
    again = dehvf_kit.load(tmp_path / "adapter", decoder=decoder(), vision=encoder(), tokenizer=tokenizer())
    assert torch.equal(again(input_ids=ids()).logits, said)
    new = tuned("lora", settings={"r": 2, "lora_alpha": 4}, targets=["q_proj", "v_proj"])
    given = model.named_trainable_parameters()
    with torch.no_grad():
        for place, weight in new.named_trainable_parameters().items():
            _, _, _, layer, _, name, half, _ = place.split(".")
            weight.copy_(given[f"earlier.{'down' if half == 'lora_A' else 'up'}.{name}.{layer}.weight"])
    assert torch.equal(new(input_ids=ids()).logits, said)


@pytest.mark.parametrize(
    ("name", "more", "message"),
    [
        ("lora", {"method": "lroa"}, "peft's 'lroa' is not among .*lora"),
        ("lora", {"targets": ["gate_up"]}, "no linear map named gate_up; it has .*query"),
        ("lora", {"settings": {"rank": 3}}, "peft's lora has no setting 'rank'"),
        ("lora", {"settings": {"bias": "all"}}, "settings.bias is not taken"),
        ("lora", {"settings": {"target_modules": ["q_proj"]}}, "under `targets`"),
        ("lora", {"settings": {"init_lora_weights": "pissa"}}, "only true, gaussian and orthogonal"),
        ("ia3", {"scale": 2.0}, "no alpha or scaling that could be changed"),
        ("c3a", {"settings": {"block_size": 7}}, "peft refuses c3a here"),
    ],
)
def test_what_does_not_fit_is_refused(name: str, more: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        tuned(name, **more)


def test_a_tuned_decoder_and_one_with_hooks_at_the_maps_are_refused() -> None:
    base = decoder()
    peft.inject_adapter_in_model(peft.LoraConfig(target_modules=["q_proj"]), base)
    with pytest.raises(DecoderError, match=r"peft tunes .*q_proj already; merge_and_unload"):
        tuned("lora", base, targets=["query"])
    base = decoder()
    base.model.layers[0].self_attn.q_proj.register_forward_hook(lambda *given: None)
    with pytest.raises(DecoderError, match="in whose place lora is to stand, has a hook; remove it"):
        tuned("lora", base, targets=["query"])


def test_a_node_stands_below_another_that_hooks_its_maps() -> None:
    """As in LLaMA-Adapter V2 with LoRA, which adds LoRA to a parent recipe's biases: peft's layers are placed first."""
    biases = {"role": "decoder_adapter", "type": "affine_maps", "biases": ["query"]}
    lora = tuner("lora", targets=["query"])
    outputs = []
    for nodes in ({"biases": biases, **lora}, {**lora, "biases": biases}):
        model = baseline("llava_lora", random=False, **nodes)
        with torch.no_grad():
            for weight in dict(sorted(model.named_trainable_parameters().items())).values():
                weight.copy_(torch.linspace(-0.3, 0.3, weight.numel()).view_as(weight))
        outputs.append(model(input_ids=ids()).logits)
    assert torch.equal(*outputs)


def test_the_strength_is_a_field_only_where_the_method_can_be_scaled() -> None:
    scaled = {method for method in METHODS if PeftConfig(method=method).strength}
    assert {"lora", "loha", "lokr", "fourierft"} <= scaled and not scaled & {"ln_tuning", "ia3", "oft", "boft"}
    assert PeftConfig.strength == "scale", "of the class, for the registry"
