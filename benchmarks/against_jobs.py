"""The jobs of `against.py`, each run in a process of its own by the code of one commit or the other.

    python benchmarks/against_jobs.py JOB WORK [--quick]    # prints one JSON object

WORK is a folder that both commits share: `prepare-*` jobs, run by the older commit, leave an adapter there. Names that moved
are looked up under both places. A job prints `wall` and `cpu` (seconds), `count` (questions, images, steps), `value` (bytes or a
ratio) and `digest`, of what it computed, by which results are compared; an empty one says that there is nothing to compare, or
that the table shows each side's `shown`.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import importlib
import inspect
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

RECIPE = "recipes/smollm2_dinov2_easyvqa.yaml"
WIDTH, HEIGHT, SIDE = 1024, 768, 224
DIFFERENT = 32
TOKENS = 200
DECODER = {"hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32, "num_hidden_layers": 8, "vocab_size": 1024}
SMALL = {"hidden_size": 512, "intermediate_size": 1376, "num_attention_heads": 8, "num_hidden_layers": 4, "vocab_size": 1024}


@dataclass(frozen=True)
class Job:
    """A job as the table names it.

    rate: the figure is `count` a second, not seconds. timed: wall time or processor seconds are compared, else `value`.
    environment: NAME=VALUE of the variables that both sides run with.
    """

    what: str
    unit: str
    timed: bool = True
    rate: bool = False
    prepare: str = ""
    environment: tuple[str, ...] = ()

    def figure(self, found: Mapping[str, Any], name: str) -> float:
        """What the table compares, out of what the job printed."""
        return found["count"] / found[name] if self.rate else float(found[name])


FREED_AT_ONCE = ("MALLOC_MMAP_THRESHOLD_=65536", "MALLOC_TRIM_THRESHOLD_=0")
"""glibc gives freed tensors back to the system, so that the resident set holds live ones alone."""

JOBS = {
    "demo": Job("the easy-VQA demo to its end, wheels unpacked; in the last column but one the accuracy", "s"),
    "scoring": Job("features and answers of the demo adapter's test questions", "questions/s", rate=True, prepare="adapter"),
    "images": Job("1,000 JPEGs of 1024 x 768 to pixels of 224 x 224, as `fill` reads them", "images/s", rate=True),
    "cache": Job("the smallest file of an image's features", "bytes", timed=False, prepare="adapter"),
    "step": Job("a training step of the embedded default, features cached", "steps/s", rate=True),
    "memory": Job("peak of a training step, DEHVF / text only (resident set)", "ratio", False, environment=FREED_AT_ONCE),
    "memory-checkpointed": Job("the same with gradient checkpointing", "ratio", False, environment=FREED_AT_ONCE),
}


def named(*places: str) -> Any:
    """The first of some `module:name` that exists in this commit."""
    for place in places:
        module, _, name = place.partition(":")
        try:
            return getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError):
            continue
    raise SystemExit(f"none of {', '.join(places)} exists in this commit")


def questions(recipe: Any, split: str) -> list[Any]:
    return list(recipe.data.samples(split))


def digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, default=str).encode()).hexdigest()[:16]


@contextmanager
def timed(count: int) -> Iterator[dict[str, Any]]:
    """Seconds of the block, put into what it is given."""
    found: dict[str, Any] = {"count": count, "value": 0, "digest": ""}
    wall, cpu = time.perf_counter(), time.process_time()
    yield found
    found |= {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}


def prepare_adapter(work: Path, quick: bool) -> dict[str, Any]:
    """An adapter of the default recipe, trained for a few steps, so that its answers differ from question to question."""
    from dehvf_kit import load_recipe

    train = named("dehvf_kit.training:train", "dehvf_kit.training.run:train")
    if not (work / "run").exists():
        steps = 2 if quick else 40
        changed = [f"training.max_steps={steps}", "training.warmup_epochs=0", f"data.train_questions={16 * steps}"]
        train(load_recipe(RECIPE, overrides=changed), work / "run")
    return {}


def demo(work: Path, quick: bool) -> dict[str, Any]:
    """All that a user waits for after the installation, with no bound on the minutes: a slow machine also trains to the end."""
    run_demo = named("dehvf_kit_demo.demo:run_demo", "dehvf_kit.training.demo:run_demo")
    data = {"data": "easy_vqa"} if "data" in inspect.signature(run_demo).parameters else {}
    with tempfile.TemporaryDirectory() as folder, timed(1) as found:
        result = run_demo(Path(folder) / "demo", 0.1 if quick else 600.0, lambda text: None, lambda *_: None, **data)
    return found | {"shown": f"{result.summary['accuracy']:.1%}", "summary": result.summary}


def scoring(work: Path, quick: bool) -> dict[str, Any]:
    from dehvf_kit import load

    answer = named("dehvf_kit.evaluation.answers:answer", "dehvf_kit.scoring.answers:answer")
    store = named("dehvf_kit.model.features:FeatureStore", "dehvf_kit.data.features:FeatureStore")
    model = load(work / "run" / "adapter")
    samples = questions(model.recipe, "test")[: 48 if quick else 1500]
    with timed(len(samples)) as found:
        features = store(model)
        features.fill(samples)
        said = answer(model, samples, features=features)
    return found | {"digest": digest([(one.id, one.prediction) for one in said])}


def images(work: Path, quick: bool) -> dict[str, Any]:
    """Decoding and preprocessing alone: the store is filled from an encoder that gives a constant."""
    import torch

    sample = named("dehvf_kit.data.samples:Sample")
    store = named("dehvf_kit.model.features:FeatureStore", "dehvf_kit.data.features:FeatureStore")
    config = named("dehvf_kit.backbones.vision.config:ImageConfig", "dehvf_kit.backbones.vision:ImageConfig")
    build = named("dehvf_kit.data.processing:build_image_processor", "dehvf_kit.processing:picture_processor")
    files = photographs(work / "photographs", 8 if quick else 1000)
    sums: list[float] = []

    def features(pixels: Any) -> Any:
        sums.extend(pixels.double().sum((1, 2, 3)).tolist())
        return torch.zeros(len(pixels), 1, 1, 1)

    model: Any = SimpleNamespace(
        image_is_trained=False,
        vision_features=features,
        processor=SimpleNamespace(image_processor=build({"vision": config(size=SIDE)})),
        decoder=torch.nn.Linear(1, 1),
        device=torch.device("cpu"),
    )
    samples = [sample(str(number), "?", "", file) for number, file in enumerate(files)]
    with timed(len(samples)) as found:
        store(model).fill(samples)
    return found | {"digest": digest(sums)}


def photographs(folder: Path, count: int) -> list[Path]:
    """JPEGs of smooth random colours with noise, about 200 KB each, of which `DIFFERENT` differ."""
    import numpy as np
    from PIL import Image

    folder.mkdir(exist_ok=True)
    files = [folder / f"{number}.jpg" for number in range(count)]
    for number, file in enumerate(files):
        if number >= DIFFERENT:
            file.write_bytes(files[number % DIFFERENT].read_bytes())
        elif not file.exists():
            chance = np.random.default_rng(number)
            smooth = Image.fromarray(chance.integers(0, 256, (48, 64, 3), dtype=np.uint8)).resize((WIDTH, HEIGHT))
            noisy = np.asarray(smooth) + chance.normal(0, 6, (HEIGHT, WIDTH, 3))
            Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(file, quality=88)
    return files


def cache(work: Path, quick: bool) -> dict[str, Any]:
    """Bytes of one image's file in the smallest `cache_dtype` that this commit has."""
    from dehvf_kit import load

    kept = named("dehvf_kit.model.feature_files:cached_features", "dehvf_kit.data.feature_files:cached_features")
    model = load(work / "run" / "adapter")
    samples = questions(model.recipe, "test")[:1]
    sizes = []
    for dtype in ("int8", "bfloat16"):
        training = {**model.recipe.training.model_dump(), "cache_dtype": dtype, "cache_features": True}
        try:
            store = kept(model, type(model.recipe.training).model_validate(training))
        except ValueError:  # this commit has no such cache_dtype
            continue
        store.fill(samples)
        sizes.append(store.file(samples[0]).stat().st_size)
    return {"value": min(sizes), "count": 1, "digest": "", "wall": 0, "cpu": 0}


