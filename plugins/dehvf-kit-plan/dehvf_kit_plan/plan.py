"""What training and answering with a recipe takes on a GPU, from configs alone.

Training, per GPU. Memory = frozen weights (parameters x bytes of their dtype) + adapter (4 bytes per trained parameter) +
gradients (4) + AdamW's two moments (8) + peak of the step (the most bytes that tensors made in the step hold at one time:
activations kept for backward, and temporaries) + 1 GiB for context, libraries and fragmentation (assumed). FLOPs: matrix
products forward and backward of one step, as torch's counter sees them on the meta device. Seconds per step = FLOPs /
(TFLOPS x utilisation); each GPU works on its own batches, and the time to average so few gradients is not included.
Answering, per GPU. Memory = frozen weights + adapter + peak of reading the prompts + cache of the new tokens + 1 GiB.
Seconds per batch = FLOPs of encoder, components and prompt / (TFLOPS x utilisation) + for each further token the longer of
its FLOPs at that rate and of reading weights and cache once at (bandwidth x 0.6, assumed).
Cache: 2 x layers x key/value heads x head width x bytes, per position and sample. Memory: bytes of the fused codes
(or whatever components keep) per sample. Feature cache: layers read x (1 + patches) x width x 2 bytes, per image.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from dehvf_kit.api.cost_formulas import TowerSizes
from dehvf_kit.backbones.base import config_size, text_config
from dehvf_kit.backbones.quantization import weight_bytes, weight_notes
from dehvf_kit.costs.flops import decoder_flops
from dehvf_kit.costs.memory import BYTES, TRAINED_BYTES, memory_usage
from dehvf_kit.costs.parameters import parameter_table
from dehvf_kit.data.samples import samples_of
from dehvf_kit.errors import DehvfError, PluginError
from dehvf_kit.model.builder import build_on_meta
from dehvf_kit.recipe.plugin_manager import plugins
from dehvf_kit.recipe.recipe import Recipe
from dehvf_kit_plan.gpus import Gpu
from dehvf_kit_plan.network import largest_layer, sharded_bytes, traffic
from dehvf_kit_plan.symbolic import DecodeCount, TrainCount, count_decoding, count_training, with_checkpointing

RESERVE = 2**30
BANDWIDTH_UTILISATION = 0.6
FEATURE_BYTES = 2
Counts = tuple[TrainCount, DecodeCount]
SCIENCEQA_SAMPLES = 12_726
"""Training examples of ScienceQA (paper: datasets), which the recipes without data are made for."""


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What is to be planned.

    Attributes:
        tokens: tokens per sample, prompt and answer together.
        answer: how many of them are the answer.
        decode_batch: questions answered together.
        new_tokens: tokens generated per question.
        gpus: GPUs that train together.
        samples: training samples; None takes the recipe's data set.
        utilisation: assumed share of the GPU's TFLOPS that is reached.
        shard: whether the frozen decoder is sharded over the GPUs.
    """

    tokens: int = 200
    answer: int = 8
    decode_batch: int = 32
    new_tokens: int = 8
    gpus: int = 1
    samples: int | None = None
    utilisation: float = 0.3
    shard: bool = False


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A recipe's needs. Bytes and seconds are per GPU, `gpu_hours` of all of them together; `traffic`: bytes that one GPU
    sends per step."""

    recipe: str
    batch: int
    trained_parameters: int
    weights: int
    adapter: int
    gradients: int
    optimiser: int
    train: TrainCount
    decode: DecodeCount
    feature_bytes: int | None
    samples: int
    samples_from: str
    steps: int
    train_bytes: int
    train_seconds: float
    gpu_hours: float
    decode_bytes: int
    decode_seconds: float
    fits_train: bool
    fits_decode: bool
    traffic: int
    would_fit: tuple[str, ...]
    notes: tuple[str, ...] = ()


def make_plan(recipe: Recipe, gpu: Gpu, work: Workload, counts: Counts | None = None) -> Plan:
    """Plan one recipe.

    Args:
        recipe: what to train.
        gpu: the GPU to train on.
        work: sizes of the samples and batches.
        counts: result of `count_work` where it is known already; then `would_fit` stays empty.

    Raises:
        RecipeError: for a faulty recipe.
        DehvfError: where its model cannot run without numbers.
    """
    model = build_on_meta(recipe)
    dtypes = {name: tower.dtype for name, tower in recipe.vision.items()}
    with model.hooks_disabled():
        quantization = getattr(recipe.decoder, "quantization", None)
        held = memory_usage(model.graph, model.decoder, model.towers, recipe.decoder.dtype, dtypes, quantization)
        width = BYTES[held.dtype]
        spared = {kind: held.decoder - weight_bytes(model.decoder, width, kind) for kind in ("int8", "int4")}
        layer = largest_layer(model.decoder, width)
        notes = tuple(weight_notes(model.decoder, quantization))
    trained = parameter_table(model.graph).trainable
    config = recipe.training
    sharded = work.shard and work.gpus > 1
    if sharded and quantization is not None:
        raise DehvfError("a quantised decoder cannot be split over GPUs; leave out --shard or decoder.quantization")
    decoder = sharded_bytes(held.decoder, layer, work.gpus) if sharded else held.decoder
    encoders = sum(held.vision.values()) if model.reads_images else 0
    weights, whole = decoder + encoders, held.decoder + encoders
    gradients, moments = trained * TRAINED_BYTES, 2 * trained * TRAINED_BYTES
    fixed = weights + held.adapter + gradients + moments + RESERVE
    train, decode = counts or count_work(recipe, work)
    decode_bytes = whole + held.adapter + decode.peak + work.decode_batch * work.new_tokens * decode.cache + RESERVE
    samples, samples_from = _samples(recipe, work)
    steps = config.num_steps(samples, work.gpus)
    rate = gpu.tflops * 1e12 * work.utilisation
    seconds = config.gradient_accumulation * (train.forward + train.backward) / rate
    room = gpu.memory_gb * 1e9
    fits = fixed + train.peak <= room
    return Plan(
        recipe=recipe.name,
        batch=config.batch_size,
        trained_parameters=trained,
        weights=weights,
        adapter=held.adapter,
        gradients=gradients,
        optimiser=moments,
        train=train,
        decode=decode,
        feature_bytes=feature_bytes(model),
        samples=samples,
        samples_from=samples_from,
        steps=steps,
        train_bytes=fixed + train.peak,
        train_seconds=seconds,
        gpu_hours=steps * seconds * work.gpus / 3600,
        decode_bytes=decode_bytes,
        decode_seconds=_decode_seconds(decode, gpu, work, whole),
        fits_train=fits,
        fits_decode=decode_bytes <= room,
        traffic=traffic(held.adapter, held.decoder if sharded else 0, work.gpus, config.gradient_accumulation),
        notes=notes,
        would_fit=() if fits or counts else _would_fit(recipe, work, room, fixed, spared),
    )


def _decode_seconds(decode: DecodeCount, gpu: Gpu, work: Workload, weights: int) -> float:
    """Seconds to answer one batch, by the formula at the top."""
    rate = gpu.tflops * 1e12 * work.utilisation
    cache = work.decode_batch * ((decode.positions + work.new_tokens) * decode.cache + decode.state)
    reading = (weights + cache) / (gpu.bandwidth_gbs * 1e9 * BANDWIDTH_UTILISATION)
    prompts = (decode.encoder + decode.graph + decode.prompt) / rate
    return prompts + (work.new_tokens - 1) * max(decode.token / rate, reading)


def feature_bytes(model: Any) -> int | None:
    """An image's frozen features in bfloat16; None where nothing can be cached or a number of patches varies."""
    if not model.reads_images or model.image_is_trained:
        return None
    counts = [tower.spec.num_patches for tower in model.towers.values()]
    if None in counts:
        return None
    return sum(
        len(tower.layers) * (1 + tower.spec.num_patches) * tower.spec.hidden_size * FEATURE_BYTES for tower in model.towers.values()
    )


