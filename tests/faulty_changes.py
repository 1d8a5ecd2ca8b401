"""Changes of the tiny recipe that make it faulty, each with all the faults it must report."""

from __future__ import annotations

from typing import Any

from helpers import LLAMA, VIT

GONE = object()
SECTIONS = "Sections: format, name, description, published, vision, decoder, graph, training, data, generation"
ROLES = "Roles: fuser, grouper, injector, layer_query, merger, position, projector, vision_adapter"
FUSER = "Fields: activation, attention_backend, hidden_size, intermediate_size, num_blocks, num_heads, type"
TOWER = "attn_implementation, config, download, dtype, {}model, {}revision, trust_remote_code, type"
MERGED = ("patches", "members", "levels")
NOTHING_READS = "nothing reads its outputs; remove the node, or wire it to one that does"
MISSING = [
    "vision: missing; name an encoder, for example `vision: {model: openai/clip-vit-large-patch14}`",
    "decoder: missing; name a language model, for example `decoder: {model: huggyllama/llama-7b}`",
    "graph: missing; name its nodes",
]
NO_FUSER = [
    "graph.injector.inputs: has a readout but no fused codes; wire a fuser to it, or remove the projector",
    f"graph.grouper: {NOTHING_READS}",
    f"graph.layer_query: {NOTHING_READS}",
]

