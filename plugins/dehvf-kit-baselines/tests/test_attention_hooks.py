"""Prompts beside attention of any family: against the family's own maps written out, and what is left behind."""

from __future__ import annotations

import contextlib
import copy
import re
import sys
from collections.abc import Callable

import pytest
import torch
from baseline_helpers import baseline, decoder, ids, pixels, worst
from dehvf_kit_baselines.attention_hooks import AttentionHook
from dehvf_kit_baselines.gated_prefix import GatedPrefix
from torch import Tensor, nn

from dehvf_kit.backbones import attached
from dehvf_kit.backbones.decoder import attention_sites, decoder_spec
from dehvf_kit.errors import DecoderError, RecipeError
from dehvf_kit.testing import tiny_decoder
from dehvf_kit.testing.tiny_models import decoder_types

LATER = ("olmo2", "stablelm", "cohere2", "afmoe", "phi3", "opt", "smollm3")
FAMILIES = ["gpt2", "gpt_neox", "qwen3", "gemma3_text", *(pytest.param(family, marks=pytest.mark.nightly) for family in LATER)]
# Float32 sums in another order. Worst seen 3e-7.
CLOSE = 3e-6


def thirds(maps: Tensor, heads: int) -> tuple[Tensor, ...]:
    """Queries, keys and values of all heads one after the other (GPT-2)."""
    return tuple(part.unflatten(-1, (heads, -1)) for part in maps.chunk(3, -1))