def baseline_rows(recipe: Recipe, work: Workload) -> list[dict[str, Any]]:
    """Costs of baselines by the plugins' formulas on the recipe's base models; empty without such a plugin.

    A row: the fields of `BaselineCost`, tokens of the sequence, and FLOPs per sample of the decoder's forward pass.
    Raises: PluginError where a plugin's formula fails.
    """
    formulas = plugins().registry.cost_formulas
    model = build_on_meta(recipe) if formulas else None
    if model is None or len(model.towers) != 1:
        return []
    with model.hooks_disabled():
        counted = decoder_flops(model.decoder)
    sizes = _tower_sizes(model)
    rows = []
    for formula in formulas:
        try:
            found = list(formula(sizes))
        except Exception as error:  # a plugin's own code
            place = f"{formula.__module__}.{formula.__qualname__}"
            raise PluginError(f"cost formula {place} raised {type(error).__name__}: {error}") from error
        for baseline in found:
            length = work.tokens + baseline.added_tokens
            flops = counted.forward(length, logits=work.answer)
            rows.append({**asdict(baseline), "sequence": length, "decoder_flops": flops})
    return rows


def _tower_sizes(model: Any) -> TowerSizes:
    (tower,) = model.towers.values()
    spec = next(iter(model.graph.contexts.values())).decoder
    patches = tower.spec.num_patches or 0
    return TowerSizes(
        decoder_hidden_size=spec.hidden_size,
        decoder_layers=spec.num_layers,
        decoder_heads=config_size(text_config(model.decoder), "num_attention_heads") or 0,
        vision_hidden_size=tower.spec.hidden_size,
        vision_layers=tower.spec.num_layers,
        num_patches=patches,
        num_slots=next((size for axes in model.graph.sizes.values() if (size := axes.get("slot"))), patches),
    )