# Changes of the tiny recipe, as path -> value (GONE takes it away), and all faults they make.
CHANGES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "a learning rate of no node": (
        {"training": {"node_rates": {"fusser": 0.1}}},
        [
            "training.node_rates.fusser: the graph has no such node; did you mean 'fuser'? Nodes: vision_adapter, grouper, "
            "layer_query, projector, fuser, position, injector"
        ],
    ),
    "unknown section": ({"grph": {}}, [f"grph: unknown section; did you mean 'graph'? {SECTIONS}"]),
    "no vision": ({"vision": GONE}, MISSING[:1]),
    "no decoder": ({"decoder": GONE}, MISSING[1:2]),
    "no graph": ({"graph": {}}, MISSING[2:]),
    "nothing at all": ({"vision": GONE, "decoder": GONE, "graph": GONE}, MISSING),
    "vision as a text": (
        {"vision": "clip"},
        ["vision: given 'clip'; wants a mapping with `model:`, or several of them by name"],
    ),
    "decoder as a text": ({"decoder": "llama"}, ["decoder: given 'llama'; wants a mapping with `model:`"]),
    "graph as a list": ({"graph": ["fuser"]}, ["graph: given ['fuser']; wants a mapping of nodes"]),
    "training as a list": ({"training": []}, ["training: given []; wants a mapping of fields"]),
    "number as name": ({"name": 3}, ["name: given 3; wants a text"]),
    "extends without a file": (
        {"extends": "a.yaml"},
        ["extends: only a recipe in a file can name a parent, on its own top level"],
    ),
    "unknown field of the encoder": (
        {"vision.modle": "x"},
        [f"vision.modle: unknown field; did you mean 'model'? Fields: apply_post_norm, {TOWER.format('image, ', '')}"],
    ),
    "unknown field of the image": (
        {"vision.image.sise": 32},
        ["vision.image.sise: unknown field; did you mean 'size'? Fields: normalisation, resize, size"],
    ),
    "unknown field of the decoder": (
        {"decoder.modle": "x"},
        [f"decoder.modle: unknown field; did you mean 'model'? Fields: {TOWER.format('', 'quantization, ')}"],
    ),
    "unknown field of a node": (
        {"graph.fuser.num_head": 2},
        [f"graph.fuser.num_head: unknown field; did you mean 'num_heads'? {FUSER}"],
    ),
    "unknown field of generation": (
        {"generation": {"beams": 2}},
        [
            "generation.beams: unknown field; did you mean 'num_beams'? "
            "Fields: do_sample, max_new_tokens, num_beams, temperature, top_p"
        ],
    ),
    "unknown field of published": (
        {"published": {"parameters": "4M", "unused": 1}},
        ["published.unused: unknown field. Fields: parameters, source, unused_parameters"],
    ),
    "published without its figure": ({"published": {"source": "Table 1"}}, ["published.parameters: missing"]),
    "unknown field of the prompt": (
        {"data": {"type": "jsonl", "prompt": {"questions": "{question}"}}},
        ["data.prompt.questions: unknown field; did you mean 'question'? Fields: answer, chat, question"],
    ),
    "prompt without question": (
        {"data": {"type": "jsonl", "prompt": {"question": "Answer:"}}},
        ["data.prompt.question: given 'Answer:'; wants `{question}` in it once, where the question goes"],
    ),
    "data without type": ({"data": {"train": "a.jsonl"}}, ["data.type: missing; installed: …"]),
    "type with a near name": (
        {"graph.fuser.type": "crossattention"},
        [
            "graph.fuser.type: no fuser is named 'crossattention'; did you mean 'cross_attention'? "
            "Installed: cross_attention, mean"
        ],
    ),
    "type far from any": (
        {"graph.position.type": "rotary"},
        ["graph.position.type: no position is named 'rotary'. Installed: learned"],
    ),
    "type missing": ({"graph.fuser.type": GONE}, ["graph.fuser.type: missing; installed: cross_attention, mean"]),
    "type as a list": (
        {"graph.fuser.type": ["mean"]},
        ["graph.fuser.type: given ['mean']; installed: cross_attention, mean"],
    ),
    "node named after no role": (
        {"graph.fusr": {"type": "mean"}},
        [f"graph.fusr: 'fusr' is no role; did you mean 'fuser'? Name the node after its role, or add `role:`. {ROLES}"],
    ),
    "role as a list": (
        {"graph.extra": {"role": [], "type": "mean"}},
        [f"graph.extra: role is [], which is none. Name the node after its role, or add `role:`. {ROLES}"],
    ),
    "node as a text": ({"graph.fuser": "mean"}, ["graph.fuser: given 'mean'; wants a mapping with `type:`"]),
    "node name with a dot": (
        {"graph": {"a.b": {"role": "position", "type": "learned"}}},
        ["graph.a.b: 'a.b' is no name; use letters, digits and _, and begin with a letter"],
    ),
    "node name that torch needs": (
        {"graph.values": {"role": "position", "type": "learned"}},
        ["graph.values: 'values' means something to torch modules; choose another name"],
    ),
    "node named like a source": (
        {"graph.vision": {"role": "vision_adapter", "type": "parallel"}},
        ["graph.vision: 'vision' is the name of a source already; rename the node"],
    ),
    "encoder named like a source": (
        {"vision": {"batch": {"config": {"model_type": "clip_vision_model", **VIT}, "image": {"size": 32}}}},
        ["vision.batch: 'batch' is a reserved name; call the encoder something else"],
    ),
    "text for a number": (
        {"graph.fuser.num_heads": "two"},
        ["graph.fuser.num_heads: given 'two'; wants a whole number"],
    ),
    "fraction for a number": (
        {"graph.fuser.num_heads": 2.5},
        ["graph.fuser.num_heads: given 2.5; wants a whole number"],
    ),
    "yes for a number": ({"graph.fuser.num_heads": True}, ["graph.fuser.num_heads: given True; wants a number"]),
    "null for a number": ({"graph.fuser.num_heads": None}, ["graph.fuser.num_heads: given None; wants a whole number"]),
    "number for a choice": (
        {"graph.injector.form": 1},
        ["graph.injector.form: given 1. One of: auto, built, factored"],
    ),
    "choice with a near name": (
        {"vision.image.normalisation": "imagnet"},
        ["vision.image.normalisation: given 'imagnet'; did you mean 'imagenet'? One of: clip, half, imagenet"],
    ),
    "choice inside a list": (
        {"graph.injector.visual_in": ["key", "values"]},
        ["graph.injector.visual_in.1: given 'values'; did you mean 'value'? One of: key, value"],
    ),
    "empty list": ({"graph.injector.visual_in": []}, ["graph.injector.visual_in: given []; wants 1 or more of them"]),
    "text for a list": ({"graph.injector.visual_in": "key"}, ["graph.injector.visual_in: given 'key'; wants a list"]),
    "text for a switch": ({"decoder.download": "maybe"}, ["decoder.download: given 'maybe'; wants true or false"]),
    "text for a mapping": ({"decoder.config": "llama"}, ["decoder.config: given 'llama'; wants a mapping"]),
    "too small": ({"graph.position.num_slots": 0}, ["graph.position.num_slots: given 0; wants 1 or more"]),
    "too large": ({"graph.injector.dropout": 1}, ["graph.injector.dropout: given 1; wants less than 1"]),
    "zero scale": ({"graph.injector.output_scale": 0}, ["graph.injector.output_scale: given 0; wants more than 0"]),
    "probability above one": ({"generation": {"top_p": 1.5}}, ["generation.top_p: given 1.5; wants 1 or less"]),
    "infinite": ({"training": {"epochs": "inf"}}, ["training.epochs: given 'inf'; wants a finite number"]),
    "too many betas": (
        {"training": {"betas": [0.9, 0.9, 0.9]}},
        ["training.betas: given [0.9, 0.9, 0.9]; wants 2 or fewer of them"],
    ),
    "beta out of range": ({"training": {"betas": [0.9, 1.0]}}, ["training.betas.1: given 1.0; wants less than 1"]),
    "all warm-up": (
        {"training": {"epochs": 2, "warmup_epochs": 2}},
        ["training: warmup_epochs (2) must be less than epochs (2)"],
    ),
    "more groups than vision layers": (
        {"graph.grouper.num_groups": 9},
        ["graph.grouper.num_groups: 9 groups for 8 vision layers; use at most 8"],
    ),
    "more groups than decoder layers": (
        {"graph.grouper.num_groups": 5},
        ["graph.grouper.num_groups: 5 groups for 4 decoder layers; use at most 4"],
    ),
    "vision layer out of range": (
        {"graph.grouper": {"type": "listed", "groups": [[0], [8]]}},
        ["graph.grouper.groups: group 1 names vision layer 8 of 8; use -8 to 7"],
    ),
    "empty group": (
        {"graph.grouper": {"type": "listed", "groups": [[]]}},
        ["graph.grouper.groups: group 0 is empty; name at least one vision layer"],
    ),
    "more patches than slots": (
        {"graph.position.num_slots": 15},
        ["graph.injector: 16 patches do not fit into 15 slots; set the position table's num_slots to 16 or more"],
    ),
    "heads that do not divide": (
        {"graph.fuser.num_heads": 3},
        ["graph.fuser.num_heads: 3 heads do not divide hidden_size 8; use one of 1, 2, 4, 8"],
    ),
    "queries of another size": (
        {"graph.layer_query.query_size": 16},
        ["graph.fuser.hidden_size: hidden_size is 8 but the queries it is wired to have 16; make them equal"],
    ),
    "picture in one role and nothing in the other": (
        {"graph.position": GONE, "graph.injector.visual_in": ["key"]},
        [
            "graph.injector.visual_in: without position tables the role left out is zero and the memory adds nothing; "
            "name key and value both"
        ],
    ),
    "nothing to inject": (
        {"graph": {"injector": {"type": "ffn_memory"}}},
        ["graph.injector.inputs: has nothing to inject; wire a fuser, a position table, or both"],
    ),
    "required port unconnected": (
        {"graph.layer_query": GONE},
        [
            "graph.fuser.inputs.queries: nothing gives queries [decoder_layer kv query]; add a node that does, or write "
            "the wire under `inputs:`"
        ],
    ),
    "fuser removed": ({"graph.fuser": GONE}, NO_FUSER),
    "unread node": (
        {
            "graph.second": {"role": "grouper", "type": "contiguous", "num_groups": 2},
            "graph.fuser.inputs": {"members": "grouper", "levels": "grouper"},
        },
        [f"graph.second: {NOTHING_READS}"],
    ),
    "ambiguous port": (
        {"graph.second": {"role": "layer_query", "type": "learned_tokens", "query_size": 8}},
        [
            "graph.fuser.inputs.queries: several nodes give queries [decoder_layer kv query]: layer_query.queries, "
            "second.queries; write one under `inputs:`"
        ],
    ),
    "unknown input port": (
        {"graph.fuser.inputs": {"querys": "layer_query"}},
        [
            "graph.fuser.inputs.querys: no input port is named 'querys'; did you mean 'queries'? "
            "Ports: codes, levels, members, queries"
        ],
    ),
    "unknown producer": (
        {"graph.fuser.inputs": {"queries": "layer_qery"}},
        [
            "graph.fuser.inputs.queries: no node or encoder is named 'layer_qery'; did you mean 'layer_query'? "
            "Known: batch, fuser, grouper, layer_query, position, projector, vision"
        ],
    ),
    "unknown output port": (
        {"graph.fuser.inputs": {"queries": "layer_query.query"}},
        [
            "graph.fuser.inputs.queries: 'layer_query' has no output port 'query'; did you mean 'queries'? It gives: queries"
        ],
    ),
    "incompatible ports": (
        {"graph.fuser.inputs": {"queries": "grouper.levels"}},
        [
            "graph.fuser.inputs.queries: grouper.levels gives [group member], which does not fit queries "
            "[decoder_layer kv query]; what fits: layer_query.queries"
        ],
    ),
    "two wires for one": (
        {"graph.fuser.inputs": {"queries": ["layer_query", "layer_query"]}},
        ["graph.fuser.inputs.queries: takes one wire, 2 were given: layer_query, layer_query"],
    ),
    "no wire": (
        {"graph.fuser.inputs": {"queries": []}},
        ["graph.fuser.inputs.queries: given []; wants a node's name, node.port, or a list of them"],
    ),
    "inputs as a text": (
        {"graph.fuser.inputs": "grouper"},
        ["graph.fuser.inputs: given 'grouper'; wants a mapping of `port: node` or `port: node.port`"],
    ),
    "circle": (
        {
            "graph.one": {"role": "merger", "type": "concat_levels", "inputs": dict.fromkeys(MERGED, "two")},
            "graph.two": {"role": "merger", "type": "concat_levels", "inputs": dict.fromkeys(MERGED, "one")},
            "graph.projector.inputs": {"patches": "vision"},
            "graph.fuser.inputs": {"members": "grouper", "levels": "grouper"},
        },
        ["graph: nodes read from each other in a circle: one <- two <- one; cut one of these wires"],
    ),
    "axes that disagree": (
        {
            "graph.second": {"role": "grouper", "type": "listed", "groups": [[0], [1]]},
            "graph.fuser.inputs": {"members": "second", "levels": "grouper"},
        },
        [
            "graph.fuser.inputs.levels: axis 'member' is 5 from grouper.levels but 1 from second.members; they must agree"
        ],
    ),
    "unknown model_type": (
        {"decoder.config": {**LLAMA, "model_type": "lama"}},
        ["decoder: transformers has no model_type 'lama'; did you mean 'llama'?"],
    ),
    "config without model_type": (
        {"decoder.config": LLAMA},
        ["decoder: a config needs `model_type`, for example llama or clip_vision_model"],
    ),
    "config that transformers refuses": (
        {"decoder.config": {**LLAMA, "model_type": "llama", "num_attention_heads": "x"}},
        ["decoder: transformers refuses this config of model_type 'llama': …"],
    ),
    "an encoder for a decoder": (
        {"decoder.config": {**VIT, "model_type": "clip_vision_model"}},
        ["decoder: transformers has no causal language model of model_type 'clip_vision_model'"],
    ),
    "a decoder without feed-forward networks": (
        {"decoder.config": {"model_type": "mamba", "num_hidden_layers": 1, "hidden_size": 16}},
        ["decoder: MambaForCausalLM: no layer holds a feed-forward network. Looked for: …"],
    ),
    "a picture smaller than a patch": (
        {"vision.image.size": 4},
        ["vision: an image of 4 pixels is smaller than a patch of (8, 8) pixels"],
    ),
    "no model named": (
        {"decoder": {}},
        ["decoder: no model is named; set `model:` to a local folder, a hub id or a name from `dehvf-kit list`"],
    ),
    "wires are checked where sizes are not known": (
        {"decoder": {"model": "nobody/nothing"}, "graph.fuser.inputs": {"queries": "grouper.levels"}},
        [
            "graph.fuser.inputs.queries: grouper.levels gives [group member], which does not fit queries "
            "[decoder_layer kv query]; what fits: layer_query.queries"
        ],
    ),
    "many at once": (
        {
            "name": 3,
            "extra": 1,
            "graph.fuser.num_heads": 0,
            "graph.position.num_slots": "many",
            "graph.injector.inputs": {"fusd": "fuser"},
            "training": {"epochs": -1},
            "generation": {"num_beams": 0},
        },
        [
            f"extra: unknown section. {SECTIONS}",
            "name: given 3; wants a text",
            "graph.fuser.num_heads: given 0; wants 1 or more",
            "graph.position.num_slots: given 'many'; wants a whole number",
            "training.epochs: given -1; wants more than 0",
            "generation.num_beams: given 0; wants 1 or more",
            "graph.injector.inputs.fusd: no input port is named 'fusd'; did you mean 'fused'? "
            "Ports: fused, has_image, position_keys, position_values, readout",
        ],
    ),
    "a faulty field makes no second fault downstream": (
        {"graph.layer_query.query_size": -8, "graph.position.num_slots": 2.5},
        [
            "graph.layer_query.query_size: given -8; wants 1 or more",
            "graph.position.num_slots: given 2.5; wants a whole number",
        ],
    ),
}
