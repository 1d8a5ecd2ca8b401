"""Settings and models that break naive code, beside the plain causal decoders of the matrix."""

from __future__ import annotations

import pytest
import torch
import transformers
from torch import nn

from dehvf_kit.backbones.ffn.memory_hooks import attach_memory, hook_ffns
from dehvf_kit.backbones.ffn.overrides import register_ffn_override
from dehvf_kit.backbones.ffn.sites import ffn_sites
from dehvf_kit.errors import DecoderError, ShapeError
from dehvf_kit.testing import check_decoder, shrink_config, tiny_config, tiny_decoder

IDS = torch.tensor([[5, 6, 7, 8, 9, 4], [9, 8, 7, 6, 5, 4]])


@pytest.mark.parametrize(
    ("model_type", "settings"),
    [
        ("gemma4_text", (("enable_moe_block", True), ("num_experts", 4), ("top_k_experts", 2), ("moe_intermediate_size", 24))),
        ("falcon", (("new_decoder_architecture", True), ("num_kv_heads", 2))),
        ("opt", (("do_layer_norm_before", False), ("word_embed_proj_dim", 16))),
        ("jamba", (("num_hidden_layers", 4),)),
        ("llama4_text", (("interleave_moe_layer_step", 2),)),
    ],
    ids=lambda x: x if isinstance(x, str) else "-".join(name for name, _ in x),
)
def test_settings_keep_the_contract(model_type, settings):
    items = ["zero memory", "token by token", "each layer", "gradients", "rows", "left padding"]
    check_decoder(lambda: tiny_decoder(model_type, **dict(settings)), items)


def test_an_ffn_that_runs_in_chunks_keeps_the_contract():
    items = ["zero memory", "each layer", "gradients", "rows", "left padding"]
    check_decoder(lambda: tiny_decoder("bert", chunk_size_feed_forward=1), items)


def test_input_overwritten_in_training_is_read_before():
    """Mixtral's jitter multiplies the FFN's input in place; the memory must have seen it as it was."""
    model = tiny_decoder("mixtral", router_jitter_noise=0.5).train()
    seen, before = [], []
    layer = model.model.layers[0]
    layer.post_attention_layernorm.register_forward_hook(lambda m, a, output: before.append(output.clone()))
    keys = [torch.randn(2, 3, 32, requires_grad=True) for _ in range(2)]
    hook_ffns(model, ffn_sites(model), lambda index, x: seen.append(x) or x @ keys[index].mT @ keys[index])
    model(IDS).logits.sum().backward()
    assert torch.equal(seen[0], before[0])
    assert all(bool(key.grad.any()) for key in keys)


def test_layers_that_are_skipped_without_images_take_no_memory():
    """Mllama runs its cross-attention layers only with images; memory elsewhere still works."""
    model = tiny_decoder("mllama", text_config={"cross_attention_layers": [1]})
    sites = ffn_sites(model)
    asked = []
    hook_ffns(model, sites, lambda index, x: asked.append(index))
    model(IDS)
    assert len(sites) == 2 and asked == [0]


def test_mixture_beside_shared_mlp_is_one_site():
    model = tiny_decoder("granitemoehybrid")
    assert [site.layer_idx for site in ffn_sites(model)] == [0, 1]


def test_two_ffns_a_layer_are_two_sites_and_branches_are_one():
    sites = ffn_sites(tiny_decoder("longcat_flash"))
    assert [(site.layer_idx, site.path) for site in sites[:2]] == [(0, "model.layers.0.mlps.0"), (0, "model.layers.0.mlps.1")]


def test_only_layers_with_an_ffn_have_a_site():
    sites = ffn_sites(tiny_decoder("nemotron_h"))
    assert [site.layer_idx for site in sites] == [1, 3]


def test_one_module_in_two_layers_has_two_memories():
    """A block shared by two layers has a memory of its own at each place, and detach restores the sharing."""
    model = tiny_decoder("zamba").requires_grad_(False)
    model.model.layers[3].shared_transf = model.model.layers[1].shared_transf
    sites = ffn_sites(model)
    shared = [model.get_submodule(site.path) for site in sites]
    assert len(sites) == 2 and shared[0] is shared[1]
    before, weights = model(IDS).logits, list(model.state_dict())
    keys, zeros = torch.randn(1, 3, 32), torch.zeros(1, 3, 32)
    handle = attach_memory(model, [keys, zeros], [keys, zeros])
    first = model(IDS).logits
    assert list(model.state_dict()) == weights
    handle.detach()
    handle = attach_memory(model, [zeros, keys], [zeros, keys])
    assert not torch.equal(model(IDS).logits, first)
    handle.detach()
    assert [model.get_submodule(site.path) for site in sites] == shared
    assert torch.equal(model(IDS).logits, before)


def shared_zamba_block() -> nn.Module:
    model = tiny_decoder("zamba")
    model.model.layers[3].shared_transf = model.model.layers[1].shared_transf
    return model


def shared_bert_ffn() -> nn.Module:
    model = tiny_decoder("bert")
    first, second = model.bert.encoder.layer
    second.intermediate, second.output = first.intermediate, first.output
    return model


def shared_opt_layer() -> nn.Module:
    model = tiny_decoder("opt")
    model.model.decoder.layers[1] = model.model.decoder.layers[0]
    return model


@pytest.mark.parametrize("make", [shared_zamba_block, shared_bert_ffn, shared_opt_layer])
def test_a_shared_module_keeps_the_contract(make):
    """Checkpointing included, where the layers run once more in another order."""
    check_decoder(make, ["zero memory", "each layer", "gradients", "checkpointing", "detach", "deepcopy"])


