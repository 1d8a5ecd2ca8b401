"""Memory attached to a decoder: equal to a literal reference, absent when zero, gone when detached."""

from __future__ import annotations

import copy

import pytest
import torch
import transformers
from torch import Tensor, nn

import dehvf_kit
from dehvf_kit.backbones.ffn.memory_hooks import attach_memory, hook_ffns
from dehvf_kit.backbones.ffn.sites import ffn_sites
from dehvf_kit.errors import DecoderError, ShapeError
from dehvf_kit.testing import tiny_models

TINY = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
CONFIGS = {
    "llama": transformers.LlamaConfig(**TINY, intermediate_size=24, pad_token_id=0),
    "opt": transformers.OPTConfig(**TINY, ffn_dim=24, word_embed_proj_dim=16),
    "gpt2": transformers.GPT2Config(vocab_size=50, n_embd=16, n_layer=2, n_head=2, pad_token_id=0),
    "gpt_neox": transformers.GPTNeoXConfig(**TINY, intermediate_size=24, pad_token_id=0),
    "phi": transformers.PhiConfig(**TINY, intermediate_size=24, pad_token_id=0),
}
FFNS = {
    "llama": (lambda layer: (layer.mlp, layer.mlp), nn.functional.silu),
    "opt": (lambda layer: (layer.fc1, layer.fc2), nn.functional.relu),
    "gpt2": (lambda layer: (layer.mlp, layer.mlp), transformers.activations.NewGELUActivation()),
    "gpt_neox": (lambda layer: (layer.mlp, layer.mlp), nn.functional.gelu),
    "phi": (lambda layer: (layer.mlp, layer.mlp), transformers.activations.NewGELUActivation()),
}
INPUT_IDS = torch.tensor([[5, 6, 7, 8, 9], [9, 8, 7, 6, 5]])


def tiny(name: str = "llama") -> nn.Module:
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(copy.deepcopy(CONFIGS[name])).eval().requires_grad_(False)


def memory(batch: int = 2, slots: int = 3, sites: int = 2, hidden_size: int = 16) -> tuple[list[Tensor], list[Tensor]]:
    generator = torch.Generator().manual_seed(1)
    keys = [torch.randn(batch, slots, hidden_size, generator=generator) for _ in range(sites)]
    values = [torch.randn(batch, slots, hidden_size, generator=generator) for _ in range(sites)]
    return keys, values


def layers_of(model: nn.Module) -> nn.ModuleList:
    return next(m for m in model.modules() if isinstance(m, nn.ModuleList))


def literal_reference(model: nn.Module, name: str, keys: list[Tensor], values: list[Tensor], scale: float) -> Tensor:
    """Logits with output_scale * act(x K^T) V added row by row by plain forward hooks."""
    find, act = FFNS[name]
    handles = []
    for idx, layer in enumerate(layers_of(model)):
        entry, last = find(layer)
        seen = []

        def add(module, args, output, idx=idx, seen=seen):
            x = seen.pop().reshape(len(INPUT_IDS), -1, 16)
            rows = [scale * act(x[b] @ keys[idx][b].T) @ values[idx][b] for b in range(len(x))]
            return output + torch.stack(rows).reshape(output.shape)

        handles.append(entry.register_forward_pre_hook(lambda module, args, seen=seen: seen.append(args[0])))
        handles.append(last.register_forward_hook(add))
    logits = model(INPUT_IDS).logits
    for handle in handles:
        handle.remove()
    return logits


