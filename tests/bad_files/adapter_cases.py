"""Adapters, checkpoints and base models that are not believed. A payload that ran would leave a file behind."""

from __future__ import annotations

import json
import pickle
import shutil
import zipfile
from pathlib import Path
from typing import Any

import torch
from bad_files.ground import CONFIG, REFUSED, WEIGHTS, Case, Ground, Words, collector
from helpers import tiny_decoder

ADAPTERS: list[Case] = []
BASES: list[Case] = []
adapter_case = collector("Adapters", ADAPTERS)
base_case = collector("Checkpoints and base models", BASES)


class Payload:
    """Pickled, it makes a file when it is loaded."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return Path.touch, (self.file,)


def payload(ground: Ground) -> bytes:
    return pickle.dumps({"position.keys": Payload(ground.folder / "payload-ran")})


@adapter_case("weights cut in half", REFUSED, f"{WEIGHTS}: cannot be read")
def half(ground: Ground) -> Words:
    adapter = ground.adapter()
    data = (adapter / WEIGHTS).read_bytes()
    (adapter / WEIGHTS).write_bytes(data[: len(data) // 2])
    return ["eval", adapter]


@adapter_case("one bit of the weights flipped", REFUSED, "not the weights that dehvf_config.json was saved with")
def flipped(ground: Ground) -> Words:
    adapter = ground.adapter()
    data = bytearray((adapter / WEIGHTS).read_bytes())
    data[-3] ^= 1
    (adapter / WEIGHTS).write_bytes(data)
    return ["eval", adapter]


@adapter_case("a pickle with a payload under the name of the weights", REFUSED, f"{WEIGHTS}: cannot be read")
def pickled(ground: Ground) -> Words:
    adapter = ground.adapter()
    (adapter / WEIGHTS).write_bytes(payload(ground))
    return ["eval", adapter]


@adapter_case("weights as a `.pth` file, with a payload", REFUSED, "weights in another file are not read")
def pth(ground: Ground) -> Words:
    adapter = ground.adapter()
    (adapter / WEIGHTS).unlink()
    (adapter / "adapter_model.pth").write_bytes(payload(ground))
    return ["eval", adapter]


@adapter_case("a folder in place of the weights", REFUSED, "incomplete, it has no")
def folder(ground: Ground) -> Words:
    adapter = ground.adapter()
    (adapter / WEIGHTS).unlink()
    (adapter / WEIGHTS).mkdir()
    return ["eval", adapter]


@adapter_case("weights that are not finite", REFUSED, "holds values that are not finite")
def infinite(ground: Ground) -> Words:
    return ["eval", ground.weights(lambda tensors: tensors["position.keys"].fill_(torch.inf))]


@adapter_case("weights as whole numbers", REFUSED, "is of torch.int64; expected floating-point values")
def whole(ground: Ground) -> Words:
    return ["eval", ground.weights(lambda tensors: tensors.update({"position.keys": tensors["position.keys"].long()}))]


@adapter_case("a weight missing", REFUSED, "weights do not fit the recipe; missing: position.keys")
def lacking(ground: Ground) -> Words:
    return ["eval", ground.weights(lambda tensors: tensors.pop("position.keys"))]


@adapter_case("config cut in half", REFUSED, "not JSON")
def half_config(ground: Ground) -> Words:
    adapter = ground.adapter()
    text = (adapter / CONFIG).read_text()
    (adapter / CONFIG).write_text(text[: len(text) // 2])
    return ["eval", adapter]


@adapter_case("`NaN` in the config", REFUSED, "NaN is no number in JSON")
def nan(ground: Ground) -> Words:
    return ["eval", ground.config(trainable_parameters=float("nan"))]


@adapter_case("a key of the config twice", REFUSED, "key 'kit' stands twice in one object; keep one")
def twice(ground: Ground) -> Words:
    adapter = ground.adapter()
    text = (adapter / CONFIG).read_text().replace("{", '{"kit": "dehvf-kit", ', 1)
    (adapter / CONFIG).write_text(text)
    return ["eval", adapter]


@adapter_case("a config nested 100,000 deep", REFUSED, "nested too deeply")
def deep(ground: Ground) -> Words:
    adapter = ground.adapter()
    (adapter / CONFIG).write_text('{"kit": ' + "[" * 100_000)
    return ["eval", adapter]


@adapter_case("a config nested 100 deep", REFUSED, "nested more than 32 deep")
def deeper(ground: Ground) -> Words:
    return ["eval", ground.config(extra=json.loads("[" * 100 + "]" * 100))]


@adapter_case("a config of ten megabytes", REFUSED, "4,000,000 at most are read; it is no dehvf_config.json")
def large(ground: Ground) -> Words:
    return ["eval", ground.config(extra="x" * 10_000_000)]


@adapter_case("a config in UTF-16", REFUSED, "not UTF-8: invalid start byte at byte 0")
def utf16(ground: Ground) -> Words:
    adapter = ground.adapter()
    (adapter / CONFIG).write_bytes((adapter / CONFIG).read_text().encode("utf-16"))
    return ["eval", adapter]


@adapter_case("another tool's adapter", REFUSED, "not written by dehvf-kit")
def other_tool(ground: Ground) -> Words:
    adapter = ground.adapter()
    (adapter / CONFIG).write_text('{"peft_type": "LORA", "r": 8}')
    return ["eval", adapter]


@adapter_case("saved by a newer kit", REFUSED, "format 2, this kit reads up to 1; upgrade dehvf-kit")
def newer(ground: Ground) -> Words:
    return ["eval", ground.config(format=2)]


@adapter_case("its recipe in a newer language", REFUSED, "format: 2, this kit reads up to 1; upgrade dehvf-kit")
def newer_recipe(ground: Ground) -> Words:
    return ["eval", ground.config(recipe=lambda recipe: {**recipe, "format": 2})]


@adapter_case(
    "its recipe makes a billion slots where there are weights for 16", REFUSED, "graph.position.num_slots: given 1000000000"
)
def slots(ground: Ground) -> Words:
    def change(recipe: dict[str, Any]) -> dict[str, Any]:
        position = {**recipe["graph"]["position"], "num_slots": 10**9}
        return {**recipe, "graph": {**recipe["graph"], "position": position}}

    return ["eval", ground.config(recipe=change)]


@adapter_case("it asks to run code that comes with its decoder", REFUSED, "asks to run Python code that comes with")
def code(ground: Ground) -> Words:
    def change(recipe: dict[str, Any]) -> dict[str, Any]:
        return {**recipe, "decoder": {**recipe["decoder"], "trust_remote_code": True}}

    return ["eval", ground.config(recipe=change)]


@adapter_case("a fingerprint of the prompt that was altered", REFUSED, "does not match its hash; it was altered")
def fingerprint(ground: Ground) -> Words:
    return ["eval", ground.config(prompt_fingerprint=lambda known: {**known, "text": {"question": "x"}})]


def on_decoder(ground: Ground, **settings: Any) -> Words:
    """The adapter on another decoder, whose tokenizer is the same."""
    decoder = ground.folder / "decoder"
    shutil.copytree(ground.world / "decoder", decoder)
    known = json.loads((decoder / "config.json").read_text())
    fields = {"vocab_size": known["vocab_size"], "eos_token_id": 1, "pad_token_id": 0, "initializer_range": 0.3}
    tiny_decoder(**{**fields, **settings}).save_pretrained(decoder)
    return ["eval", ground.adapter(), f"decoder.model={decoder}"]


@adapter_case("for a decoder of another width", REFUSED, "with hidden_size 32; this one has hidden_size 64")
def width(ground: Ground) -> Words:
    return on_decoder(ground, hidden_size=64)


@adapter_case("for another revision of its decoder: the same sizes, other weights", REFUSED, "other weights than the adapter")
def revision(ground: Ground) -> Words:
    return on_decoder(ground, seed=5)


@adapter_case("for another tokenizer: the same words in another order", REFUSED, "trained with another tokenizer, of")
def tokenizer(ground: Ground) -> Words:
    decoder = ground.folder / "decoder"
    shutil.copytree(ground.world / "decoder", decoder)
    text = json.loads((decoder / "tokenizer.json").read_text())
    words = text["model"]["vocab"]
    words["red"], words["blue"] = words["blue"], words["red"]
    (decoder / "tokenizer.json").write_text(json.dumps(text))
    return ["eval", ground.adapter(), f"decoder.model={decoder}"]


def original(ground: Ground) -> Path:
    """A folder in the layout of LLaMA's own release, without its shard."""
    params = {"dim": 32, "n_heads": 4, "n_layers": 2, "norm_eps": 1e-5, "multiple_of": 8, "vocab_size": -1}
    return ground.write("llama/params.json", json.dumps(params)).parent


