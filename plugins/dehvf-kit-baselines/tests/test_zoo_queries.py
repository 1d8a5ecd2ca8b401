"""BLIP-2, LLaMA-Adapter V2 and AdaptFormer: each equals its formula, written out for one sample at a time."""

from __future__ import annotations

import pytest
import torch
from baseline_helpers import baseline, decoder, encoder, ids, literal_llama, pixels, worst
from dehvf_kit_baselines.adaptformer import AdaptFormerConfig
from test_zoo import LOGITS, MIXED, affine, heads, ln
from torch import Tensor, nn
from torch.nn import functional as F

from dehvf_kit.api import BuildContext, DecoderSpec, VisionSpec


@torch.no_grad()
def test_blip2() -> None:
    model = baseline("blip2", vision_adapter=None)
    features = model.vision_features(pixels(3))
    found = model(input_ids=ids(), vision_features=features).logits
    reader, readout, image = model.nodes["reader"], model.nodes["projector"], features[0, -1]
    x = ln(reader.queries, reader.qformer.layernorm)

    def attended(module: nn.Module, x: Tensor, seen: Tensor) -> Tensor:
        maps = module.attention
        read = heads(affine(maps.query, x), affine(maps.key, seen), affine(maps.value, seen), 2)
        return ln(x + affine(module.output.dense, read), module.output.LayerNorm)

    for index, layer in enumerate(reader.qformer.encoder.layer):
        x = attended(layer.attention, x, x)
        if index % 2 == 0:
            x = attended(layer.crossattention, x, image)
        inner = F.gelu(affine(layer.intermediate_query.dense, x))
        x = ln(x + affine(layer.output_query.dense, inner), layer.output_query.LayerNorm)
    tokens, text = affine(readout.fc, x), model.decoder.get_input_embeddings()(ids()[0])
    logits = literal_llama(model.decoder, torch.cat([text[:1], tokens, text[1:]]))
    assert worst(found[0, 1:], logits[-(len(text) - 1) :]) < LOGITS


@torch.no_grad()
@pytest.mark.parametrize("place", ["before_norm", "after_norm"])
def test_adaptformer_reads_before_or_after_the_norm(place: str) -> None:
    """12 blocks of 768 in 64: the published 1,189,632."""
    config = AdaptFormerConfig(input=place, dropout=0.0)
    vision = VisionSpec(hidden_size=768, num_layers=12, num_patches=196, image_size=224)
    assert sum(config.num_params(BuildContext({}, DecoderSpec(1, 1), vision=vision)).values()) == 1_189_632
    untouched = encoder()(pixels(1)).last_hidden_state
    assert torch.equal(baseline("blip2", random=False).towers["vision"].model(pixels(1)).last_hidden_state, untouched)
    model = baseline("blip2", vision_adapter={"input": place})
    node, plain, states = model.nodes["vision_adapter"], encoder(), {}
    for index, block in enumerate(plain.encoder.layers):
        block.layer_norm2.register_forward_hook(lambda m, args, out, i=index: states.update({i: (args[0], out)}))

        def add(module, args, output, i=index):
            x = states[i][place == "after_norm"]
            return output + 0.1 * (torch.relu(x @ node.down[i].T + node.down_bias[i]) @ node.up[i].T + node.up_bias[i])

        block.mlp.register_forward_hook(add)
    found = model.vision_features(pixels(1))[0, -1]
    assert worst(found, ln(plain(pixels(1), output_hidden_states=True).hidden_states[-1][0], plain.post_layernorm)) < LOGITS


@torch.no_grad()
def test_llama_adapter_v2() -> None:
    """All its parts at once: y = (W + BA)(s x) + b at the maps, moved norms, and prompts that the LoRA's maps do not read."""
    model = baseline("llama_adapter_v2")
    features = model.vision_features(pixels(2))
    found = model(input_ids=ids(), vision_features=features, has_image=MIXED).logits
    nodes, moved, plain = model.nodes, decoder(), decoder()
    maps, get = nodes["maps"], nodes["lora"].get_parameter
    for path, weight in nodes["norms"].named_parameters():
        moved.get_submodule(path.removesuffix(".ln_tuning_layers.weight")).weight.copy_(weight)

    def full(layer: int, place: str, x: Tensor) -> Tensor:
        path = f"model.layers.{layer}.{place}"
        weight = plain.get_submodule(path).weight + get(f"{path}.lora_B.weight") @ get(f"{path}.lora_A.weight")
        scale, bias = maps._scale.get(path), maps._bias.get(path)
        x = x if scale is None else x * maps.scales[scale]
        return x @ weight.T + (0 if bias is None else maps.biases[bias])

    def update(layer: int, name: str, x: Tensor) -> Tensor:
        return full(layer, f"self_attn.{name}", x) - x @ plain.get_submodule(f"model.layers.{layer}.self_attn.{name}").weight.T

    def ffn(layer: int, x: Tensor) -> Tensor:
        inner = F.silu(full(layer, "mlp.gate_proj", x)) * full(layer, "mlp.up_proj", x)
        return full(layer, "mlp.down_proj", inner) - plain.model.layers[layer].mlp(x)

    reader, tokens, prefix = nodes["reader"], nodes["tokens"], nodes["decoder_adapter"]
    for row, place in ((0, 0), (2, 1), (1, None)):
        image = torch.zeros(5, 32)
        if place is not None:
            x = torch.cat([reader.queries, ln(affine(reader.input, features[place, -1]), reader.norm)])
            for block in reader.blocks:
                w, b = block.self_attn.in_proj_weight.chunk(3), block.self_attn.in_proj_bias.chunk(3)
                normed = ln(x, block.norm1)
                x = x + affine(block.self_attn.out_proj, heads(*(normed @ w[i].T + b[i] for i in range(3)), 2))
                x = x + affine(block.linear2, F.gelu(affine(block.linear1, ln(x, block.norm2))))
            image = ln(affine(tokens.linear, x[:5]), tokens.norm)

        def beside(layer: int, queries: Tensor, image: Tensor = image) -> Tensor | float:
            if layer < 1:
                return 0.0
            attention, prompts = plain.model.layers[layer].self_attn, prefix.prompts[layer - 1] + image
            keys, values = (
                (prompts @ one.weight.T).view(5, 2, 8).transpose(0, 1).repeat_interleave(2, 0)
                for one in (attention.k_proj, attention.v_proj)
            )
            read = (queries @ keys.transpose(1, 2) / 8**0.5).softmax(-1) @ values
            return 0.7 * prefix.scales[layer - 1] * prefix.gates[layer - 1].tanh()[:, None, None] * read

        embeds = plain.get_input_embeddings()(ids()[row])
        assert worst(found[row], literal_llama(moved, embeds, beside=beside, update=update, ffn=ffn)) < 5 * LOGITS
