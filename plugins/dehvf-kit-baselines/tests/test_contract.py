"""What every baseline keeps: counts, an untouched start, independent rows, cached generation, saving, detaching, gradients."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from baseline_helpers import BOS, GRAPHS, PAD, VOCAB, ZOO, baseline, decoder, encoder, ids, pixels, tokenizer, worst
from dehvf_kit_baselines.attention_hooks import attention_modules, before_attention
from test_formulas import mixture
from transformers import Qwen2Config, Qwen2ForCausalLM

import dehvf_kit
from dehvf_kit.backbones.decoder import decoder_spec
from dehvf_kit.costs.parameters import parameter_table
from dehvf_kit.errors import AdapterError, DehvfError, RecipeError, ShapeError
from dehvf_kit.testing import tiny_decoder

KINDS = [*GRAPHS, *(pytest.param(kind, marks=pytest.mark.nightly) for kind in ZOO)]
INPUT = ["lavin", "llava_lora"]
MIXED = torch.tensor([True, False, True])
NEW = 6
# Float32 sums of other lengths and orders. Worst seen 7.8e-6.
CLOSE = 3e-5


@pytest.mark.parametrize("kind", KINDS)
def test_counts_are_the_built_modules(kind: str) -> None:
    model = baseline(kind)
    terms = parameter_table(model.graph).terms
    for name, node in model.nodes.items():
        assert sum(term.count for term in terms if term.node == name) == sum(p.numel() for p in node.parameters()), name
    assert model.num_trainable_parameters() == sum(term.count for term in terms)


@pytest.mark.parametrize("kind", ["lavin", "llama_adapter", "llava_lora"])
def test_at_the_start_the_decoder_is_untouched_bit_for_bit(kind: str) -> None:
    """Adapters are the identity, gates are closed, B is zero; without pictures and words nothing enters the input."""
    quiet = {"visual_tokens": {"words_without": ""}} if kind == "lavin" else {}
    base = decoder()
    before = base(input_ids=ids()).logits
    model = baseline(kind, random=False, base=base, **quiet)
    assert torch.equal(model(input_ids=ids()).logits, before)
    if kind == "llama_adapter":
        assert torch.equal(model(input_ids=ids(), pixel_values=pixels()).logits, before)


@pytest.mark.parametrize("kind", KINDS)
def test_detach_gives_the_very_decoder_back(kind: str) -> None:
    base, vision = decoder(), encoder()
    before, names = base(input_ids=ids()).logits, [name for name, _ in base.named_modules()]
    seen, trainable = vision(pixels()).last_hidden_state, [p.requires_grad for p in base.parameters()]
    model = baseline(kind, base=base, vision=vision)
    model(input_ids=ids(), pixel_values=pixels())
    model.detach()
    assert torch.equal(base(input_ids=ids()).logits, before)
    assert torch.equal(vision(pixels()).last_hidden_state, seen)
    assert [name for name, _ in base.named_modules()] == names and not hasattr(base, "peft_config")
    assert [p.requires_grad for p in base.parameters()] == trainable
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in base.modules())
    with pytest.raises(DehvfError, match="was detached"):
        model(input_ids=ids())


def padded(rows: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of several lengths with padding on the left, and their mask."""
    longest = max(map(len, rows))
    both = [(torch.cat([torch.full((longest - len(row),), PAD), row]), len(row)) for row in rows]
    return torch.stack([row for row, _ in both]), torch.stack([(torch.arange(longest) >= longest - n).long() for _, n in both])