@base_case("`consolidated.00.pth` with a payload", REFUSED, "not a file of tensors alone, so it is not read")
def shard(ground: Ground) -> Words:
    folder = original(ground)
    torch.save({"output.weight": Payload(ground.folder / "payload-ran")}, folder / "consolidated.00.pth")
    return ["check", ground.world / "tiny.yaml", f"decoder.model={folder}"]


@base_case("a `.pth` archive with an entry `../../outside`", REFUSED, "not a file of tensors alone, so it is not read")
def archive(ground: Ground) -> Words:
    folder = original(ground)
    with zipfile.ZipFile(folder / "consolidated.00.pth", "w") as made:
        made.writestr("../../payload-ran", "outside")
        made.writestr("archive/data.pkl", b"\x80\x02}q\x00.")
    return ["check", ground.world / "tiny.yaml", f"decoder.model={folder}"]


@base_case("`params.json` with a size that is no number", REFUSED, "params.json: cannot be read")
def params(ground: Ground) -> Words:
    folder = original(ground)
    (folder / "params.json").write_text('{"dim": "wide"}')
    return ["check", ground.world / "tiny.yaml", f"decoder.model={folder}"]


def decoder_folder(ground: Ground) -> Path:
    return Path(shutil.copytree(ground.world / "decoder", ground.folder / "decoder"))


