"""What training and answering with a recipe takes on a GPU, from configs alone.

Training, a GPU. Memory = frozen weights (parameters x bytes of their dtype) + adapter (4 bytes a trained parameter) + gradients
(4) + AdamW's two moments (8) + peak of the step (the most bytes its own tensors hold at one time: activations kept for
backward, and what comes and goes) + 1 GiB for context, libraries and fragmentation (assumed). FLOPs: matrix products
forward and backward of one step, as torch's counter sees them on the meta device. Seconds a step = FLOPs / (TFLOPS x
utilisation); GPUs work on batches of their own, and averaging so few gradients is left out.
Answering, a GPU. Memory = frozen weights + adapter + peak of reading the prompts + cache of the new tokens + 1 GiB.
Seconds a batch = FLOPs of encoder, components and prompt / (TFLOPS x utilisation) + for each further token the longer of
its FLOPs at that rate and of reading weights and cache once at (bandwidth x 0.6, assumed).
Cache: 2 x layers x key/value heads x head width x bytes, for each position and sample. Memory: bytes of the fused codes
(or whatever components hold) for each sample. Feature cache: layers read x (1 + patches) x width x 2 bytes, a picture.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from dehvf_kit_baselines.cost_formulas import Sizes, rivals

from dehvf_kit.backbones.quantization import weight_bytes
from dehvf_kit.costs.flops import decoder_flops
from dehvf_kit.costs.gpus import Gpu
from dehvf_kit.costs.memory import BYTES, TRAINED_BYTES, memory_report
from dehvf_kit.costs.network import largest_layer, sharded_bytes, traffic
from dehvf_kit.costs.parameters import parameter_table
from dehvf_kit.costs.symbolic import (
    DecodeCount,
    TrainCount,
    count_decoding,
    count_training,
    with_checkpointing,
)
from dehvf_kit.data.samples import samples_of
from dehvf_kit.errors import DehvfError, PluginError
from dehvf_kit.model.builder import build_on_meta
from dehvf_kit.recipe.recipe import Recipe

RESERVE = 2**30
BANDWIDTH_UTILISATION = 0.6
FEATURE_BYTES = 2
Counts = tuple[TrainCount, DecodeCount]
SCIENCEQA_SAMPLES = 12_726
"""Training examples of ScienceQA (paper: datasets), what the recipes without data are about."""


@dataclass(frozen=True)
class Workload:
    """What is asked: tokens of prompt and answer together, answer tokens, batches, GPUs, samples, assumed utilisation,
    and whether the frozen decoder is split over the GPUs."""

    tokens: int = 200
    answer: int = 8
    decode_batch: int = 32
    new_tokens: int = 8
    gpus: int = 1
    samples: int | None = None
    utilisation: float = 0.3
    shard: bool = False


@dataclass(frozen=True)
class Plan:
    """A recipe's needs. Bytes and seconds are of one GPU, `gpu_hours` of all of them together; `traffic` are the
    bytes a GPU sends in a step."""

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


def make_plan(recipe: Recipe, gpu: Gpu, work: Workload, counts: Counts | None = None) -> Plan:
    """Plan one recipe. counts: `count_work`'s, where they are known already; then nothing is sought that would fit.

    Raises: RecipeError for a faulty recipe, DehvfError where its model cannot run without numbers.
    """
    model = build_on_meta(recipe)
    dtypes = {name: tower.dtype for name, tower in recipe.vision.items()}
    with model.unhooked():
        quantization = getattr(recipe.decoder, "quantization", None)
        held = memory_report(model.graph, model.decoder, model.towers, recipe.decoder.dtype, dtypes, quantization)
        width = BYTES[held.dtype]
        spared = {kind: held.decoder - weight_bytes(model.decoder, width, kind) for kind in ("int8", "int4")}
        layer = largest_layer(model.decoder, width)
    trained = parameter_table(model.graph).trainable
    config = recipe.training
    batch = config.batch_size
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
    a_step = batch * config.gradient_accumulation * work.gpus
    steps = config.max_steps or max(1, round(-(-samples // a_step) * config.epochs))
    rate = gpu.tflops * 1e12 * work.utilisation
    seconds = config.gradient_accumulation * (train.forward + train.backward) / rate
    read = (whole + work.decode_batch * (decode.positions + work.new_tokens) * decode.cache) / (
        gpu.bandwidth_gbs * 1e9 * BANDWIDTH_UTILISATION
    )
    decode_seconds = (decode.encoder + decode.graph + decode.prompt) / rate
    decode_seconds += (work.new_tokens - 1) * max(decode.token / rate, read)
    room = gpu.memory_gb * 1e9
    fits = fixed + train.peak <= room
    return Plan(
        recipe.name,
        batch,
        trained,
        weights,
        held.adapter,
        gradients,
        moments,
        train,
        decode,
        feature_bytes(model),
        samples,
        samples_from,
        steps,
        fixed + train.peak,
        seconds,
        steps * seconds * work.gpus / 3600,
        decode_bytes,
        decode_seconds,
        fits,
        decode_bytes <= room,
        traffic(held.adapter, held.decoder if sharded else 0, work.gpus, config.gradient_accumulation),
        () if fits or counts else _would_fit(recipe, work, room, fixed, spared),
    )


def feature_bytes(model: Any) -> int | None:
    """A picture's frozen features in bfloat16; None where nothing can be kept or a number of patches varies."""
    if not model.reads_images or model.image_is_trained:
        return None
    counts = [tower.spec.num_patches for tower in model.towers.values()]
    if None in counts:
        return None
    return sum(
        len(tower.layers) * (1 + tower.spec.num_patches) * tower.spec.hidden_size * FEATURE_BYTES
        for tower in model.towers.values()
    )


