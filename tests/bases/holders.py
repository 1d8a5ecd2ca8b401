"""One tiny decoder as other libraries hold it: quantised, offloaded, sharded, compiled, tuned."""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from helpers import tiny_decoder
from torch import nn
from transformers import BitsAndBytesConfig, LlamaForCausalLM

SIZES = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4}
"""The 4-bit layers of a CPU want whole blocks of 64 weights a row."""


@dataclass(frozen=True)
class Holder:
    """A library, what it does to a decoder, and how to get one from a folder.

    exact: the logits are the plain decoder's (to rounding); whole: every weight can be compared with the plain decoder's.
    """

    library: str
    what: str
    make: Callable[[Path], nn.Module]
    exact: bool = True
    whole: bool = True

    @property
    def name(self) -> str:
        return f"{self.library} {self.what}"

    def version(self) -> str:
        return importlib.import_module(self.library).__version__.partition("+")[0]


def plain(folder: Path, **settings: Any) -> nn.Module:
    return LlamaForCausalLM.from_pretrained(folder, **settings).eval()


def save_plain(folder: Path, seed: int = 0) -> Path:
    """The folder of a tiny decoder, whose norms are not all ones."""
    decoder = tiny_decoder(seed, **SIZES, initializer_range=0.2)
    torch.manual_seed(seed)
    for parameter in decoder.parameters():
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    decoder.save_pretrained(folder)
    return folder


def int8(folder: Path) -> nn.Module:
    return plain(folder, quantization_config=BitsAndBytesConfig(load_in_8bit=True))


def int4(storage: str) -> Callable[[Path], nn.Module]:
    settings = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": torch.float32}
    return lambda folder: plain(folder, quantization_config=BitsAndBytesConfig(**settings, bnb_4bit_quant_storage=storage))


def torchao(config: str) -> Callable[[Path], nn.Module]:
    def make(folder: Path) -> nn.Module:
        from torchao import quantization

        decoder = plain(folder)
        quantization.quantize_(decoder.model, getattr(quantization, config)())
        return decoder

    return make


def offloaded(folder: Path) -> nn.Module:
    places = {"model.embed_tokens": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "disk"}
    places |= {f"model.layers.{layer}": "disk" if layer % 2 else "cpu" for layer in range(SIZES["num_hidden_layers"])}
    return plain(folder, device_map=places, offload_folder=tempfile.mkdtemp())


def offloaded_whole(folder: Path) -> nn.Module:
    from accelerate import cpu_offload

    return cpu_offload(plain(folder), torch.device("cpu"))


def compiled(folder: Path) -> nn.Module:
    return torch.compile(plain(folder), backend="eager")


def peft(config: str, **settings: Any) -> Callable[[Path], nn.Module]:
    def make(folder: Path) -> nn.Module:
        import peft

        return peft.get_peft_model(plain(folder), getattr(peft, config)(**settings)).eval()

    return make


@contextmanager
def process_group() -> Iterator[None]:
    """A group of this process alone."""
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()


def fsdp2(folder: Path) -> nn.Module:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    decoder, mesh = plain(folder), init_device_mesh("cpu", (1,))
    for layer in decoder.model.layers:
        fully_shard(layer, mesh=mesh)
    return fully_shard(decoder, mesh=mesh)


def tensor_parallel(folder: Path) -> nn.Module:
    from torch.distributed.device_mesh import init_device_mesh

    return plain(folder, tp_plan="auto", device_mesh=init_device_mesh("cpu", (1,)))


LORA = {"r": 2, "target_modules": ["q_proj", "down_proj"], "task_type": "CAUSAL_LM"}
HOLDERS = [
    Holder("bitsandbytes", "int8", int8, exact=False),
    Holder("bitsandbytes", "int4", int4("uint8"), exact=False),
    Holder("bitsandbytes", "int4 in float16 storage", int4("float16"), exact=False),
    Holder("bitsandbytes", "int4 in bfloat16 storage", int4("bfloat16"), exact=False),
    Holder("torchao", "int8 weights", torchao("Int8WeightOnlyConfig"), exact=False),
    Holder("torchao", "float8 weights", torchao("Float8WeightOnlyConfig"), exact=False),
    Holder("accelerate", "half offloaded to disk", offloaded),
    Holder("accelerate", "offloaded whole", offloaded_whole),
    Holder("torch", "torch.compile", compiled),
    Holder("torch", "FSDP2", fsdp2),
    Holder("transformers", "tensor parallel", tensor_parallel),
    Holder("peft", "LoRA", peft("LoraConfig", **LORA), whole=False),
    Holder("peft", "DoRA", peft("LoraConfig", **LORA, use_dora=True), whole=False),
]
