"""Later methods: each equals its formula, written out for one sample at a time, and has the published number of parameters."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from baseline_helpers import BOS, PATCHES, SLOTS, baseline, decoder, ids, literal_llama, pixels, worst
from dehvf_kit_baselines.layer_readers import TokenLevels
from dehvf_kit_baselines.method_table import method_table
from dehvf_kit_report.fuser_weights import graph_outputs
from torch import Tensor, nn
from torch.nn import functional as F

from dehvf_kit.data.samples import Sample
from dehvf_kit.errors import DecoderError, RecipeError, ShapeError
from dehvf_kit.testing import tiny_decoder

RECIPES = Path(__file__).parents[1] / "recipes"
MIXED = torch.tensor([True, False, True])
IMAGE, COLON, NOT, SLASH, AVAILABLE = 4, 5, 6, 7, 8  # ids of the words in "Image : N/A"
ROLE = {"q_proj": "query", "k_proj": "key", "v_proj": "value", "o_proj": "output"}
LOGITS = 2e-5  # float32 sums in another order; worst seen 6e-6
COUNTS = {
    "adem_vl_7b": 4_530_432,
    "adem_vl_13b": 5_449_984,
    "flamingo_7b": 1_178_834_960,
    "flamingo_small_7b": 4_163_589,
    "dense_connector_7b": 29_368_320,
    "blip2_opt": 105_162_240 + (768 + 1) * 2560,
    "llama_adapter_v2_7b": 63_095_552 - 32,
    "llama_adapter_v2_lora_7b": 63_095_552 - 32 + 31 + 32 * 16 * (4 * 2 * 4096 + 3 * (4096 + 11008)),
    "llama_adapter_v2_chat_65b": 13_811_712,
    "clipcap": 41_745_408,
    "vlora_7b": 851_891_712,
    "deepstack_7b": (1024 + 1) * 4096 + (4096 + 1) * 4096,
    "igva_7b": 27_047_940 + 25_174_016,
}


@pytest.mark.parametrize("name", COUNTS)
def test_recipes_have_the_parameters_of_the_public_code(name: str) -> None:
    (row,) = method_table([RECIPES / f"{name}.yaml"])
    assert row.trained == COUNTS[name]


def ln(x: Tensor, module: nn.LayerNorm) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / torch.sqrt((centred**2).mean(-1, keepdim=True) + module.eps) * module.weight + module.bias


def heads(q: Tensor, k: Tensor, v: Tensor, count: int) -> Tensor:
    """softmax(q k^T / sqrt(d)) v of one sample, head by head."""
    width = q.shape[-1] // count
    parts = [slice(head * width, (head + 1) * width) for head in range(count)]
    return torch.cat([(q[:, p] @ k[:, p].T / width**0.5).softmax(-1) @ v[:, p] for p in parts], -1)


def halves(module: nn.Linear, x: Tensor) -> tuple[Tensor, Tensor]:
    first, second = module.weight.chunk(2)
    return x @ first.T, x @ second.T


@torch.no_grad()
def test_flamingo() -> None:
    model = baseline("flamingo")
    features = model.vision_features(pixels(2))
    found = model(input_ids=ids(), vision_features=features, has_image=MIXED).logits
    published = baseline("flamingo", decoder_adapter={"without_image": "feed_forward"})
    exact = published(input_ids=ids(), vision_features=features, has_image=MIXED).logits
    resampler, adapter = model.nodes["reader"], model.nodes["decoder_adapter"]
    for row, place in ((0, 0), (2, 1), (1, None)):
        latents = resampler.latents
        if place is not None:
            for block in resampler.blocks:
                normed = ln(latents, block.latent_norm)
                k, v = halves(block.key_value, torch.cat([ln(features[place, -1, 1:], block.media_norm), normed]))
                latents = latents + heads(normed @ block.query.weight.T, k, v, 2) @ block.output.weight.T
                inner = F.gelu(ln(latents, block.ffn_norm) @ block.up.weight.T)
                latents = latents + inner @ block.down.weight.T
        media = ln(latents, resampler.norm)

        def between(layer: int, h: Tensor, media: Tensor = media, seen: bool = place is not None, ffn: bool = False):
            if layer not in (1, 3) or not (seen or ffn):
                return 0.0
            block, y = adapter.blocks[(1, 3).index(layer)], h
            if seen:
                q = ln(h, block.norm) @ block.query.weight.T
                y = h + block.gate.tanh() * (heads(q, *halves(block.key_value, media), 2) @ block.output.weight.T)
            inner = F.gelu(ln(y, block.ffn["norm"]) @ block.ffn["up"].weight.T)
            return y + block.ffn_gate.tanh() * (inner @ block.ffn["down"].weight.T) - h

        embeds = model.decoder.get_input_embeddings()(ids()[row])
        assert worst(found[row], literal_llama(model.decoder, embeds, between=between)) < LOGITS
        whole = literal_llama(model.decoder, embeds, between=lambda layer, h: between(layer, h, ffn=True))
        assert worst(exact[row], whole) < LOGITS


def project(module: nn.Module, x: Tensor, activation) -> Tensor:
    inner = activation(x @ module.fc1.weight.T + module.fc1.bias)
    return inner @ module.fc2.weight.T + module.fc2.bias


@torch.no_grad()
def test_adem_vl() -> None:
    model = baseline("adem_vl")
    model.nodes["position"].values.normal_()
    features = model.vision_features(pixels(2))
    found = model(input_ids=ids(), vision_features=features, has_image=MIXED).logits
    nodes, embed = model.nodes, model.decoder.get_input_embeddings()
    for row, place in ((0, 0), (2, 1), (1, None)):
        visual, words = torch.zeros(SLOTS, 32), [IMAGE, COLON, NOT, SLASH, AVAILABLE]
        shown = [embed(torch.tensor(words))]
        if place is not None:
            grid = features[place, -1, 1:]
            assert len(grid) == PATCHES == 16
            square = [[4 * (2 * y + dy) + 2 * x + dx for dy in (0, 1) for dx in (0, 1)] for y in (0, 1) for x in (0, 1)]
            pooled = torch.cat([grid, torch.stack([grid[cells].mean(0) for cells in square])])
            visual = 0.5 * project(nodes["projector"], pooled, F.silu)
            token = project(nodes["token_projector"], features[place, -1, :1], F.silu)
            shown = [embed(torch.tensor([IMAGE, COLON])), token]
        keys, values = visual + nodes["position"].keys, visual + nodes["position"].values

        def ffn(layer: int, x: Tensor, keys: Tensor = keys, values: Tensor = values) -> Tensor:
            scores = F.silu(x) @ F.silu(keys).T
            for token in scores:
                token[token < token.sort().values[2]] = 0  # a tenth of 20 slots
            return 0.1 * scores @ values

        text = embed(ids()[row])
        assert ids()[row, 0] == BOS
        embeds = torch.cat([text[:1], *shown, text[1:]])
        logits = literal_llama(model.decoder, embeds, ffn=ffn)
        assert worst(found[row, 1:], logits[-(len(text) - 1) :]) < LOGITS


@torch.no_grad()
def test_dense_connector() -> None:
    model = baseline("dense_connector")
    features = model.vision_features(pixels(3))
    found = model(input_ids=ids(), vision_features=features).logits
    states, embed = features[0, :, 1:], model.decoder.get_input_embeddings()
    layers = model.graph.layers["vision"]
    by_layer = {layer: states[position] for position, layer in enumerate(layers)}
    joined = ln(torch.cat([by_layer[6], by_layer[1], (by_layer[0] + by_layer[2]) / 2], -1), model.nodes["reader"].norm)
    tokens, text = project(model.nodes["projector"], joined, F.gelu), embed(ids()[0])
    logits = literal_llama(model.decoder, torch.cat([text[:1], tokens, text[1:]]))
    assert worst(found[0, 1:], logits[-(len(text) - 1) :]) < LOGITS
    levels = TokenLevels(2, [0, 1], 4)(features[:, :3, 1:])[:, 0]
    assert torch.equal(levels[0, :16], states[2]) and worst(levels[0, 17], states[0, 4:8].mean(0)) < 1e-6
    assert levels.shape[1] == 16 + 2 * 4 and worst(levels[0, 23], states[1, 12:].mean(0)) < 1e-6


@torch.no_grad()
@pytest.mark.parametrize("mapping", ["transformer", "mlp"])
def test_clipcap(mapping: str) -> None:
    model = baseline("clipcap", visual_tokens={"mapping": mapping})
    features = model.vision_features(pixels(3))
    found = model(input_ids=ids(), vision_features=features).logits
    mapped, image = model.nodes["visual_tokens"].mapping, features[0, -1, 0]
    if mapping == "mlp":
        inner = torch.tanh(image @ mapped[0].weight.T + mapped[0].bias)
        tokens = (inner @ mapped[2].weight.T + mapped[2].bias).view(3, 32)
    else:
        x = torch.cat([(image @ mapped.read.weight.T + mapped.read.bias).view(2, 32), mapped.prefix])
        for block in mapped.blocks:
            normed = ln(x, block.norm)
            seen = heads(normed @ block.query.weight.T, *halves(block.key_value, normed), 4)
            x = x + seen @ block.output.weight.T + block.output.bias
            inner = torch.relu(ln(x, block.mlp_norm) @ block.up.weight.T + block.up.bias)
            x = x + inner @ block.down.weight.T + block.down.bias
        tokens = x[2:]
    text = model.decoder.get_input_embeddings()(ids()[0])
    logits = literal_llama(model.decoder, torch.cat([text[:1], tokens, text[1:]]))
    assert worst(found[0, 1:], logits[-(len(text) - 1) :]) < LOGITS


@torch.no_grad()
def test_igva_weighs_the_layers_by_the_question_and_never_by_the_answer() -> None:
    model = baseline("igva", reader={"sentence_size": 16})
    features, text = model.vision_features(pixels(3)), ids()
    labels = torch.full_like(text, -100)
    labels[:, 5:] = text[:, 5:]
    found = model(input_ids=text, vision_features=features, labels=labels, logits_to_keep=torch.arange(6)).logits
    reader, embed, mean = model.nodes["reader"], model.decoder.get_input_embeddings(), lambda x: x.sum(0) / len(x)
    for row in range(3):
        groups = [[0, 1, 2], [3, 4, 5], [6, 7]]
        q = mean(embed(text[row, :5])).view(16, 2).mean(-1) @ reader.query.weight.T + reader.query.bias
        keys = torch.stack([mean(features[row, group, 0]) for group in groups]) @ reader.globals.weight.T + reader.globals.bias
        for block in reader.blocks:
            (w, b), out = (block.attention.in_proj_weight.chunk(3), block.attention.in_proj_bias.chunk(3)), block.attention.out_proj
            maps = [x @ w[i].T + b[i] for i, x in enumerate((q[None], keys, keys))]
            q = ln(q + (heads(*maps, 2) @ out.weight.T + out.bias)[0], block.norm)
            inner = torch.relu(q @ block.up.weight.T + block.up.bias)
            q = ln(q + inner @ block.down.weight.T + block.down.bias, block.ffn_norm)
        weights = (q @ reader.score.weight.T + reader.score.bias).softmax(-1)
        mixed = sum(weight * mean(features[row, group, 1:]) for weight, group in zip(weights, groups, strict=True))
        tokens = project(model.nodes["projector"], torch.cat([features[row, 6, 1:], mixed], -1), F.gelu)
        whole = embed(text[row])
        logits = literal_llama(model.decoder, torch.cat([whole[:1], tokens, whole[1:]]))
        assert worst(found[row, 1:], logits[-6:-1]) < LOGITS
    question = model(input_ids=text[:, :5], vision_features=features).logits
    assert worst(question, found[:, :5]) < LOGITS, "generation reads the same question"
    with pytest.raises(ShapeError, match="reads the question"):
        model.memory(3, vision_features=features)
    cache = model.decoder(input_ids=text, use_cache=True).past_key_values
    with pytest.raises(ShapeError, match="reads the whole question"):
        model(input_ids=text[:, :1], vision_features=features, past_key_values=cache)


@torch.no_grad()
@pytest.mark.parametrize("form", ["deepstack", "qwen3_vl"])
def test_deepstack_adds_levels_to_the_image_tokens_alone(form: str) -> None:
    graph = {}
    if form == "qwen3_vl":
        graph["mergers"] = {"role": "projector", "type": "mergers", "layers": [1, 5], "inputs": {"patches": "vision"}}
        graph["decoder_adapter"] = {
            "type": "stacked_tokens",
            "where": "after",
            "first": 0,
            "skip": 0,
            "inputs": {"levels": "mergers"},
        }
    model = baseline("deepstack", **graph)
    features, text, embed = model.vision_features(pixels(2)), ids(), model.decoder.get_input_embeddings()
    found = model(input_ids=text, vision_features=features, has_image=MIXED).logits
    places, nodes = model.graph.layers["vision"], model.nodes
    for row, place in ((0, 0), (2, 1)):
        grid = features[place, places.index(6), 1:].view(4, 4, -1)
        parts = [grid[y::2, x::2].flatten(0, 1) for y in (0, 1) for x in (0, 1)]
        shown = project(nodes["projector"], sum(parts) / 4, F.silu)
        if form == "deepstack":
            levels = dict(enumerate(project(nodes["projector"], part, F.silu) for part in parts))
        else:
            levels = {}
            for index, layer in enumerate((1, 5)):
                grid = features[place, places.index(layer), 1:].view(4, 4, -1)
                cells = [
                    torch.cat([grid[y, x], grid[y, x + 1], grid[y + 1, x], grid[y + 1, x + 1]]) for y in (0, 2) for x in (0, 2)
                ]
                merger = nodes["mergers"]
                inner = F.gelu(ln(torch.stack(cells), merger.norms[index]) @ merger.up[index].weight.T + merger.up[index].bias)
                levels[index + 1] = inner @ merger.down[index].weight.T + merger.down[index].bias  # after 0, 1: before 1, 2
        whole = embed(text[row])
        embeds = torch.cat([whole[:1], embed(torch.tensor([IMAGE, COLON])), shown, whole[1:]])

        def between(layer: int, h: Tensor, levels: dict = levels) -> Tensor:
            added = torch.zeros_like(h)
            if layer in levels:
                added[3:7] = levels[layer]
            return added

        logits = literal_llama(model.decoder, embeds, between=between)
        assert worst(found[row, 1:], logits[-(len(whole) - 1) :]) < LOGITS
    embedded = model(inputs_embeds=embed(text), vision_features=features, has_image=MIXED).logits
    assert embedded.shape == found.shape
    assert nodes["decoder_adapter"].places is None, "told for the pass alone"


def affine(module: nn.Linear, x: Tensor) -> Tensor:
    return x @ module.weight.T + module.bias


@torch.no_grad()
def test_vlora() -> None:
    model = baseline("vlora")
    features = model.vision_features(pixels(2))
    found = model(input_ids=ids(), vision_features=features, has_image=MIXED).logits
    adapter, made = model.nodes["decoder_adapter"], {}
    for row, place in ((0, 0), (2, 1), (1, None)):
        if place is not None:
            image = affine(adapter.image.map, features[place, 0, 1:]) + adapter.image.positions
            for name, generator in adapter.generators.items():
                x = generator.queries
                for block in generator.blocks:
                    (q, k, v, o), n = block.own, ln(x, block.norms[0])
                    x = x + affine(o, heads(affine(q, n), affine(k, n), affine(v, n), 2))
                    (q, k, v, o), n = block.seen, ln(x, block.norms[1])
                    x = x + affine(o, heads(affine(q, n), affine(k, image), affine(v, image), 2))
                    x = x + affine(block.down, F.gelu(affine(block.up, ln(x, block.norms[2]))))
                made[name] = affine(generator.output, ln(x, generator.norm)).view(2, -1, 2)

        def delta(name: str, layer: int, x: Tensor, seen: bool = place is not None):
            if layer not in (1, 3) or not seen or name not in made:
                return 0.0
            return 1.5 * (x @ made[name][layer // 2]) @ adapter.generators[name].b[layer // 2].T

        logits = literal_llama(
            model.decoder,
            model.decoder.get_input_embeddings()(ids()[row]),
            update=lambda layer, name, x: delta(ROLE[name], layer, x),
            ffn=lambda layer, x: delta("ffn", layer, x),
        )
        assert worst(found[row], logits) < LOGITS


@torch.no_grad()
def test_as_many_image_tokens_as_prompts_are_added_row_by_row() -> None:
    """LLaMA-Adapter V2's form. Worst seen 2e-7."""
    model = baseline("llama_adapter", reader={"num_tokens": 5})
    features, adapter = model.vision_features(pixels(2)), model.nodes["decoder_adapter"]
    held = model.memory(3, vision_features=features, has_image=MIXED)["decoder_adapter"]
    tokens = project(model.nodes["projector"], features[1, :, 0], F.silu)
    for row, seen in ((2, adapter.prompts + tokens), (1, adapter.prompts)):
        assert worst(held.prompts[:, row], seen) < LOGITS
    with pytest.raises(RecipeError, match="or one to each, but 3 are wired"):
        baseline("llama_adapter", reader={"num_tokens": 3})