def keys_values(attention: nn.Module, x: Tensor, heads: int) -> tuple[Tensor, Tensor]:
    """A family's keys and values [n, key head, width] of x [n, hidden], not rotated, from its maps."""
    if hasattr(attention, "c_attn"):
        return thirds(attention.c_attn(x), heads)[1:]
    if hasattr(attention, "query_key_value"):  # by head: query, key, value (GPT-NeoX)
        return attention.query_key_value(x).unflatten(-1, (heads, 3, -1)).unbind(-2)[1:]
    if hasattr(attention, "qkv_proj"):  # all query heads, then the key heads, then those of the values (Phi-3)
        width = attention.head_dim
        shared = (attention.qkv_proj.out_features // width - heads) // 2
        return attention.qkv_proj(x).unflatten(-1, (-1, width)).split((heads, shared, shared), -2)[1:]
    width, norm = attention.head_dim, getattr(attention, "k_norm", None)
    keys, values = attention.k_proj(x), attention.v_proj(x).unflatten(-1, (-1, width))
    whole = norm is not None and norm.weight.numel() > width
    keys = (norm(keys) if whole else keys).unflatten(-1, (-1, width))
    return keys if norm is None or whole else norm(keys), values


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_prompts_are_read_as_each_family_reads_its_own_tokens(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fused and separate maps, norms of heads or of all, rotation of all, a part, in some layers or none."""
    base = tiny_decoder(family)
    base.set_attn_implementation("eager")
    plain, sites = copy.deepcopy(base), attention_sites(base)
    model = baseline("llama_adapter", base=base, decoder_adapter={"num_layers": len(sites)})
    node, heads = model.nodes["decoder_adapter"], sites[0].num_heads
    text = ids(2) % base.config.vocab_size
    found = model(input_ids=text).logits
    place = sys.modules[type(plain.get_submodule(sites[0].path)).__module__]
    own = place.eager_attention_forward
    layers = {id(plain.get_submodule(site.path)): layer for layer, site in enumerate(sites)}

    def literal(attention: nn.Module, q: Tensor, k: Tensor, v: Tensor, *args: object, **settings: object) -> tuple[Tensor, ...]:
        output, *rest = own(attention, q, k, v, *args, **settings)
        layer = layers[id(attention)]
        made = keys_values(attention, node.prompts[layer], heads)
        keys, values = (one.repeat_interleave(heads // one.shape[1], 1) for one in made)
        scores = torch.einsum("bhtd,nhd->bhtn", q, keys) * settings.get("scaling", q.shape[-1] ** -0.5)
        read = torch.einsum("bhtn,nhd->bthd", scores.softmax(-1), values)
        return output + 0.7 * node.gates[layer].tanh()[:, None] * read, *rest

    before = plain(input_ids=text).logits
    monkeypatch.setattr(place, "eager_attention_forward", literal)
    wanted = plain(input_ids=text).logits
    assert worst(found, before) > 100 * CLOSE and worst(found, wanted) < CLOSE
    for one in model.nodes["decoder_adapter"]._attention:
        assert one._call is None  # no tensor of the pass is kept


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_closed_gates_leave_every_bit_and_detach_leaves_nothing(implementation: str) -> None:
    base = tiny_decoder("gpt2")
    base.set_attn_implementation(implementation)
    text, configs = ids(2), [base.get_submodule(site.path).config for site in attention_sites(base)]
    before = base(input_ids=text).logits
    model = baseline("llama_adapter", random=False, base=base, decoder_adapter={"num_layers": 2})
    assert torch.equal(model(input_ids=text, pixel_values=pixels(2)).logits, before)
    base.set_attn_implementation("eager" if implementation == "sdpa" else "sdpa")  # while attached
    assert worst(model(input_ids=text).logits, before) < CLOSE
    assert base.config._attn_implementation != implementation
    model.detach()
    assert all(base.get_submodule(site.path).config is one for site, one in zip(attention_sites(base), configs, strict=True))


@torch.no_grad()
def test_two_hooks_on_one_attention_add_up_whichever_goes_first() -> None:
    base = decoder()
    attention, before = base.model.layers[0].self_attn, base(input_ids=ids()).logits

    def constant(size: float) -> Callable[[Tensor, float | None], Tensor]:
        return lambda queries, scaling: torch.full_like(queries, size)

    first, second = AttentionHook(attention, constant(1.0)), AttentionHook(attention, constant(2.0))
    both = base(input_ids=ids()).logits
    first.remove()
    first.remove()
    two = base(input_ids=ids()).logits
    second.remove()
    assert torch.equal(base(input_ids=ids()).logits, before)
    three = AttentionHook(attention, constant(3.0))
    assert worst(base(input_ids=ids()).logits, both) < CLOSE < worst(two, both)
    three.remove()
    assert not attention._forward_pre_hooks and attention.config is base.config


def test_a_decoder_without_such_attention_is_refused() -> None:
    for family in ("bloom", "qwen3_next"):  # attention of its own; attention in some layers
        with pytest.raises(RecipeError, match=rf"works beside attention: in every layer one module .*'{family}'\) has none"):
            baseline("llama_adapter", base=tiny_decoder(family))
    twice = baseline("llama_adapter", base=tiny_decoder("diffllama"), decoder_adapter={"num_layers": 2})
    with pytest.raises(DecoderError, match="DiffLlamaAttention: attends more than once in a call"):
        twice(input_ids=ids())


@torch.no_grad()
@pytest.mark.parametrize("family", ["opt", pytest.param("gpt_neox", marks=pytest.mark.nightly)])
def test_weights_of_an_image_go_to_maps_by_role(family: str) -> None:
    """Separate maps (OPT), and one map of queries, keys and values (GPT-NeoX)."""
    base = tiny_decoder(family)
    plain, text, targets = copy.deepcopy(base), ids(1), ["qkv", "ffn"] if family == "gpt_neox" else ["query", "output", "ffn"]
    model = baseline("vlora", base=base, random=False, decoder_adapter={"every": 2, "targets": targets})
    start = plain(input_ids=text).logits
    assert torch.equal(model(input_ids=text, pixel_values=pixels(1)).logits, start)
    node = model.nodes["decoder_adapter"]
    torch.manual_seed(0)
    for generator in node.generators.values():
        generator.b.normal_()
    found = model(input_ids=text, pixel_values=pixels(1)).logits
    assert worst(found, start) > 100 * CLOSE and torch.equal(model(input_ids=text).logits, start)
    missing = "query" if family == "gpt_neox" else "qkv"
    with pytest.raises(RecipeError, match=rf"needs one {missing} map of one size in each layer, but there are none; its layers"):
        baseline("vlora", base=plain, decoder_adapter={"every": 2, "targets": [missing]})


def test_layers_with_prompts_compile_as_one_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """`training.compile`: traced without generating code; a graph break is an error, and all layers then run as written."""
    settings = {"dynamic": False, "isolate_recompiles": True, "backend": "aot_eager", "fullgraph": True}
    monkeypatch.setattr(attached, "SETTINGS", settings)
    found = []
    for compiled in (False, True):
        base = decoder()
        model = baseline("llama_adapter", base=base).train()
        layers = attached.CompiledLayers(list(base.model.layers) if compiled else [], lambda: True)
        logits = model(input_ids=ids(), pixel_values=pixels(), use_cache=False).logits
        assert len(layers.layers) == 4 * compiled
        logits.square().mean().backward()
        found.append((logits, model.nodes["decoder_adapter"].prompts.grad))
    torch.compiler.reset()
    assert worst(found[0][0], found[1][0]) < CLOSE and worst(found[0][1], found[1][1]) < CLOSE


@torch.no_grad()
def effect(base: nn.Module) -> tuple[bool, float]:
    """Whether closed gates leave every bit, and how far open ones move the logits. Raises: DecoderError where it is refused."""
    text, spec = ids(2) % base.config.get_text_config().vocab_size, decoder_spec(base)
    before = base(input_ids=text).logits
    torch.manual_seed(0)
    prefix = GatedPrefix(spec.num_layers, spec.num_layers, 3, spec.hidden_size, spec.num_heads)
    hooks = list(prefix.hook(base))
    found = []
    for gate in (0.0, 1.0):
        prefix.gates.fill_(gate)
        with prefix.holding(prefix()):
            found.append(base(input_ids=text).logits)
    for hook in hooks:
        hook.remove()
    assert torch.equal(base(input_ids=text).logits, before)
    return torch.equal(found[0], before), worst(found[1], before)


@pytest.mark.nightly
def test_130_decoder_types_take_prompts_and_the_others_say_why() -> None:
    """Of the 187 that transformers 5.23 can build tiny; docs/baselines.md has the count."""
    taken = []
    for family in decoder_types():
        try:
            base = tiny_decoder(family).eval()
        except Exception:  # a type whose config has no tiny form: docs/support.md says why
            continue
        try:
            exact, moved = effect(base)
        except DecoderError as error:
            assert re.search(r"found in layer|config names|more than once|cannot be asked|no layer holds", str(error))
            continue
        assert exact and moved > 0, family
        taken.append(family)
    assert len(taken) >= 130, taken


@torch.no_grad()
def test_prompts_pass_neither_hooks_nor_tuners_at_the_key_and_value_maps() -> None:
    """Their keys and values are the decoder's own, as without the other components; the maps are put back."""
    model = decoder()
    attention = model.model.layers[0].self_attn
    states, found = torch.randn(1, 3, 32, generator=torch.Generator().manual_seed(0)), []
    with contextlib.ExitStack() as stack:
        hook = AttentionHook(attention, lambda queries, scaling: found.append(hook.keys_values(states)))
        stack.callback(hook.remove)
        model(input_ids=ids())
        handles = [one.register_forward_hook(lambda *given: given[-1] + 1) for one in (attention.k_proj, attention.v_proj)]
        own = attention.k_proj
        model(input_ids=ids())
        assert attention.k_proj is own and own._forward_hooks
        for handle in handles:
            handle.remove()
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