def step(work: Path, quick: bool) -> dict[str, Any]:
    """Forward and backward of shuffled batches of real questions, without an optimiser."""
    import torch

    from dehvf_kit import build, load_recipe

    encoded_samples = named("dehvf_kit.data.encoding:EncodedSamples")
    collator = named("dehvf_kit.data.encoding:Collator")
    store = named("dehvf_kit.model.features:FeatureStore", "dehvf_kit.data.features:FeatureStore")
    recipe = load_recipe(RECIPE, overrides=["data.train_questions=128"])
    model = build(recipe).train()
    samples = questions(recipe, "train")
    features = store(model)
    features.fill(samples)
    encoded = encoded_samples(samples, model.processor, recipe.data.prompt, recipe.training.max_length, True, features)
    order = torch.randperm(len(samples), generator=torch.Generator().manual_seed(0)).tolist()
    size, collate = recipe.training.batch_size, collator(model.processor.tokenizer.pad_token_id)
    batches = [collate([encoded[place] for place in order[start : start + size]]) for start in range(0, len(order), size)]
    batches = batches[:1] if quick else batches * 3
    model(**batches[0]).loss.backward()
    with timed(len(batches)) as found:
        losses = [_backward(model, batch) for batch in batches]
    return found | {"digest": digest([round(loss, 4) for loss in losses])}


