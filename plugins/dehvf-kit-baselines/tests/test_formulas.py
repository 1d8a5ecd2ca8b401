"""Every baseline equals its formula, written out for one sample at a time: outputs and gradients, pictures mixed with none."""

from __future__ import annotations

import math

import pytest
import torch
from baseline_helpers import (
    BLOCKS,
    BOS,
    HEADS,
    KEY_HEADS,
    PATCHES,
    SLOTS,
    baseline,
    decoder,
    encoder,
    gradients,
    ids,
    literal_llama,
    pixels,
    relative,
    worst,
)
from torch import Tensor
from torch.nn import functional as F

MIXED = torch.tensor([True, False, True])
IMAGE, COLON, NOT, SLASH, AVAILABLE = 4, 5, 6, 7, 8  # ids of the words in "Image : N/A"
# Float32 sums in another order. Worst seen: logits 6.4e-6; gradients 2.5e-5 of a tensor's largest number.
LOGITS, GRADIENTS = 2e-5, 2e-4


def picture_states(vision, pixel: Tensor, adapt=lambda block, n1, n2: (n1, 0.0), post_norm: bool = True) -> list[Tensor]:
    """Outputs of CLIP's blocks for one picture [1 + patch, hidden], written out."""
    config = vision.config
    emb = vision.embeddings
    patches = emb.patch_embedding(pixel[None]).flatten(2).transpose(1, 2)[0]
    x = torch.cat([emb.class_embedding[None], patches]) + emb.position_embedding.weight
    x = F.layer_norm(x, x.shape[-1:], vision.pre_layrnorm.weight, vision.pre_layrnorm.bias, config.layer_norm_eps)
    states, width = [], config.hidden_size // config.num_attention_heads
    for index, block in enumerate(vision.encoder.layers):
        n1, _ = adapt(index, layer_norm(x, block.layer_norm1), None)
        heads = {
            name: (n1 @ getattr(block.self_attn, name).weight.T + getattr(block.self_attn, name).bias)
            .view(len(x), -1, width)
            .transpose(0, 1)
            for name in ("q_proj", "k_proj", "v_proj")
        }
        mixed = (heads["q_proj"] @ heads["k_proj"].transpose(1, 2) / math.sqrt(width)).softmax(-1) @ heads["v_proj"]
        out = block.self_attn.out_proj
        x = x + mixed.transpose(0, 1).reshape(len(x), -1) @ out.weight.T + out.bias
        n2 = layer_norm(x, block.layer_norm2)
        inner = n2 @ block.mlp.fc1.weight.T + block.mlp.fc1.bias
        inner = inner * torch.sigmoid(1.702 * inner)
        x = x + inner @ block.mlp.fc2.weight.T + block.mlp.fc2.bias + adapt(index, None, n2)[1]
        states.append(x)
    return [layer_norm(x, vision.post_layernorm) for x in states] if post_norm else states


def layer_norm(x: Tensor, module) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / torch.sqrt((centred**2).mean(-1, keepdim=True) + module.eps) * module.weight + module.bias


def parallel_adapter(node):
    """0.1 * fc2(GELU(fc1(ln_2 x))) beside every CLIP block's MLP."""

    def adapt(block, n1, n2):
        return n1, 0.0 if n2 is None else 0.1 * F.gelu(n2 @ node.down[block].T) @ node.up[block].T

    return adapt


def project(node, features: Tensor) -> Tensor:
    """fc2(SiLU(fc1 F))."""
    inner = F.silu(features @ node.fc1.weight.T + node.fc1.bias)
    return inner @ node.fc2.weight.T + node.fc2.bias


