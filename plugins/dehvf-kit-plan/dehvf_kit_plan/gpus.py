"""GPUs as their makers' data sheets describe them."""

from __future__ import annotations

from dataclasses import dataclass

from dehvf_kit.errors import DehvfError, did_you_mean, listing


@dataclass(frozen=True)
class Gpu:
    """memory in GB (10^9 bytes), dense bfloat16 TFLOPS (no sparsity), memory bandwidth in GB/s, and the source of these figures."""

    name: str
    memory_gb: float
    tflops: float
    bandwidth_gbs: float
    source: str


_A100 = "NVIDIA A100 data sheet"
GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu("a100-40gb", 40, 312, 1555, f"{_A100}, SXM"),
        Gpu("a100-80gb", 80, 312, 2039, f"{_A100}, SXM"),
        Gpu("h100-80gb", 80, 989, 3350, "NVIDIA H100 data sheet, SXM, without sparsity"),
        Gpu("h200-141gb", 141, 989, 4800, "NVIDIA H200 data sheet, SXM, without sparsity"),
        Gpu("l40s-48gb", 48, 362, 864, "NVIDIA L40S data sheet, without sparsity"),
        Gpu("l4-24gb", 24, 121, 300, "NVIDIA L4 data sheet, without sparsity"),
        Gpu("a10-24gb", 24, 125, 600, "NVIDIA A10 data sheet, without sparsity"),
        Gpu("rtx4090-24gb", 24, 165, 1008, "NVIDIA Ada architecture paper, float32 accumulation, without sparsity"),
        Gpu("mi300x-192gb", 192, 1307, 5300, "AMD Instinct MI300X data sheet, without sparsity"),
    )
}


def find_gpu(name: str, memory_gb: float | None = None, tflops: float | None = None, bandwidth_gbs: float | None = None) -> Gpu:
    """A GPU of the table, or one described whole. Raises: DehvfError for an unknown name that is not described."""
    known = GPUS.get(name.lower())
    if known is None and (memory_gb is None or tflops is None):
        raise DehvfError(
            f"--gpu: '{name}' is not in the table{did_you_mean(name.lower(), GPUS)} Known: {listing(GPUS)}; "
            "describe another with --gpu-memory and --gpu-tflops (and --gpu-bandwidth)"
        )
    described = any(value is not None for value in (memory_gb, tflops, bandwidth_gbs))
    base = known or Gpu(name, 0.0, 0.0, 1000.0, "")
    return Gpu(
        name,
        memory_gb or base.memory_gb,
        tflops or base.tflops,
        bandwidth_gbs or base.bandwidth_gbs,
        "as given on the command line" if described else base.source,
    )
