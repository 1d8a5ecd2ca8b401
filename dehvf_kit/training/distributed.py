"""Several processes: the decoder's frozen weights sharded over them, the adapter whole on each, its gradients averaged.

`torchrun` or `accelerate launch` start the processes and announce it in environment variables. torch's DDP averages the
gradients of the adapter alone. Where the launcher asks for FSDP2, `fully_shard` shards the frozen decoder layer by layer; it has
no gradients, so only its weights are communicated: each process gathers a layer's before running it and frees them after.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import distributed, nn

from dehvf_kit.adapter.identity import base_identities
from dehvf_kit.backbones.ffn.sites import ffn_sites
from dehvf_kit.errors import DehvfError
from dehvf_kit.utils.plain_data import parse_json

if TYPE_CHECKING:
    from dehvf_kit.data.samples import Sample
    from dehvf_kit.model.model import DehvfModel

OWN = "dehvf_kit.components."
WANTS_FSDP, LOADS_ONCE = "ACCELERATE_USE_FSDP", "FSDP_CPU_RAM_EFFICIENT_LOADING"


@dataclass(frozen=True)
class Processes:
    """This process among those that train together: its rank, and how many there are."""

    rank: int = 0
    count: int = 1

    @property
    def main(self) -> bool:
        """Whether this is the one that writes and prints."""
        return self.rank == 0

    def wait(self) -> None:
        """Go on when all processes are here."""
        if self.count > 1:
            distributed.barrier()


def join_processes(precision: str = "float32") -> Processes:
    """The processes that a launcher started, connected by gloo or NCCL; alone where there was no launcher.

    precision: of the training. Raises: DehvfError where the launcher asks for DeepSpeed's ZeRO-3, or for DeepSpeed in half
    precision, or the variables of a launcher are there in part.
    """
    _refuse_deepspeed(precision)
    _refuse_half_a_launch()
    if int(os.environ.get("WORLD_SIZE") or 1) < 2:
        return Processes()
    from accelerate import PartialState

    state = PartialState(cpu=not torch.cuda.is_available())
    return Processes(state.process_index, state.num_processes)


def _refuse_half_a_launch() -> None:
    numbers = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_PORT")
    odd = [f"{name}={os.environ[name]}" for name in numbers if not os.environ.get(name, "0").lstrip("-").isdecimal()]
    if not odd and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        odd = [f"{name} missing" for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if odd:
        raise DehvfError(
            f"the environment speaks of several processes, but not as a launcher does ({', '.join(odd)}); start with torchrun or "
            "accelerate launch, or unset WORLD_SIZE, RANK and LOCAL_RANK"
        )


def _refuse_deepspeed(precision: str) -> None:
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() != "true":
        return
    file = os.environ.get("ACCELERATE_DEEPSPEED_CONFIG_FILE", "none")
    given = parse_json(Path(file).read_bytes()) if os.path.isfile(file) else None
    launched: Any = {"zero_optimization": {"stage": os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2")}}
    asked = given if isinstance(given, dict) else launched
    if str(asked.get("zero_optimization", {}).get("stage", 0)) == "3":
        raise DehvfError(
            "DeepSpeed ZeRO-3 splits weights that one component reads from another, which are then empty in the first pass; use "
            "launch/zero2.yaml, or launch/fsdp2.yaml to split the decoder"
        )
    halves = any(asked.get(name, {}).get("enabled") is True for name in ("bf16", "fp16"))
    if halves or precision != "float32" or os.environ.get("ACCELERATE_MIXED_PRECISION", "no").lower() != "no":
        raise DehvfError(
            "DeepSpeed trains in half precision by casting all weights, the adapter's too; set training.precision=float32 (with "
            "decoder.dtype=bfloat16, if you like) and mixed_precision: no, or use launch/ddp.yaml or launch/fsdp2.yaml"
        )


def leave_processes() -> None:
    """Close the connections, if there are any."""
    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def reaches_all(model: DehvfModel, samples: Sequence[Sample]) -> bool:
    """Whether every batch gives every trained weight a gradient: the kit's own components alone, and samples that have images."""
    own = {id(weight) for node in model.nodes.values() if type(node).__module__.startswith(OWN) for weight in node.parameters()}
    return bool(samples) and all(sample.images for sample in samples) and own >= {*map(id, model.trainable_parameters())}


def prepare_model(model: DehvfModel, processes: Processes) -> None:
    """Make a model ready for several processes; does nothing for one.

    The frozen decoder is sharded where the launcher asks for FSDP, and DDP ignores frozen weights (every process
    reads them from the same files, and they have no gradients). Call it before the Trainer is made.
    Raises: DehvfError for FSDP settings that the kit does not support.
    """
    if processes.count < 2:
        return
    settings = _sharding()
    frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    frozen += [name for name, _ in model.named_buffers() if not name.startswith("nodes.")]
    nn.parallel.DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, frozen)
    if settings is not None:
        shard_base(model, **settings)
        os.environ[WANTS_FSDP] = "false"  # done; the Trainer then wraps the adapters by DDP


def shard_base(model: DehvfModel, **settings: Any) -> None:
    """Shard the frozen decoder over all processes by FSDP2, a unit for each layer and one for the rest, in place.

    settings: of torch's `fully_shard`. Trained weights, also those inside the decoder, and the encoders stay whole.
    Raises: DehvfError for a quantised decoder.
    """
    from torch.distributed.fsdp import fully_shard

    decoder = model.decoder
    if any(not parameter.is_floating_point() for parameter in decoder.parameters()):
        raise DehvfError("FSDP cannot split a quantised decoder; leave out decoder.quantization, or launch with launch/ddp.yaml")
    if model.compiled:
        raise DehvfError("FSDP gathers a layer's weights outside compiled code; set training.compile=false, or use launch/ddp.yaml")
    model.bases = model.bases or base_identities(model)
    trained = {parameter for parameter in decoder.parameters() if parameter.requires_grad}
    with model.hooks_disabled():
        layers = list(dict.fromkeys(site.layer_path for site in ffn_sites(decoder)))
    for path in layers:
        fully_shard(decoder.get_submodule(path), ignored_params=trained, **settings)
    fully_shard(decoder, ignored_params=trained, **settings)


def _sharding() -> dict[str, Any] | None:
    """The settings of `fully_shard` that the launcher's FSDP section asks for; None where it has none."""
    if os.environ.get(WANTS_FSDP, "false").lower() != "true":
        return None
    from accelerate import FullyShardedDataParallelPlugin

    if os.environ.get("FSDP_VERSION", "1") != "2":
        raise DehvfError("the kit splits the decoder by FSDP2; set fsdp_version: 2 (see launch/fsdp2.yaml)")
    if os.environ.get(LOADS_ONCE, "false").lower() == "true":
        raise DehvfError(
            "fsdp_cpu_ram_efficient_loading leaves all processes but one without weights; set it to false (see launch/fsdp2.yaml)"
        )
    asked = FullyShardedDataParallelPlugin()
    return {"reshard_after_forward": asked.reshard_after_forward, "offload_policy": asked.cpu_offload}