@pytest.mark.parametrize("name", CONFIGS)
def test_equals_the_literal_reference(name):
    model, (keys, values) = tiny(name), memory()
    expected = literal_reference(model, name, keys, values, scale=0.5)
    attach_memory(model, keys, values, output_scale=0.5)
    torch.testing.assert_close(model(INPUT_IDS).logits, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", CONFIGS)
def test_zero_memory_and_detach_are_bit_identical(name):
    model, (keys, values) = tiny(name), memory()
    before = model(INPUT_IDS).logits
    handle = attach_memory(model, [torch.zeros_like(k) for k in keys], [torch.zeros_like(v) for v in values])
    assert torch.equal(model(INPUT_IDS).logits, before)
    handle.detach()
    handle = attach_memory(model, keys, values)
    assert not torch.equal(model(INPUT_IDS).logits, before)
    handle.detach()
    handle.detach()
    assert torch.equal(model(INPUT_IDS).logits, before)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("name", CONFIGS)
def test_gradients_reach_every_memory_and_nothing_else(name):
    model, (keys, values) = tiny(name), memory()
    for tensor in keys + values:
        tensor.requires_grad_()
    attach_memory(model, keys, values)
    model(INPUT_IDS).logits.square().sum().backward()
    assert all(tensor.grad is not None and tensor.grad.abs().sum() > 0 for tensor in keys + values)
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("name", ["llama", "opt"])
def test_gradient_checkpointing_changes_nothing(name, use_reentrant):
    model, (keys, values) = tiny(name).train(), memory()
    model.config.dropout = 0.0
    for module in model.modules():
        if isinstance(getattr(module, "dropout", None), float):
            module.dropout = 0.0
    for tensor in keys + values:
        tensor.requires_grad_()
    attach_memory(model, keys, values)
    model.enable_input_require_grads()
    plain = torch.autograd.grad(model(INPUT_IDS, use_cache=False).logits.square().sum(), keys + values)
    model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    model(INPUT_IDS, use_cache=False).logits.square().sum().backward()
    for tensor, expected in zip(keys + values, plain, strict=True):
        torch.testing.assert_close(tensor.grad, expected)


@pytest.mark.parametrize("name", CONFIGS)
def test_rows_repeat_under_beams_and_return_sequences(name):
    """Each sample of a batch is generated as it is alone."""
    model, (keys, values) = tiny(name), memory()
    ask = {"max_new_tokens": 4, "do_sample": False, "num_beams": 3, "num_return_sequences": 2}
    handle = attach_memory(model, keys, values)
    together = model.generate(INPUT_IDS, **ask)
    handle.detach()
    for row in range(2):
        alone = attach_memory(model, [k[row : row + 1] for k in keys], [v[row : row + 1] for v in values])
        assert torch.equal(model.generate(INPUT_IDS[row : row + 1], **ask), together[2 * row : 2 * row + 2])
        alone.detach()


def test_one_memory_serves_the_whole_batch_and_slots_may_differ():
    model, (keys, values) = tiny(), memory(batch=1)
    keys[1], values[1] = keys[1][:, :2], values[1][:, :2]
    attach_memory(model, keys, values)
    one = model(INPUT_IDS).logits
    doubled = tiny()
    attach_memory(doubled, [k.expand(2, -1, -1) for k in keys], [v.expand(2, -1, -1) for v in values])
    torch.testing.assert_close(doubled(INPUT_IDS).logits, one)
    mixed = tiny()
    attach_memory(mixed, keys, [v.expand(2, -1, -1) for v in values])
    torch.testing.assert_close(mixed(INPUT_IDS).logits, one)


def test_own_activation_and_another():
    model, (keys, values) = tiny(), memory()
    handle = attach_memory(model, keys, values)
    own = model(INPUT_IDS).logits
    handle.detach()
    handle = attach_memory(model, keys, values, activation=nn.functional.silu)
    torch.testing.assert_close(model(INPUT_IDS).logits, own)
    handle.detach()
    attach_memory(model, keys, values, activation=torch.relu)
    assert not torch.allclose(model(INPUT_IDS).logits, own)


def test_left_padding_equals_single_runs():
    model, (keys, values) = tiny(), memory()
    ids = torch.tensor([[0, 0, 7, 8, 9], [9, 8, 7, 6, 5]])
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    handle = attach_memory(model, keys, values)
    padded = model(ids, attention_mask=mask, position_ids=(mask.cumsum(-1) - 1).clamp(min=0)).logits[0, 2:]
    handle.detach()
    attach_memory(model, [k[:1] for k in keys], [v[:1] for v in values])
    torch.testing.assert_close(model(ids[:1, 2:]).logits[0], padded)


def test_autocast_and_half_precision():
    model, (keys, values) = tiny(), memory()
    attach_memory(model, keys, values)
    expected = model(INPUT_IDS).logits
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(model(INPUT_IDS).logits.float(), expected, atol=0.2, rtol=0.1)
    half = model.to(torch.bfloat16)(INPUT_IDS).logits
    assert half.dtype == torch.bfloat16


@pytest.mark.parametrize("name", ["llama", "gpt_neox"])
def test_compiles_without_graph_break(name):
    model, (keys, values) = tiny(name), memory()
    attach_memory(model, keys, values)
    expected = model(INPUT_IDS, use_cache=False).logits
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(INPUT_IDS, use_cache=False).logits, expected)