def test_a_layer_run_several_times_asks_each_time():
    model, asked = tiny_decoder("hrm_text"), []
    hook_ffns(model, ffn_sites(model), lambda index, x: asked.append(index))
    model(IDS)
    assert [asked.count(index) for index in range(4)] == [6, 6, 2, 2]


def test_states_with_tokens_first_come_rows_first():
    model, shapes = tiny_decoder("xlnet"), []
    hook_ffns(model, ffn_sites(model), lambda index, x: shapes.append(tuple(x.shape)))
    model(IDS)
    assert shapes == [(2, 6, 32)] * 2


def test_norm_on_a_mixtures_output_is_no_part_of_ffn_x():
    """A.X-K1 norms its mixture's result inside the module: memory is added before that norm."""
    model = tiny_decoder("axk1").requires_grad_(False)
    assert ffn_sites(model)[1].path == "model.layers.1.mlp"
    taken = []
    model.model.layers[1].mlp.post_mlp_layernorm.register_forward_pre_hook(lambda m, args: taken.append(args[0]))
    model(IDS)
    hooks = hook_ffns(model, ffn_sites(model), lambda index, x: torch.ones_like(x) if index == 1 else None)
    model.model.layers[1].mlp.post_mlp_layernorm.register_forward_pre_hook(lambda m, args: taken.append(args[0]))
    model(IDS)
    hooks.remove()
    torch.testing.assert_close(taken[2], taken[0] + 1)


def shrunk(model_class: type[nn.Module], **settings) -> nn.Module:
    torch.manual_seed(0)
    return model_class(shrink_config(model_class.config_class(), **settings)).eval()


DECODERS_INSIDE = {
    transformers.T5ForConditionalGeneration: "decoder.block.0.layer.2.DenseReluDense",
    transformers.BartForConditionalGeneration: "model.decoder.layers.0.fc2",
    transformers.WhisperForConditionalGeneration: "model.decoder.layers.0.fc2",
    transformers.LlavaForConditionalGeneration: "model.language_model.layers.0.mlp",
    transformers.Qwen2VLForConditionalGeneration: "model.language_model.layers.0.mlp",
    transformers.Blip2ForConditionalGeneration: "language_model.model.decoder.layers.0.fc2",
    transformers.Idefics3ForConditionalGeneration: "model.text_model.layers.0.mlp",
    transformers.PaliGemmaForConditionalGeneration: "model.language_model.layers.0.mlp",
    transformers.Gemma3ForConditionalGeneration: "model.language_model.layers.0.mlp",
}


@pytest.mark.parametrize("model_class", DECODERS_INSIDE, ids=lambda c: c.__name__)
def test_the_text_decoder_inside_a_larger_model_is_found(model_class):
    with torch.device("meta"):
        model = model_class(shrink_config(model_class.config_class()))
    assert ffn_sites(model)[0].path == DECODERS_INSIDE[model_class]


def test_encoder_decoder_model_generates_with_memory():
    model = shrunk(transformers.T5ForConditionalGeneration).requires_grad_(False)
    keys = [torch.randn(2, 3, site.hidden_size) for site in ffn_sites(model)]
    before = model.generate(IDS, max_new_tokens=4, min_new_tokens=4, num_beams=2, decoder_start_token_id=0)
    handle = attach_memory(model, keys, keys)
    cached, uncached = (
        model.generate(IDS, max_new_tokens=4, min_new_tokens=4, num_beams=2, use_cache=cache, decoder_start_token_id=0)
        for cache in (True, False)
    )
    assert torch.equal(cached, uncached) and not torch.equal(cached, before)
    handle.detach()


class Odd(nn.Module):
    """A decoder no structure tells: the FFN is written with plain parameters, under odd names."""

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(8, 8)
            self.b = nn.Linear(8, 4)
            self.c = nn.Linear(4, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.c(torch.sin(self.b(self.a(x))))

    def __init__(self) -> None:
        super().__init__()
        self.config = transformers.PretrainedConfig()
        self.config.model_type = "odd"
        self.parts = nn.ModuleList([self.Layer(), self.Layer()])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.parts:
            x = layer(x)
        return x


def test_an_override_says_what_structure_cannot():
    model = Odd()
    model.config.hidden_size = 8
    with pytest.raises(DecoderError, match="no layer holds a feed-forward network.*Found lists of: Layer"):
        ffn_sites(model)
    register_ffn_override("odd", entry="b", exit="c", activation=torch.sin)
    sites = ffn_sites(model)
    assert [site.path for site in sites] == ["parts.0.c", "parts.1.c"]
    assert sites[0].activation_name == "sin" and sites[0].hidden_size == 8
    with pytest.raises(DecoderError, match="odd is described already"):
        register_ffn_override("odd", entry="a", exit="c")
    with pytest.raises(DecoderError, match="entry and exit go together"):
        register_ffn_override("odder", entry="a")


def test_a_delta_of_another_shape_is_refused():
    model = tiny_decoder("llama")
    hook_ffns(model, ffn_sites(model), lambda index, x: x[:, :1])
    with pytest.raises(ShapeError, match=r"model.layers.0.mlp: delta 0 returned shape \[2, 1, 32\]"):
        model(IDS)


def test_shrinking_keeps_the_switches_of_a_real_configuration():
    real = transformers.LlamaConfig(hidden_act="gelu", attention_bias=True, num_key_value_heads=8)
    tiny = shrink_config(real)
    assert (tiny.hidden_act, tiny.attention_bias, tiny.hidden_size, tiny.num_key_value_heads) == ("gelu", True, 32, 2)
    assert tiny_config("llama").hidden_act == "silu"
