"""One tiny decoder as other libraries hold it: quantised, offloaded, sharded, compiled, tuned."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from helpers import tiny_decoder
from torch import nn
from transformers import BitsAndBytesConfig, LlamaForCausalLM

SIZES = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4}
"""The 4-bit layers of a CPU want whole blocks of 64 weights a row."""


@dataclass(frozen=True)
class Holder:
    """A library, what it does to a decoder, and how to get one from a folder.

    exact: the logits are the plain decoder's (to rounding); whole: every weight can be compared with the plain decoder's; own: it
    is loaded from a checkpoint of its own, which has no weight of the plain one.
    """

    library: str
    what: str
    make: Callable[[Path], nn.Module]
    exact: bool = True
    whole: bool = True
    own: bool = False

    @property
    def name(self) -> str:
        return f"{self.library} {self.what}"

    def version(self) -> str:
        return importlib.metadata.version(self.library).partition("+")[0]

    def missing(self) -> bool:
        return importlib.util.find_spec(self.library.replace("-", "_").replace("optimum_quanto", "optimum")) is None


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


def hqq(folder: Path) -> nn.Module:
    from hqq.core.quantize import BaseQuantizeConfig
    from hqq.models.hf.base import AutoHQQHFModel

    decoder, config = plain(folder), BaseQuantizeConfig(nbits=4, group_size=64)
    AutoHQQHFModel.quantize_model(decoder, quant_config=config, compute_dtype=torch.float32, device="cpu")
    return decoder.eval()


def quanto(weights: str) -> Callable[[Path], nn.Module]:
    def make(folder: Path) -> nn.Module:
        from transformers import QuantoConfig

        return plain(folder, quantization_config=QuantoConfig(weights=weights))

    return make


def compressed(scheme: str) -> Callable[[Path], nn.Module]:
    """Quantised by rounding, with a scale for each row, saved, and loaded by transformers."""

    def make(folder: Path) -> nn.Module:
        from compressed_tensors.compressors import ModelCompressor
        from compressed_tensors.quantization import QuantizationConfig, apply_quantization_config, preset_name_to_scheme
        from compressed_tensors.quantization.utils import calculate_qparams

        decoder, saved = plain(folder), Path(tempfile.mkdtemp())
        groups = {"group": preset_name_to_scheme(scheme, ["Linear"])}
        for group in groups.values():
            group.weights.strategy, group.weights.group_size = "channel", None
        apply_quantization_config(decoder, QuantizationConfig(config_groups=groups, ignore=["lm_head"]))
        for module in decoder.modules():
            if hasattr(module, "quantization_scheme"):
                weight = module.weight.data
                ends = weight.amin(-1, keepdim=True), weight.amax(-1, keepdim=True)
                scale, zero = calculate_qparams(*ends, module.quantization_scheme.weights)
                module.weight_scale.data.copy_(scale)
                module.weight_zero_point.data.copy_(zero)
        compressor = ModelCompressor.from_pretrained_model(decoder)
        compressor.compress_model(decoder)
        decoder.save_pretrained(saved)
        compressor.update_config(saved)
        return plain(saved)

    return make


def packed_by_gptqmodel(method: str) -> Callable[[Path], nn.Module]:
    """Quantised by rounding to 4 bits in groups of 64, packed by gptqmodel, saved, and loaded by transformers in bfloat16."""

    def make(folder: Path) -> nn.Module:
        from gptqmodel.nn_modules.qlinear.torch import TorchLinear
        from gptqmodel.nn_modules.qlinear.torch_awq import AwqTorchLinear
        from safetensors.torch import save_file

        decoder, saved, kind = plain(folder), Path(tempfile.mkdtemp()), TorchLinear if method == "gptq" else AwqTorchLinear
        for name, linear in list(decoder.model.named_modules()):
            if type(linear) is not nn.Linear:
                continue
            weight = linear.weight.data.reshape(linear.out_features, -1, 64)
            scale = (weight.amax(-1) - weight.amin(-1)) / 15
            zero = (-weight.amin(-1) / scale).round().clamp(0, 15)
            sizes = {"in_features": linear.in_features, "out_features": linear.out_features, "bias": False}
            packed = kind(bits=4, group_size=64, sym=False, desc_act=False, **sizes, register_buffers=True)
            groups = torch.arange(linear.in_features, dtype=torch.int32) // 64
            if method == "gptq":
                packed.pack_original(linear, scale, zero, groups)
            else:
                packed.pack(linear, scale, zero)
            parent, _, key = name.rpartition(".")
            setattr(decoder.model.get_submodule(parent), key, packed)
        decoder.config.save_pretrained(saved)
        config = json.loads((saved / "config.json").read_text())
        settings = {"quant_method": method, "bits": 4, "group_size": 64, "desc_act": False, "sym": False}
        settings |= {"checkpoint_format": "gptq_v2"} if method == "gptq" else {"format": "gemm", "zero_point": True}
        (saved / "config.json").write_text(json.dumps(config | {"quantization_config": settings}))
        save_file(
            {name: tensor.contiguous() for name, tensor in decoder.state_dict().items()},
            saved / "model.safetensors",
            {"format": "pt"},
        )
        return plain(saved, dtype=torch.bfloat16)

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

        asked = {"task_type": "CAUSAL_LM", "target_modules": ["q_proj", "down_proj"], **settings}
        # BOFT tries to compile a kernel, and would wait for ever where an earlier try was killed.
        with patch.dict(os.environ, TORCH_EXTENSIONS_DIR=tempfile.mkdtemp()):
            return peft.get_peft_model(plain(folder), getattr(peft, config)(**asked)).eval()

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


IN_PLACE: dict[str, tuple[str, dict[str, Any]]] = {
    "LoRA": ("LoraConfig", {"r": 2}),
    "DoRA": ("LoraConfig", {"r": 2, "use_dora": True}),
    "OFT": ("OFTConfig", {"r": 0, "oft_block_size": 4}),
    "BOFT": ("BOFTConfig", {"boft_block_size": 4}),
    "HRA": ("HRAConfig", {"r": 2}),
    "IA3": ("IA3Config", {"feedforward_modules": ["down_proj"]}),
    "LoHa": ("LoHaConfig", {"r": 2}),
    "LoKr": ("LoKrConfig", {"r": 2}),
    "VeRA": ("VeraConfig", {"r": 2, "target_modules": ["q_proj", "o_proj"]}),
    "MiSS": ("MissConfig", {"r": 2}),
    "RoAd": ("RoadConfig", {"group_size": 2}),
    "SHiRA": ("ShiraConfig", {"r": 2}),
    "C3A": ("C3AConfig", {"block_size": 16, "init_weights": True}),
    "FourierFT": ("FourierFTConfig", {"n_frequency": 8, "init_weights": True}),
}
"""peft's tuners that change maps where they stand, each as it begins: it adds nothing yet."""
HOLDERS = [
    Holder("bitsandbytes", "int8", int8, exact=False),
    Holder("bitsandbytes", "int4", int4("uint8"), exact=False),
    Holder("bitsandbytes", "int4 in float16 storage", int4("float16"), exact=False),
    Holder("bitsandbytes", "int4 in bfloat16 storage", int4("bfloat16"), exact=False),
    Holder("torchao", "int8 weights", torchao("Int8WeightOnlyConfig"), exact=False),
    Holder("torchao", "float8 weights", torchao("Float8WeightOnlyConfig"), exact=False),
    Holder("hqq", "4 bits, in memory", hqq, exact=False),
    Holder("optimum-quanto", "int8 weights", quanto("int8"), exact=False),
    Holder("optimum-quanto", "int4 weights", quanto("int4"), exact=False),
    Holder("compressed-tensors", "4-bit weights", compressed("W4A16"), exact=False, own=True),
    Holder("compressed-tensors", "int8 weights and inputs", compressed("W8A8"), exact=False, own=True),
    Holder("compressed-tensors", "float8 weights and inputs", compressed("FP8_DYNAMIC"), exact=False, own=True),
    Holder("gptqmodel", "GPTQ", packed_by_gptqmodel("gptq"), exact=False, own=True),
    Holder("gptqmodel", "AWQ", packed_by_gptqmodel("awq"), exact=False, own=True),
    Holder("accelerate", "half offloaded to disk", offloaded),
    Holder("accelerate", "offloaded whole", offloaded_whole),
    Holder("torch", "torch.compile", compiled),
    Holder("torch", "FSDP2", fsdp2),
    Holder("transformers", "tensor parallel", tensor_parallel),
    *(Holder("peft", what, peft(config, **settings), whole=False) for what, (config, settings) in IN_PLACE.items()),
]