def mixture(adapter, x: Tensor, token: Tensor) -> Tensor:
    """x + s (w0 B z + w1 C z), the first half of the outputs from the first half of z."""
    scores = (adapter.router.weight @ token + adapter.router.bias) / adapter.temperature
    weights = scores.exp() / scores.exp().sum()
    z = x @ adapter.down.weight.T + adapter.down.bias
    half_z, half_x = z.shape[1] // 2, x.shape[1] // 2
    out = x
    for weight, expert in zip(weights, adapter.up, strict=True):
        matrix = expert.weight[:, :, 0]
        first = z[:, :half_z] @ matrix[:half_x].T
        second = z[:, half_z:] @ matrix[half_x:].T
        out = out + adapter.scale * weight * (torch.cat([first, second], 1) + expert.bias)
    return out


def memvp(model, base, vision, row: Tensor, pixel: Tensor | None) -> Tensor:
    nodes = model.nodes
    visual = torch.zeros(SLOTS, nodes.position.keys.shape[1])
    if pixel is not None:
        states = picture_states(vision, pixel, parallel_adapter(nodes.vision_adapter))
        v = 0.5 * project(nodes.projector, states[BLOCKS - 2][1:])
        visual = torch.cat([v, torch.zeros(SLOTS - PATCHES, v.shape[1])])
    keys, values = visual + nodes.position.keys, visual + nodes.position.values
    return literal_llama(base, base.model.embed_tokens(row), ffn=lambda layer, n: 0.1 * F.silu(n @ keys.T) @ values)


def lavin(model, base, vision, row: Tensor, pixel: Tensor | None) -> Tensor:
    """The sequence as LaVIN has it, modality token in front, which sees itself alone and is seen by itself alone."""
    nodes, embed = model.nodes, base.model.embed_tokens
    words = [IMAGE, COLON] if pixel is not None else [IMAGE, COLON, NOT, SLASH, AVAILABLE]
    tokens = [nodes.decoder_adapter.modality.weight[int(pixel is not None)][None], embed(row[:1]), embed(torch.tensor(words))]
    if pixel is not None:

        def adapt(block, n1, n2):
            return (None if n1 is None else mixture(nodes.vision_adapter.layers[block], n1, n1[0])), 0.0

        states = picture_states(vision, pixel, adapt, post_norm=False)
        tokens.append(project(nodes.projector, torch.stack([states[block][0] for block in (2, 4, 7)])))
    embeds = torch.cat([*tokens, embed(row[1:])])
    visible = torch.ones(len(embeds), len(embeds), dtype=torch.bool).tril()
    visible[1:, 0] = False
    logits = literal_llama(base, embeds, visible, before=lambda layer, x: mixture(nodes.decoder_adapter.layers[layer], x, x[0]))
    return logits[-len(row) :]