def _backward(model: Any, batch: Mapping[str, Any]) -> float:
    loss = model(**batch).loss
    loss.backward()
    return loss.item()


def memory(work: Path, quick: bool, checkpointed: bool = False) -> dict[str, Any]:
    """Resident bytes above those before the decoder was made, at a step's peak: batch 4, `TOKENS` tokens, bfloat16."""
    import torch
    from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM

    from dehvf_kit import build, parse_recipe

    shapes = SMALL if quick else DECODER
    before = _resident("VmRSS")
    decoder = LlamaForCausalLM(LlamaConfig(**shapes, max_position_embeddings=512)).to(torch.bfloat16).requires_grad_(False)
    gc.collect()
    ids = torch.randint(0, shapes["vocab_size"], (4, TOKENS))
    text = decoder.get_input_embeddings()(ids).detach().requires_grad_()
    if checkpointed:
        decoder.gradient_checkpointing_enable({"use_reentrant": False})
        decoder.train()

    def plain(tokens: int) -> None:
        with torch.autocast("cpu", torch.bfloat16):
            decoder(inputs_embeds=text[:, :tokens], labels=ids[:, :tokens], use_cache=False).loss.backward()

    alone = _peak(plain) - before
    if checkpointed:
        decoder.gradient_checkpointing_disable()
    encoder = CLIPVisionConfig(hidden_size=1024, intermediate_size=64, num_hidden_layers=24, num_attention_heads=16, patch_size=14)
    tower = CLIPVisionModel(encoder).to(torch.bfloat16)
    raw = {
        "vision": {"model": "x"},
        "decoder": {"model": "y"},
        "graph": {
            "grouper": {"type": "contiguous", "num_groups": 4},
            "layer_query": {"type": "embedding_mlp"},
            "projector": {"type": "bottleneck_mlp"},
            "fuser": {"type": "cross_attention"},
            "position": {"type": "learned", "num_slots": 320},
            "injector": {"type": "ffn_memory"},
        },
    }
    held = _resident("VmRSS")
    model = build(parse_recipe(raw), decoder=decoder, vision=tower).train()
    if checkpointed:
        model.gradient_checkpointing_enable()
    features = torch.randn(4, 24, 257, 1024, dtype=torch.bfloat16)
    del tower
    held = _resident("VmRSS") - held

    def with_images(tokens: int) -> None:
        given = {"inputs_embeds": text[:, :tokens], "vision_features": features, "labels": ids[:, :tokens]}
        with torch.autocast("cpu", torch.bfloat16):
            model(**given, use_cache=False).loss.backward()

    encoders = sum(one.numel() * one.element_size() for one in model.towers.parameters())
    ours = _peak(with_images) - before - encoders
    return {"value": ours / alone, "count": 1, "digest": "", "wall": 0, "cpu": 0, "text": alone, "dehvf": ours, "held": held}


def _peak(run: Callable[[int], None]) -> int:
    """The resident set's peak in a run of `TOKENS` tokens, after one of few that made what stays. Linux alone."""
    run(8)
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    run(TOKENS)
    return _resident("VmHWM")


def _resident(name: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


RUN: dict[str, Callable[[Path, bool], dict[str, Any]]] = {
    "prepare-adapter": prepare_adapter,
    "demo": demo,
    "scoring": scoring,
    "images": images,
    "cache": cache,
    "step": step,
    "memory": memory,
    "memory-checkpointed": lambda work, quick: memory(work, quick, checkpointed=True),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job", choices=list(RUN))
    parser.add_argument("work", type=Path)
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    import torch

    torch.manual_seed(0)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    print(json.dumps(RUN[arguments.job](arguments.work, arguments.quick)))


if __name__ == "__main__":
    main()
