"""Features of a frozen encoder on disk: filling, reading a hit, and what the hit saves."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from bench_model import GEOMETRY, VISION, build
from PIL import Image
from pytest_benchmark.fixture import BenchmarkFixture
from transformers import CLIPVisionConfig, CLIPVisionModel

import dehvf_kit
from dehvf_kit.backbones.vision.config import ImageConfig
from dehvf_kit.data.processing import DehvfProcessor, build_image_processor
from dehvf_kit.data.samples import Sample
from dehvf_kit.model.feature_files import FeatureFiles

IMAGES = 8


@pytest.fixture(scope="module")
def model() -> dehvf_kit.DehvfModel:
    found = build(CLIPVisionModel(CLIPVisionConfig(**VISION, **GEOMETRY)))
    found.processor = DehvfProcessor.__new__(DehvfProcessor)
    found.processor.image_processor = build_image_processor({"vision": ImageConfig(size=224)})
    return found


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    folder = tmp_path_factory.mktemp("images")
    made = []
    for number in range(IMAGES):
        path = folder / f"{number}.png"
        Image.new("RGB", (224, 224), (number, 0, 0)).save(path)
        made.append(Sample(str(number), "question", "answer", path))
    return made


@pytest.fixture(autouse=True)
def group(benchmark: BenchmarkFixture) -> None:
    benchmark.group = f"feature cache, {IMAGES} images"


def test_fill(benchmark: BenchmarkFixture, model: dehvf_kit.DehvfModel, samples: list[Sample], tmp_path: Path) -> None:
    folders = iter(range(1000))
    benchmark.pedantic(
        lambda store: store.fill(samples),
        setup=lambda: ((FeatureFiles(model, folder=tmp_path / str(next(folders))),), {}),
        rounds=3,
    )


def test_hit(benchmark: BenchmarkFixture, model: dehvf_kit.DehvfModel, samples: list[Sample], tmp_path: Path) -> None:
    store = FeatureFiles(model, folder=tmp_path)
    store.fill(samples)
    benchmark(lambda: [store.read(sample).sum() for sample in samples])


def test_encoder(benchmark: BenchmarkFixture, model: dehvf_kit.DehvfModel, samples: list[Sample]) -> None:
    def run() -> torch.Tensor:
        images = [Image.open(sample.image) for sample in samples]
        pixels = model.processor.image_processor(images, return_tensors="pt")["pixel_values"]
        return model.vision_features(pixels)

    benchmark(run)