def count_work(recipe: Recipe, work: Workload) -> Counts:
    """Count a training step and a batch of answers; neither the number of GPUs nor the form of the weights matters.

    Raises: DehvfError where the model cannot run without numbers.
    """
    batch = recipe.training.batch_size
    try:
        return (
            count_training(recipe, batch, work.tokens, work.answer),
            count_decoding(recipe, work.decode_batch, work.tokens - work.answer),
        )
    except (NotImplementedError, RuntimeError, PluginError) as error:
        if isinstance(error, PluginError) and not isinstance(error.__cause__, (NotImplementedError, RuntimeError)):
            raise
        reason = str(error).strip().splitlines()[0]
        raise DehvfError(
            f"{recipe.source}: cannot be counted without numbers, since some part of it looks at values: {reason}"
        ) from error


def _samples(recipe: Recipe, work: Workload) -> tuple[int, str]:
    """The number of training samples, and where it is from."""
    if work.samples:
        return work.samples, "as given"
    if recipe.data is not None:
        try:
            stream = recipe.data.stream("train")
            return (len(samples_of(recipe.data, "train")) if stream is None else len(stream)), "its data"
        except DehvfError:
            pass
    return SCIENCEQA_SAMPLES, "ScienceQA's training split; change it with --samples"


def _would_fit(recipe: Recipe, work: Workload, room: float, fixed: int, saved: dict[str, int]) -> tuple[str, ...]:
    """Which of the usual remedies make a step fit `room` bytes, each alone, then together."""
    batch = recipe.training.batch_size

    def peak(changed: Recipe, size: int) -> int:
        return count_training(changed, size, work.tokens, work.answer).peak

    checkpointing, single = "training.gradient_checkpointing=true", "training.batch_size=1"
    spared = with_checkpointing(recipe)
    whole, least = peak(recipe, batch), peak(spared, 1)
    remedies = {
        checkpointing: fixed + peak(spared, batch),
        single: fixed + peak(recipe, 1),
        f"{checkpointing} {single}": fixed + least,
        "decoder.quantization=int8": fixed - saved["int8"] + whole,
        "decoder.quantization=int4": fixed - saved["int4"] + whole,
        f"decoder.quantization=int4 {checkpointing} {single}": fixed - saved["int4"] + least,
    }
    return tuple(f"{name}: {size / 1e9:.1f} GB" for name, size in remedies.items() if size <= room)


def as_dict(plan: Plan) -> dict[str, Any]:
    """The plan as plain data."""
    return asdict(plan)