ROWS = [ids(1, 9, 4)[0], ids(1, 5, 5)[0], ids(1, 7, 6)[0]]


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_depends_neither_on_its_neighbours_nor_on_padding(kind: str) -> None:
    model, pixel_values = baseline(kind), pixels(2)
    input_ids, mask = padded(ROWS)
    together = model(input_ids=input_ids, attention_mask=mask, pixel_values=pixel_values, has_image=MIXED).logits
    other = model(input_ids=input_ids, attention_mask=mask, pixel_values=pixel_values.flip(0), has_image=MIXED).logits
    assert worst(other[1], together[1]) == 0
    for place, row in enumerate(ROWS):
        own = {} if place == 1 else {"pixel_values": pixel_values[place // 2][None]}
        alone = model(input_ids=row[None], **own).logits[0]
        assert worst(together[place, -len(row) + 1 :], alone[1:]) < CLOSE, place
        right = torch.cat([row, torch.full((4,), PAD)])[None]
        right_mask = (torch.arange(len(row) + 4) < len(row)).long()[None]
        again = model(input_ids=right, attention_mask=right_mask, **own).logits[0, : len(row)]
        assert worst(again[1:], alone[1:]) < CLOSE, place


def talkative(kind: str) -> dehvf_kit.DehvfModel:
    """A larger output head makes words that depend on the picture."""
    model = baseline(kind)
    with torch.no_grad():
        model.decoder.lm_head.weight.mul_(20)
    return model


def generate(model, **settings):
    torch.manual_seed(13)
    fixed = {"max_new_tokens": NEW, "min_new_tokens": NEW, "pad_token_id": PAD}
    return model.generate(**{**fixed, **settings})


WAYS = {"greedy": {}, "beams": {"num_beams": 3}, "several": {"num_beams": 4, "num_return_sequences": 2}}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("kind", KINDS)
def test_cached_generation_equals_uncached(kind: str, way: dict) -> None:
    model = talkative(kind)
    input_ids, mask = padded(ROWS)
    batch = {"input_ids": input_ids, "attention_mask": mask, "pixel_values": pixels(2), "has_image": MIXED, **way}
    cached = generate(model, **batch)
    times = way.get("num_return_sequences", 1)
    assert torch.equal(cached[:, : input_ids.shape[1]], input_ids.repeat_interleave(times, 0)), "the prompt comes back"
    assert cached.shape == (3 * times, input_ids.shape[1] + NEW)
    assert torch.equal(cached, generate(model, use_cache=False, **batch))
    blind = {name: value for name, value in batch.items() if name not in ("pixel_values", "has_image")}
    assert not torch.equal(cached, generate(model, **blind)), "the pictures change what is said"


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_is_one_forward_pass_a_token(kind: str) -> None:
    model = talkative(kind)
    batch = {"pixel_values": pixels(2), "has_image": MIXED}
    written = ids()
    for _ in range(NEW):
        logits = model(input_ids=written, **batch).logits[:, -1].clone()
        logits[:, model.decoder.generation_config.eos_token_id] = -torch.inf
        written = torch.cat([written, logits.argmax(-1, keepdim=True)], 1)
    assert torch.equal(generate(model, input_ids=ids(), **batch), written)


@pytest.mark.parametrize("kind", INPUT)
def test_lengths_and_dictionaries_count_the_text_alone(kind: str) -> None:
    model = talkative(kind)
    batch = {"input_ids": ids(), "pixel_values": pixels()}
    by_length = model.generate(**batch, max_new_tokens=None, max_length=7 + NEW, min_length=7 + NEW, pad_token_id=PAD)
    assert torch.equal(by_length, generate(model, **batch))
    whole = generate(model, **batch, return_dict_in_generate=True, output_scores=True)
    assert torch.equal(whole.sequences, by_length) and len(whole.scores) == NEW


@pytest.mark.parametrize("kind", KINDS)
def test_logits_of_the_answers_alone_give_the_same_loss(kind: str) -> None:
    """Right padding, as in training. No difference seen; other machines may multiply fewer rows in another order."""
    model = baseline(kind)
    input_ids = ids(3, 8)
    mask = torch.ones_like(input_ids)
    mask[1, 6:] = 0
    labels = torch.full_like(input_ids, -100)
    labels[0, 5:], labels[1, 4:6], labels[2, 6:] = input_ids[0, 5:], input_ids[1, 4:6], input_ids[2, 6:]
    keep = (labels[:, 1:] != -100).any(0).nonzero().squeeze(1)
    batch = {"input_ids": input_ids, "attention_mask": mask, "pixel_values": pixels(2), "has_image": MIXED}
    whole = model(**batch, labels=labels)
    part = model(**batch, labels=labels, logits_to_keep=keep)
    assert whole.logits.shape == (3, 8, VOCAB) and part.logits.shape == (3, len(keep), VOCAB)
    assert worst(part.logits, whole.logits[:, keep]) < CLOSE
    targets = labels[:, 1:].flatten()
    literal = torch.nn.functional.cross_entropy(whole.logits[:, :-1].flatten(0, 1), targets, ignore_index=-100)
    assert worst(part.loss, literal) < 1e-5 and worst(whole.loss, literal) < 1e-5


@pytest.mark.parametrize("kind", INPUT)
def test_embeddings_given_instead_of_ids_are_extended_too(kind: str) -> None:
    model, input_ids = baseline(kind), ids()
    input_ids[:, 0] = 20  # of embeddings nobody can tell where a sentence begins: the tokens stand in front
    by_id = model(input_ids=input_ids, pixel_values=pixels(2), has_image=MIXED).logits
    embeds = model.get_input_embeddings()(input_ids)
    assert torch.equal(model(inputs_embeds=embeds, pixel_values=pixels(2), has_image=MIXED).logits, by_id)
    with pytest.raises(ShapeError, match="position_ids"):
        model(input_ids=input_ids, pixel_values=pixels(), position_ids=torch.arange(7)[None])
    with pytest.raises(DehvfError, match="input_ids"):
        model.generate(inputs_embeds=embeds, pixel_values=pixels())


@pytest.mark.parametrize("kind", KINDS)
def test_saved_and_loaded_it_says_the_same_bit_for_bit(kind: str, tmp_path: Path) -> None:
    model = baseline(kind)
    batch = {"input_ids": ids(), "pixel_values": pixels(2), "has_image": MIXED}
    before = model(**batch).logits
    model.save_pretrained(tmp_path / "adapter")
    assert torch.equal(model(**batch).logits, before), "saving takes hooks off and on again"
    again = dehvf_kit.load(tmp_path / "adapter", decoder=decoder(), vision=encoder(), tokenizer=tokenizer())
    assert torch.equal(again(**batch).logits, before)
    assert set(again.named_trainable_parameters()) == set(model.named_trainable_parameters())
    with pytest.raises(AdapterError, match="other weights than the adapter was trained on"):
        dehvf_kit.load(tmp_path / "adapter", decoder=decoder(seed=5), vision=encoder(), tokenizer=tokenizer())


@pytest.mark.parametrize("kind", KINDS)
def test_a_copy_has_hooks_of_its_own(kind: str) -> None:
    model = baseline(kind)
    batch = {"input_ids": ids(), "pixel_values": pixels()}
    before = model(**batch).logits
    twin = copy.deepcopy(model)
    model.detach()
    assert torch.equal(twin(**batch).logits, before)


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_components_get_gradients(kind: str) -> None:
    model = baseline(kind)
    model.train()
    model(input_ids=ids(), pixel_values=pixels(2), has_image=MIXED).logits.square().sum().backward()
    trained = {id(parameter) for parameter in model.trainable_parameters()}
    with_gradient = {id(p) for p in model.parameters() if p.grad is not None}
    assert with_gradient <= trained
    silent = {name for name, p in model.named_trainable_parameters().items() if p.grad is None or not p.grad.any()}
    # the last block's adapter is counted by the papers but not run, where the last layer read is the penultimate one
    assert {name for name in silent if not name.startswith("vision_adapter")} == set(), silent
    assert all(p.requires_grad == (id(p) in trained) for p in model.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_checkpointing_changes_no_gradient(kind: str) -> None:
    """No difference seen; a recomputed layer may be summed in another order elsewhere."""
    found = []
    for recomputed in (False, True):
        model = baseline(kind)
        model.train()
        if recomputed:
            model.gradient_checkpointing_enable()
        model(input_ids=ids(), pixel_values=pixels(2), has_image=MIXED).logits.square().mean().backward()
        found.append({name: p.grad for name, p in model.named_trainable_parameters().items() if p.grad is not None})
    assert set(found[0]) == set(found[1])
    for name, gradient in found[0].items():
        assert worst(gradient, found[1][name]) <= 1e-4 * max(gradient.abs().max().item(), 1e-9), name


def test_lavin_needs_a_query_map_in_each_layer() -> None:
    with pytest.raises(RecipeError, match="some of this decoder's layers have no attention with a query map"):
        baseline("lavin", base=tiny_decoder("recurrent_gemma"))


@torch.no_grad()
@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", pytest.param("falcon", marks=pytest.mark.nightly)])
def test_lavin_stands_before_any_attention(family: str) -> None:
    """Joint maps, learned positions, attention and FFN side by side: equal to its formula on the plain decoder."""
    base, plain = tiny_decoder(family), tiny_decoder(family)
    plain.load_state_dict(base.state_dict())
    text = ids(2, 5) % plain.config.vocab_size
    before = plain(input_ids=text).logits
    settings = {"visual_tokens": None, "reader": None, "projector": None, "vision_adapter": None}
    start = baseline("lavin", base=base, random=False, **settings)
    assert torch.equal(start(input_ids=text).logits, before)
    start.detach()
    model = baseline("lavin", base=base, **settings)
    found, node, tokens = model(input_ids=text).logits, model.nodes["decoder_adapter"], {}
    paths = attention_modules(decoder_spec(plain).modules)

    def adapt(layer: int, x: torch.Tensor) -> torch.Tensor:
        tokens.setdefault(layer, x[0, 0])
        return torch.stack([mixture(node.layers[layer], row, tokens[layer]) for row in x])

    for layer, path in enumerate(paths):
        before_attention(plain.get_submodule(path), lambda x, layer=layer: adapt(layer, x))
    plain.base_model(inputs_embeds=node.modality.weight[:1, None], use_cache=False)
    assert worst(found, plain(input_ids=text).logits) < CLOSE
    assert worst(found, before) > 0.01
    cached = generate(model, input_ids=text)
    assert torch.equal(cached, generate(model, input_ids=text, use_cache=False))


@pytest.mark.parametrize("kind", KINDS)
def test_other_families_of_the_kind_are_read(kind: str) -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4}
    base = Qwen2ForCausalLM(Qwen2Config(**sizes, num_key_value_heads=2, vocab_size=VOCAB)).eval()
    model = baseline(kind, base=base)
    batch = {"input_ids": ids(), "pixel_values": pixels()}
    cached = generate(model, **batch)
    assert torch.equal(cached, generate(model, use_cache=False, **batch))
    assert BOS in cached


def test_words_need_a_tokenizer() -> None:
    from baseline_helpers import recipe

    model = dehvf_kit.build(recipe("lavin"), decoder=decoder(), vision=encoder())
    with pytest.raises(DehvfError, match="need a tokenizer"):
        model(input_ids=ids(), pixel_values=pixels())
