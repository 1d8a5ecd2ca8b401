"""Changes of the tiny recipe that make it faulty, each with all the faults it must report."""

from __future__ import annotations

from typing import Any

from helpers import LLAMA, VIT

GONE = object()
MERGED = ("patches", "members", "levels")
MISSING = [
    "vision: missing…`vision: {model: openai/clip-vit-large-patch14}`",
    "decoder: missing…`decoder: {model: huggyllama/llama-7b}`",
    "graph: missing",
]
NO_FUSER = [
    "graph.injector.inputs: has a readout but no fused codes",
    "graph.grouper: nothing reads its outputs",
    "graph.layer_query: nothing reads its outputs",
]

# Changes of the tiny recipe, as path -> value (GONE takes it away), and all faults they make.
CHANGES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "a learning rate of no node": (
        {"training": {"node_rates": {"fusser": 0.1}}},
        ["training.node_rates.fusser: the graph has no such node…'fuser'"],
    ),
    "unknown section": ({"grph": {}}, ["grph: unknown section…'graph'"]),
    "no vision": ({"vision": GONE}, MISSING[:1]),
    "no decoder": ({"decoder": GONE}, MISSING[1:2]),
    "no graph": ({"graph": {}}, MISSING[2:]),
    "nothing at all": ({"vision": GONE, "decoder": GONE, "graph": GONE}, MISSING),
    "vision as a text": ({"vision": "clip"}, ["vision: given 'clip'…`model:`"]),
    "decoder as a text": ({"decoder": "llama"}, ["decoder: given 'llama'…`model:`"]),
    "graph as a list": ({"graph": ["fuser"]}, ["graph: given ['fuser']"]),
    "training as a list": ({"training": []}, ["training: given []"]),
    "number as name": ({"name": 3}, ["name: given 3"]),
    "extends without a file": ({"extends": "a.yaml"}, ["extends: only a recipe in a file can name a parent, on its own top level"]),
    "unknown field of the encoder": ({"vision.modle": "x"}, ["vision.modle: unknown field…'model'"]),
    "unknown field of the image": ({"vision.image.sise": 32}, ["vision.image.sise: unknown field…'size'"]),
    "unknown field of the decoder": ({"decoder.modle": "x"}, ["decoder.modle: unknown field…'model'"]),
    "unknown field of a node": ({"graph.fuser.num_head": 2}, ["graph.fuser.num_head: unknown field…'num_heads'"]),
    "unknown field of generation": ({"generation": {"beams": 2}}, ["generation.beams: unknown field…'num_beams'"]),
    "unknown field of published": ({"published": {"parameters": "4M", "unused": 1}}, ["published.unused: unknown field"]),
    "published without its figure": ({"published": {"source": "Table 1"}}, ["published.parameters: missing"]),
    "unknown field of the prompt": (
        {"data": {"type": "jsonl", "prompt": {"questions": "{question}"}}},
        ["data.prompt.questions: unknown field…'question'"],
    ),
    "prompt without question": (
        {"data": {"type": "jsonl", "prompt": {"question": "Answer:"}}},
        ["data.prompt.question: given 'Answer:'…`{question}`"],
    ),
    "data without type": ({"data": {"train": "a.jsonl"}}, ["data.type: missing"]),
    "type with a near name": (
        {"graph.fuser.type": "crossattention"},
        ["graph.fuser.type: no fuser is named 'crossattention'…'cross_attention'"],
    ),
    "type far from any": ({"graph.position.type": "rotary"}, ["graph.position.type: no position is named 'rotary'"]),
    "type missing": ({"graph.fuser.type": GONE}, ["graph.fuser.type: missing"]),
    "type as a list": ({"graph.fuser.type": ["mean"]}, ["graph.fuser.type: given ['mean']"]),
    "node named after no role": ({"graph.fusr": {"type": "mean"}}, ["graph.fusr: 'fusr' is no role…'fuser'…`role:`"]),
    "role as a list": ({"graph.extra": {"role": [], "type": "mean"}}, ["graph.extra: role is [], which is none…`role:`"]),
    "node as a text": ({"graph.fuser": "mean"}, ["graph.fuser: given 'mean'…`type:`"]),
    "node name with a dot": ({"graph": {"a.b": {"role": "position", "type": "learned"}}}, ["graph.a.b: 'a.b' is no name"]),
    "node name that torch needs": (
        {"graph.values": {"role": "position", "type": "learned"}},
        ["graph.values: 'values' means something to torch modules"],
    ),
    "node named like a source": (
        {"graph.vision": {"role": "vision_adapter", "type": "parallel"}},
        ["graph.vision: 'vision' is the name of a source already"],
    ),
    "encoder named like a source": (
        {"vision": {"batch": {"config": {"model_type": "clip_vision_model", **VIT}, "image": {"size": 32}}}},
        ["vision.batch: 'batch' is a reserved name"],
    ),
    "text for a number": ({"graph.fuser.num_heads": "two"}, ["graph.fuser.num_heads: given 'two'"]),
    "fraction for a number": ({"graph.fuser.num_heads": 2.5}, ["graph.fuser.num_heads: given 2.5"]),
    "yes for a number": ({"graph.fuser.num_heads": True}, ["graph.fuser.num_heads: given True"]),
    "null for a number": ({"graph.fuser.num_heads": None}, ["graph.fuser.num_heads: given None"]),
    "number for a choice": ({"graph.injector.form": 1}, ["graph.injector.form: given 1"]),
    "choice with a near name": (
        {"vision.image.normalisation": "imagnet"},
        ["vision.image.normalisation: given 'imagnet'…'imagenet'"],
    ),
    "choice inside a list": (
        {"graph.injector.visual_in": ["key", "values"]},
        ["graph.injector.visual_in.1: given 'values'…'value'"],
    ),
    "empty list": ({"graph.injector.visual_in": []}, ["graph.injector.visual_in: given []"]),
    "text for a list": ({"graph.injector.visual_in": "key"}, ["graph.injector.visual_in: given 'key'"]),
    "text for a switch": ({"decoder.download": "maybe"}, ["decoder.download: given 'maybe'"]),
    "text for a mapping": ({"decoder.config": "llama"}, ["decoder.config: given 'llama'"]),
    "too small": ({"graph.position.num_slots": 0}, ["graph.position.num_slots: given 0"]),
    "too large": ({"graph.injector.dropout": 1}, ["graph.injector.dropout: given 1"]),
    "zero scale": ({"graph.injector.output_scale": 0}, ["graph.injector.output_scale: given 0"]),
    "probability above one": ({"generation": {"top_p": 1.5}}, ["generation.top_p: given 1.5"]),
    "infinite": ({"training": {"epochs": "inf"}}, ["training.epochs: given 'inf'"]),
    "too many betas": ({"training": {"betas": [0.9, 0.9, 0.9]}}, ["training.betas: given [0.9, 0.9, 0.9]"]),
    "no betas": ({"training": {"betas": []}}, ["training.betas.0: missing", "training.betas.1: missing"]),
    "beta out of range": ({"training": {"betas": [0.9, 1.0]}}, ["training.betas.1: given 1.0"]),
    "all warm-up": ({"training": {"epochs": 2, "warmup_epochs": 2}}, ["training: warmup_epochs (2) must be less than epochs (2)"]),
    "more groups than vision layers": ({"graph.grouper.num_groups": 9}, ["graph.grouper.num_groups: 9 groups for 8 vision layers"]),
    "more groups than decoder layers": (
        {"graph.grouper.num_groups": 5},
        ["graph.grouper.num_groups: 5 groups for 4 decoder layers"],
    ),
    "vision layer out of range": (
        {"graph.grouper": {"type": "listed", "groups": [[0], [8]]}},
        ["graph.grouper.groups: group 1 names vision layer 8 of 8"],
    ),
    "empty group": ({"graph.grouper": {"type": "listed", "groups": [[]]}}, ["graph.grouper.groups: group 0 is empty"]),
    "more patches than slots": ({"graph.position.num_slots": 15}, ["graph.injector: 16 patches do not fit into 15 slots"]),
    "heads that do not divide": ({"graph.fuser.num_heads": 3}, ["graph.fuser.num_heads: 3 heads do not divide hidden_size 8"]),
    "queries of another size": (
        {"graph.layer_query.query_size": 16},
        ["graph.fuser.hidden_size: hidden_size is 8 but the queries it is wired to have 16"],
    ),
    "picture in one role and nothing in the other": (
        {"graph.position": GONE, "graph.injector.visual_in": ["key"]},
        ["graph.injector.visual_in: without position tables the one not named is zero and the memory adds nothing"],
    ),
    "nothing to inject": ({"graph": {"injector": {"type": "ffn_memory"}}}, ["graph.injector.inputs: has nothing to inject"]),
    "required port unconnected": (
        {"graph.layer_query": GONE},
        ["graph.fuser.inputs.queries: nothing gives queries [decoder_layer kv query]…`inputs:`"],
    ),
    "fuser removed": ({"graph.fuser": GONE}, NO_FUSER),
    "unread node": (
        {
            "graph.second": {"role": "grouper", "type": "contiguous", "num_groups": 2},
            "graph.fuser.inputs": {"members": "grouper", "levels": "grouper"},
        },
        ["graph.second: nothing reads its outputs"],
    ),
    "ambiguous port": (
        {"graph.second": {"role": "layer_query", "type": "learned_tokens", "query_size": 8}},
        ["graph.fuser.inputs.queries: several nodes give queries…layer_query.queries, second.queries…`inputs:`"],
    ),
    "unknown input port": (
        {"graph.fuser.inputs": {"querys": "layer_query"}},
        ["graph.fuser.inputs.querys: no input port is named 'querys'…'queries'"],
    ),
    "unknown producer": (
        {"graph.fuser.inputs": {"queries": "layer_qery"}},
        ["graph.fuser.inputs.queries: no node or encoder is named 'layer_qery'…'layer_query'"],
    ),
    "unknown output port": (
        {"graph.fuser.inputs": {"queries": "layer_query.query"}},
        ["graph.fuser.inputs.queries: 'layer_query' has no output port 'query'…'queries'"],
    ),
    "incompatible ports": (
        {"graph.fuser.inputs": {"queries": "grouper.levels"}},
        ["graph.fuser.inputs.queries: grouper.levels gives [group member], which does not fit queries [decoder_layer kv query]"],
    ),
    "two wires for one": (
        {"graph.fuser.inputs": {"queries": ["layer_query", "layer_query"]}},
        ["graph.fuser.inputs.queries: takes one wire, 2 were given: layer_query, layer_query"],
    ),
    "no wire": ({"graph.fuser.inputs": {"queries": []}}, ["graph.fuser.inputs.queries: given []"]),
    "inputs as a text": ({"graph.fuser.inputs": "grouper"}, ["graph.fuser.inputs: given 'grouper'…`port: node`…`port: node.port`"]),
    "circle": (
        {
            "graph.one": {"role": "merger", "type": "concat_levels", "inputs": dict.fromkeys(MERGED, "two")},
            "graph.two": {"role": "merger", "type": "concat_levels", "inputs": dict.fromkeys(MERGED, "one")},
            "graph.projector.inputs": {"patches": "vision"},
            "graph.fuser.inputs": {"members": "grouper", "levels": "grouper"},
        },
        ["graph: nodes read from each other in a circle: one <- two <- one"],
    ),
    "axes that disagree": (
        {
            "graph.second": {"role": "grouper", "type": "listed", "groups": [[0], [1]]},
            "graph.fuser.inputs": {"members": "second", "levels": "grouper"},
        },
        ["graph.fuser.inputs.levels: axis 'member' is 5 from grouper.levels but 1 from second.members"],
    ),
    "unknown model_type": (
        {"decoder.config": {**LLAMA, "model_type": "lama"}},
        ["decoder: transformers has no model_type 'lama'…'llama'"],
    ),
    "config without model_type": ({"decoder.config": LLAMA}, ["decoder: a config needs `model_type`"]),
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
        ["decoder: MambaForCausalLM: no layer holds a feed-forward network"],
    ),
    "a picture smaller than a patch": (
        {"vision.image.size": 4},
        ["vision: an image of 4 pixels is smaller than a patch of (8, 8) pixels"],
    ),
    "no model named": ({"decoder": {}}, ["decoder: no model is named…`model:`…`dehvf-kit list`"]),
    "wires are checked where sizes are not known": (
        {"decoder": {"model": "nobody/nothing"}, "graph.fuser.inputs": {"queries": "grouper.levels"}},
        ["graph.fuser.inputs.queries: grouper.levels gives [group member], which does not fit queries [decoder_layer kv query]"],
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
            "extra: unknown section",
            "name: given 3",
            "graph.fuser.num_heads: given 0",
            "graph.position.num_slots: given 'many'",
            "training.epochs: given -1",
            "generation.num_beams: given 0",
            "graph.injector.inputs.fusd: no input port is named 'fusd'…'fused'",
        ],
    ),
    "a faulty field makes no second fault downstream": (
        {"graph.layer_query.query_size": -8, "graph.position.num_slots": 2.5},
        ["graph.layer_query.query_size: given -8", "graph.position.num_slots: given 2.5"],
    ),
}