def rival_rows(recipe: Recipe, work: Workload) -> list[dict[str, Any]]:
    """Each rival on the same towers, by formula: parameters, tokens in the sequence, FLOPs of its decoder pass a sample."""
    model = build_on_meta(recipe)
    if len(model.towers) != 1:
        return []
    (tower,) = model.towers.values()
    with model.unhooked():
        counted = decoder_flops(model.decoder)
    slots = next((size for (_, _), axes in model.graph.sizes.items() if (size := axes.get("slot"))), 0)
    config = model.decoder.config.get_text_config(decoder=True)
    spec = next(iter(model.graph.contexts.values())).decoder
    sizes = Sizes(
        spec.hidden_size,
        spec.num_layers,
        getattr(config, "num_attention_heads", 0) or 0,
        tower.spec.hidden_size,
        tower.spec.num_layers,
        tower.spec.num_patches or 0,
    )
    rows = []
    for rival in rivals(sizes, slots or sizes.patches):
        length = work.tokens + rival.added_tokens
        rows.append({**asdict(rival), "sequence": length, "decoder_flops": counted.forward(length, logits=work.answer)})
    return rows


def count_work(recipe: Recipe, work: Workload) -> Counts:
    """A training step and a batch of answers, counted; neither the number of GPUs nor the form of the weights matters.

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
    """Which of the usual remedies bring a step into `room` bytes, each alone, then together."""
    batch = recipe.training.batch_size

    def peak(changed: Recipe, size: int) -> int:
        return count_training(changed, size, work.tokens, work.answer).peak

    spared = with_checkpointing(recipe)
    whole, single, checked = peak(recipe, batch), peak(recipe, 1), peak(spared, batch)
    least = peak(spared, 1)
    remedies = [
        ("training.gradient_checkpointing=true", fixed + checked),
        ("training.batch_size=1", fixed + single),
        ("training.gradient_checkpointing=true training.batch_size=1", fixed + least),
        ("decoder.quantization=int8", fixed - saved["int8"] + whole),
        ("decoder.quantization=int4", fixed - saved["int4"] + whole),
        (
            "decoder.quantization=int4 training.gradient_checkpointing=true training.batch_size=1",
            fixed - saved["int4"] + least,
        ),
    ]
    return tuple(f"{name}: {size / 1e9:.1f} GB" for name, size in remedies if size <= room)


def as_dict(plan: Plan) -> dict[str, Any]:
    """The plan as plain data."""
    return asdict(plan)