def test_closed_gates_and_rows_without_image_leave_the_decoder_bit_for_bit() -> None:
    base = decoder()
    before = base(input_ids=ids()).logits
    model = baseline("flamingo", random=False, base=base)
    assert torch.equal(model(input_ids=ids(), pixel_values=pixels()).logits, before)
    model = baseline("vlora", random=False, base=decoder())
    assert torch.equal(model(input_ids=ids(), pixel_values=pixels()).logits, before)
    for kind in ("flamingo", "vlora", "deepstack", "dense_connector", "clipcap"):
        model = baseline(kind, base=decoder())
        mixed = model(input_ids=ids(), pixel_values=pixels(2), has_image=MIXED).logits
        assert worst(mixed[1, 1:], before[1, 1:]) < LOGITS and not torch.equal(mixed[0], before[0]), kind
        assert torch.equal(mixed[1], before[1]) or kind in ("deepstack", "dense_connector", "clipcap"), kind


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(RecipeError, match="no layer of 4 is the 5th"):
        baseline("flamingo", decoder_adapter={"every": 5})
    with pytest.raises(RecipeError, match="cannot be cut into grids"):
        baseline("adem_vl", reader={"sides": [3]})
    with pytest.raises(RecipeError, match="20 tokens of an image for 21 slots"):
        baseline("adem_vl", position={"num_slots": 21})
    with pytest.raises(RecipeError, match="there is no vision layer 9 of 8"):
        baseline("dense_connector", reader={"layers": [[9]]})
    with pytest.raises(DecoderError, match="nothing can be added between its layers"):
        baseline("flamingo", base=tiny_decoder("gemma3n"))


@torch.no_grad()
def test_the_report_asks_each_image_its_own_question_where_a_reader_weighs_by_it() -> None:
    model = baseline("igva", reader={"sentence_size": 16})
    asked = {"a": "w10 w11 w12", "b": "w20"}
    samples = [Sample(name, question, "") for name, question in asked.items()]
    features = model.vision_features(pixels(2))
    store = SimpleNamespace(read=lambda sample: features[list(asked).index(sample.id)][None])
    found = graph_outputs(model, samples, store)
    alone = [graph_outputs(model, [sample], store) for sample in samples]
    tokens = found["visual_tokens"].embeds
    for row, one in enumerate(alone):
        assert worst(tokens[row], one["visual_tokens"].embeds[0]) < LOGITS
    other = graph_outputs(model, [replace(samples[0], question=asked["b"])], store)
    assert worst(other["visual_tokens"].embeds, alone[0]["visual_tokens"].embeds) > 20 * LOGITS