def test_deepcopy_keeps_the_memory():
    model, (keys, values) = tiny(), memory()
    attach_memory(model, keys, values)
    assert torch.equal(copy.deepcopy(model)(INPUT_IDS).logits, model(INPUT_IDS).logits)


def test_no_addition_leaves_the_output_object_alone():
    model = tiny()
    sites, outputs, seen = ffn_sites(model), [], []
    layers_of(model)[0].mlp.register_forward_hook(lambda module, args, output: outputs.append(output))
    hook_ffns(model, sites, lambda index, x: seen.append((index, x.shape)))
    layers_of(model)[0].mlp.register_forward_hook(lambda module, args, output: outputs.append(output))
    model(INPUT_IDS)
    assert outputs[0] is outputs[1]
    assert seen == [(0, (2, 5, 16)), (1, (2, 5, 16))]


def test_flattened_inputs_come_as_rows_and_tokens():
    model, seen = tiny("opt"), []
    hook_ffns(model, ffn_sites(model), lambda index, x: seen.append(x.shape))
    model(INPUT_IDS)
    assert seen == [(2, 5, 16), (2, 5, 16)]


def test_sites_of_another_model_are_refused():
    with pytest.raises(DecoderError, match=r"GPT2LMHeadModel: site 0 .model.layers.0.mlp. is not in the model"):
        hook_ffns(tiny("gpt2"), ffn_sites(tiny("llama")), lambda index, x: None)


BAD_MEMORY = {
    "too few keys": (
        lambda k, v: (k[:1], v),
        "LlamaForCausalLM has 2 FFN sites, keys holds 1 tensors; give one .batch or 1, slots, hidden_size. tensor",
    ),
    "too many values": (lambda k, v: (k, v + v), "values holds 4 tensors"),
    "wrong width": (
        lambda k, v: ([k[0], k[1][..., :8]], v),
        r"keys\[1\] \(model.layers.1.mlp\) has shape \[2, 3, 8\]; needed is \[batch or 1, slots, 16\]",
    ),
    "no batch axis": (lambda k, v: (k, [v[0][0], v[1]]), r"values\[0\] \(model.layers.0.mlp\) has shape \[3, 16\]"),
    "unequal slots": (
        lambda k, v: ([k[0][:, :2], k[1]], v),
        r"keys\[0\] has shape \[2, 2, 16\], values\[0\] \[2, 3, 16\]; both must have the same number of slots",
    ),
    "unequal batches": (
        lambda k, v: ([k[0], k[1].repeat(2, 1, 1)], [v[0], v[1].repeat(2, 1, 1)]),
        r"the tensors have batches \[2, 4\]; all must have one batch size, or 1",
    ),
}


@pytest.mark.parametrize("case", BAD_MEMORY)
def test_memory_of_another_shape_is_refused(case):
    change, message = BAD_MEMORY[case]
    with pytest.raises(ShapeError, match=message):
        attach_memory(tiny(), *change(*memory()))


def test_rows_that_do_not_fit_are_refused_when_they_run():
    model = tiny()
    attach_memory(model, *memory(batch=2))
    with pytest.raises(ShapeError, match="runs 3 rows, the memory has a batch of 2; rows must be a multiple"):
        model(INPUT_IDS[:1].repeat(3, 1))


def test_a_notebook_cell_run_again_names_the_first_memory_and_a_lost_handle_is_found():
    model = tiny()
    before = model(INPUT_IDS).logits
    attach_memory(model, *memory())
    with_memory = model(INPUT_IDS).logits
    for part in (model, model.model):
        with pytest.raises(DecoderError, match=r"has this attached already: memory at .*layers.0.mlp.*detach_all\(decoder\)"):
            attach_memory(part, *memory())
    assert torch.equal(model(INPUT_IDS).logits, with_memory), "the refused ones added nothing"
    attach_memory(model, *memory(), stack=True)
    assert not torch.allclose(model(INPUT_IDS).logits, with_memory)
    assert len(dehvf_kit.detach_all(model)) == 2
    assert dehvf_kit.detach_all(model) == []
    assert torch.equal(model(INPUT_IDS).logits, before)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert not any("dehvf" in name for module in model.modules() for name in vars(module))


def test_a_with_block_ends_the_memory_also_after_an_error():
    model = tiny()
    before = model(INPUT_IDS).logits
    with pytest.raises(RuntimeError), attach_memory(model, *memory()) as handle:
        assert len(handle.sites) == 2
        raise RuntimeError
    assert torch.equal(model(INPUT_IDS).logits, before)