def train(ground: Ground, **changes: object) -> Words:
    words = [f"{key.replace('_', '.', 1)}={value}" for key, value in changes.items()]
    return ["train", ground.world / "tiny.yaml", *words, "--output", ground.folder / "run"]


@base_case("a decoder's weights cut in half", REFUSED, "cannot be loaded")
def half_base(ground: Ground) -> Words:
    file = decoder_folder(ground) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:5000])
    return train(ground, decoder_model=file.parent)


@base_case("an encoder's weights cut in half", REFUSED, "cannot be loaded")
def half_vision(ground: Ground) -> Words:
    folder = Path(shutil.copytree(ground.world / "vision", ground.folder / "vision"))
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:5000])
    return train(ground, vision_model=folder)


@base_case("a decoder whose weights are a pickle with a payload", REFUSED, "cannot be loaded")
def pickled_base(ground: Ground) -> Words:
    folder = decoder_folder(ground)
    (folder / "model.safetensors").unlink()
    torch.save({"lm_head.weight": Payload(ground.folder / "payload-ran")}, folder / "pytorch_model.bin")
    return train(ground, decoder_model=folder)


@base_case("a decoder that needs code of its own", REFUSED, "cannot be read")
def own_code(ground: Ground) -> Words:
    folder = decoder_folder(ground)
    ran = ground.folder / "payload-ran"
    (folder / "evil.py").write_text(f"from pathlib import Path\nPath({str(ran)!r}).touch()\nclass Evil: pass\n")
    known = json.loads((folder / "config.json").read_text())
    own = {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil"}}
    (folder / "config.json").write_text(json.dumps({**known, **own}))
    return train(ground, decoder_model=folder)


@base_case("a decoder's config that is no JSON", REFUSED, "decoder:")
def config(ground: Ground) -> Words:
    folder = decoder_folder(ground)
    (folder / "config.json").write_text("{half")
    return ["check", ground.world / "tiny.yaml", f"decoder.model={folder}"]


@base_case("a decoder's tokenizer that is no JSON", REFUSED, "cannot be loaded")
def no_tokenizer(ground: Ground) -> Words:
    folder = decoder_folder(ground)
    (folder / "tokenizer.json").write_text("{half")
    return train(ground, decoder_model=folder)