def llama_adapter(model, base, vision, row: Tensor, pixel: Tensor | None) -> Tensor:
    nodes, node = model.nodes, model.nodes.decoder_adapter
    token = torch.zeros(1, base.config.hidden_size)
    if pixel is not None:
        token = project(nodes.projector, picture_states(vision, pixel)[-1][:1])

    def beside(layer, queries):
        if layer < 1:  # prompts stand in the top three of four layers
            return 0.0
        prompts, attention = node.prompts[layer - 1] + token, base.model.layers[layer].self_attn
        width = queries.shape[-1]
        keys, values = (
            (prompts @ project.weight.T).view(len(prompts), KEY_HEADS, width).transpose(0, 1)
            for project in (attention.k_proj, attention.v_proj)
        )
        keys, values = (one.repeat_interleave(HEADS // KEY_HEADS, 0) for one in (keys, values))
        found = (queries @ keys.transpose(1, 2) / math.sqrt(width)).softmax(-1) @ values
        return 0.7 * node.gates[layer - 1].tanh()[:, None, None] * found

    return literal_llama(base, base.model.embed_tokens(row), beside=beside)


def lora(node, layer: int, name: str, x: Tensor) -> Tensor:
    """alpha / r * B A x."""
    a, b = (node.get_parameter(f"model.layers.{layer}.self_attn.{name}.lora_{one}.weight") for one in "AB")
    return 2 * (x @ a.T) @ b.T


def llava_lora(model, base, vision, row: Tensor, pixel: Tensor | None) -> Tensor:
    nodes, embed = model.nodes, base.model.embed_tokens
    tokens = [embed(row[:1])]
    if pixel is not None:
        states = picture_states(vision, pixel, parallel_adapter(nodes.vision_adapter), post_norm=False)
        tokens.append(project(nodes.projector, states[BLOCKS - 2][1:]))

    def update(layer, name, x):
        if name in ("k_proj", "o_proj"):
            return 0.0
        return lora(nodes.lora, layer, name, x)

    logits = literal_llama(base, torch.cat([*tokens, embed(row[1:])]), update=update)
    return logits[-len(row) :]


LITERAL = {"memvp": memvp, "lavin": lavin, "llama_adapter": llama_adapter, "llava_lora": llava_lora}


def reference(kind: str, model, input_ids: Tensor, pixel_values: Tensor, has_image: Tensor) -> Tensor:
    """Logits of all rows, on towers that no component ever touched. Column 0 is left out where tokens follow it."""
    base, vision = decoder(), encoder()
    own = iter(pixel_values)
    return torch.stack(
        [
            LITERAL[kind](model, base, vision, row, next(own) if seen else None)
            for row, seen in zip(input_ids, has_image, strict=True)
        ]
    )


@pytest.mark.parametrize("kind", LITERAL)
def test_equals_its_formula_forward_and_gradients(kind: str) -> None:
    model = baseline(kind)
    input_ids, pixel_values = ids(), pixels(2)
    logits = model(input_ids=input_ids, pixel_values=pixel_values, has_image=MIXED).logits[:, 1:]
    expected = reference(kind, model, input_ids, pixel_values, MIXED)[:, 1:]
    assert worst(logits, expected) < LOGITS
    plain = decoder()(input_ids=input_ids).logits[:, 1:]
    assert worst(expected, plain) > 0.1, "the method must change what is said"
    weight = torch.randn(logits.shape, generator=torch.Generator().manual_seed(9))
    found, wanted = (gradients(model, (one * weight).sum()) for one in (logits, expected))
    assert relative(found, wanted) < GRADIENTS


def test_a_row_without_bos_has_the_tokens_in_front() -> None:
    model = baseline("llava_lora")
    input_ids = ids()
    input_ids[1, 0] = 17
    logits = model(input_ids=input_ids, pixel_values=pixels()).logits
    states = picture_states(encoder(), pixels()[1], parallel_adapter(model.nodes.vision_adapter), post_norm=False)
    base = decoder()
    tokens = [project(model.nodes.projector, states[BLOCKS - 2][1:]), base.model.embed_tokens(input_ids[1])]

    def update(layer, name, x):
        if name in ("k_proj", "o_proj"):
            return 0.0
        return lora(model.nodes.lora, layer, name, x)

    assert worst(logits[1], literal_llama(base, torch.cat(tokens), update=update)[-input_ids.shape[1] :]) < LOGITS
    assert input_ids[0, 0] == BOS


@pytest.mark.parametrize("tower", ["clip", "dinov2"])
def test_lavin_routes_each_picture_by_its_own_class_token(tower: str) -> None:
    """The public code's CLIP router reads sample 0 for all; here neighbours change nothing.

    Worst difference seen between a batch and single pictures: 4.6e-6; the changed picture moves by 9.7.
    """
    model = baseline("lavin", vision=encoder(tower))
    together = model.vision_features(pixels())
    alone = torch.cat([model.vision_features(one[None]) for one in pixels()])
    assert worst(together, alone) < 2e-5
    changed = model.vision_features(pixels() + torch.tensor([1.0, 0, 0]).view(3, 1, 1, 1))
    assert worst(changed[1:], together[1:]) < 2e-5 and worst(changed[0], together[0]) > 0.1