def test_some_layers_only_by_none_or_by_sites():
    keys, values = memory()
    by_none, by_sites, zero = tiny(), tiny(), tiny()
    handle = attach_memory(by_none, [None, keys[1]], [None, values[1]])
    attach_memory(by_sites, keys[1:], values[1:], sites=ffn_sites(by_sites)[1:])
    attach_memory(zero, [keys[0] * 0, keys[1]], [values[0] * 0, values[1]])
    assert [site.layer_idx for site in handle.sites] == [1]
    assert not by_none.model.layers[0].mlp._forward_hooks
    expected = zero(INPUT_IDS).logits
    assert torch.equal(by_none(INPUT_IDS).logits, expected) and torch.equal(by_sites(INPUT_IDS).logits, expected)
    attach_memory(by_none, [keys[0], None], [values[0], None])  # the other layer is free
    with pytest.raises(ShapeError, match=r"values\[0\] .* is None"):
        attach_memory(tiny(), keys, [None, values[1]])
    with pytest.raises(DecoderError, match="not in the model"):
        attach_memory(tiny("gpt2"), keys, values, sites=ffn_sites(by_none))


def test_a_deep_copy_is_detached_by_itself():
    model = tiny()
    before = model(INPUT_IDS).logits
    attach_memory(model, *memory())
    twin, with_memory = copy.deepcopy(model), model(INPUT_IDS).logits
    assert len(dehvf_kit.detach_all(twin)) == 1
    assert torch.equal(twin(INPUT_IDS).logits, before) and torch.equal(model(INPUT_IDS).logits, with_memory)


S2S = {"d_model": 32, "encoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 48}
S2S |= {"decoder_ffn_dim": 48, "max_position_embeddings": 32}


def fsmt() -> nn.Module:
    vocabularies = {"src_vocab_size": 64, "tgt_vocab_size": 64, "langs": ["en", "de"]}
    return transformers.FSMTForConditionalGeneration(transformers.FSMTConfig(**S2S, decoder_layers=2, **vocabularies))


def nllb_moe() -> nn.Module:
    mixture = {"decoder_layers": 4, "encoder_sparse_step": 2, "decoder_sparse_step": 2, "num_experts": 4, "vocab_size": 64}
    return transformers.NllbMoeForConditionalGeneration(transformers.NllbMoeConfig(**S2S, **mixture))


@torch.no_grad()
@pytest.mark.parametrize(("make", "layers"), [(fsmt, 2), (nllb_moe, 4)])
def test_rows_of_a_translators_decoder_read_their_own_memory(make, layers):
    """FSMT's states are [tokens, rows, hidden]; NLLB-MoE's experts get the tokens that are theirs, of all rows."""
    torch.manual_seed(0)
    model = make().eval()
    source, target = torch.randint(4, 60, (2, 5)), torch.randint(4, 60, (2, 4))
    keys, values = memory(sites=layers, hidden_size=32)
    with attach_memory(model, keys, values):
        together = model(input_ids=source, decoder_input_ids=target).logits
    for row in range(2):
        with attach_memory(model, [k[row, None] for k in keys], [v[row, None] for v in values]):
            alone = model(input_ids=source[row, None], decoder_input_ids=target[row, None]).logits
        torch.testing.assert_close(together[row, None], alone)


def test_a_site_named_twice_is_refused():
    model, (keys, values) = tiny(), memory()
    first = ffn_sites(model)[0]
    with pytest.raises(DecoderError, match=r"sites holds 'model.layers.0.mlp' twice; stack=True"):
        attach_memory(model, keys, values, sites=[first, first])
    with attach_memory(model, keys, values, sites=[first, first], stack=True):
        twice = model(INPUT_IDS).logits
    both = [torch.cat(keys, 1)], [torch.cat(values, 1)]
    with attach_memory(model, *both, sites=[first]):
        torch.testing.assert_close(model(INPUT_IDS).logits, twice)


def test_sites_of_another_model_with_activations_of_its_own_are_refused():
    first, second = tiny_models.tiny_decoder("apertus"), tiny_models.tiny_decoder("apertus")
    keys, values = memory(hidden_size=32)
    with pytest.raises(DecoderError, match=r"site 0 \(model.layers.0.mlp\) is another model's, whose activation it has"):
        attach_memory(second, keys, values, sites=ffn_sites(first))
    with attach_memory(second, keys, values, sites=ffn_sites(second)):
        assert second(INPUT_IDS).logits.isfinite().all()
