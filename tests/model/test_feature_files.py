"""Features on disk: a hit gives the very bits, whatever decides them is in the name, and nothing damaged is served."""

from __future__ import annotations

import contextlib
import errno
import io
import multiprocessing
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from helpers import tiny_model
from PIL import Image

from dehvf_kit.backbones.vision.config import ImageConfig
from dehvf_kit.data.processing import DehvfProcessor, build_image_processor
from dehvf_kit.data.samples import Sample
from dehvf_kit.errors import DataError
from dehvf_kit.model.feature_files import HEADER_BYTES, TEMPORARY, FeatureFiles
from dehvf_kit.model.model import DehvfModel


def make_model() -> DehvfModel:
    found = tiny_model(graph={"vision_adapter": None})
    found.processor = DehvfProcessor.__new__(DehvfProcessor)
    found.processor.image_processor = build_image_processor({"vision": ImageConfig(size=32)})
    return found


@pytest.fixture
def model() -> DehvfModel:
    return make_model()


@pytest.fixture
def samples(tmp_path: Path) -> list[Sample]:
    """Six questions about four pictures, two of which have the same bytes."""
    pictures = []
    for number, colour in enumerate(["red", "green", "blue", "blue"]):
        pictures.append(tmp_path / f"{number}.png")
        Image.new("RGB", (40, 40), colour).save(pictures[-1])
    return [Sample(str(number), "q", "a", pictures[number % 4]) for number in range(6)] + [Sample("text", "q", "a")]


def test_a_hit_gives_the_very_bits(model: DehvfModel, samples: list[Sample], tmp_path: Path) -> None:
    store = FeatureFiles(model, folder=tmp_path / "cache")
    need = store.need(samples)
    assert (need.images, need.missing) == (3, 3)
    assert store.fill(samples) == 3 and len(store) == 3
    pixels = model.processor.image_processor([Image.open(one.image) for one in samples[:3]], return_tensors="pt")
    expected = model.vision_features(pixels["pixel_values"])
    again = FeatureFiles(model, folder=tmp_path / "cache")
    assert again.need(samples).missing == 0 and again.fill(samples) == 0
    for row, sample in enumerate(samples[:3]):
        assert torch.equal(again.read(sample), expected[row : row + 1])
    assert torch.equal(again.read(samples[3]), expected[2:3]), "the same bytes under another name"
    written = {file.stat().st_size for file in store.folder.rglob("*.safetensors")}
    assert max(written) <= need.bytes_per_image < 1.5 * min(written)


def changed_weight(model: DehvfModel) -> None:
    with torch.no_grad():
        next(iter(model.towers["vision"].model.parameters())).flatten()[-1].add_(1e-6)


def changed_size(model: DehvfModel) -> None:
    model.processor.image_processor = build_image_processor({"vision": ImageConfig(size=24)})


def changed_normalisation(model: DehvfModel) -> None:
    model.processor.image_processor = build_image_processor({"vision": ImageConfig(size=32, normalisation="clip")})


def changed_layers(model: DehvfModel) -> None:
    model.towers["vision"].layers = model.towers["vision"].layers[1:]


def changed_norm(model: DehvfModel) -> None:
    model.towers["vision"].apply_post_norm = False


@pytest.mark.parametrize("change", [changed_weight, changed_size, changed_normalisation, changed_layers, changed_norm])
def test_whatever_decides_the_features_makes_a_miss(change, model: DehvfModel, samples: list[Sample], tmp_path: Path) -> None:
    FeatureFiles(model, folder=tmp_path / "cache").fill(samples)
    change(model)
    other = FeatureFiles(model, folder=tmp_path / "cache")
    assert other.need(samples).missing == 3
    with pytest.raises(DataError, match="fill the store first"):
        other.read(samples[0])


def test_another_dtype_or_picture_is_a_miss(model: DehvfModel, samples: list[Sample], tmp_path: Path) -> None:
    whole = FeatureFiles(model, folder=tmp_path / "cache")
    whole.fill(samples)
    half = FeatureFiles(model, torch.bfloat16, tmp_path / "cache")
    assert half.need(samples).missing == 3
    half.fill(samples)
    assert torch.equal(half.read(samples[0]), whole.read(samples[0]).bfloat16())
    Image.new("RGB", (40, 40), (255, 0, 1)).save(samples[0].image)
    assert FeatureFiles(model, folder=tmp_path / "cache").need(samples).missing == 1


def test_int8_takes_half_of_bfloat16_and_is_off_by_half_a_step(model: DehvfModel, samples: list[Sample], tmp_path: Path) -> None:
    whole, small = (FeatureFiles(model, dtype, tmp_path / "cache") for dtype in (None, torch.int8))
    whole.fill(samples)
    estimate = small.need(samples)
    assert estimate.missing == whole.need(samples).images, "a folder of its own"
    small.fill(samples)
    wide, narrow = whole.read(samples[0]), small.read(samples[0])
    step = wide.abs().amax(-1, keepdim=True) / 127
    assert narrow.dtype == torch.float32 and ((wide - narrow).abs() <= 0.501 * step).all() and not torch.equal(wide, narrow)
    size = small.file(samples[0]).stat().st_size
    assert size <= estimate.bytes_per_image and size - HEADER_BYTES <= wide.numel() * (1 + 4 / wide.shape[-1])


@pytest.mark.parametrize("cut", [0, 10, 600, -1])
def test_a_damaged_file_is_not_served(model: DehvfModel, samples: list[Sample], tmp_path: Path, cut: int) -> None:
    store = FeatureFiles(model, folder=tmp_path / "cache")
    store.fill(samples, batch_size=1)  # an encoder's last bits depend on how many pictures pass at once
    file = store.file(samples[0])
    whole = file.read_bytes()
    file.write_bytes(whole[:cut] if cut >= 0 else whole[:-1] + bytes([whole[-1] ^ 1]))
    fresh = FeatureFiles(model, folder=tmp_path / "cache")
    with pytest.raises(DataError, match="were damaged and have been removed"):
        fresh.read(samples[0])
    assert fresh.fill(samples, batch_size=1) == 1 and file.read_bytes() == whole


def test_the_longest_unused_make_room(model: DehvfModel, samples: list[Sample], tmp_path: Path) -> None:
    FeatureFiles(model, folder=tmp_path / "cache").fill(samples[:2])
    first = FeatureFiles(model, folder=tmp_path / "cache")  # marks nothing as needed
    size = first.need(samples).bytes_per_image
    os.utime(first.file(samples[0]), (1, 1))
    FeatureFiles(model, folder=tmp_path / "cache", limit=int(2.5 * size)).fill(samples[1:3])
    assert not first.file(samples[0]).exists() and first.file(samples[1]).exists()
    with pytest.raises(DataError, match="training.cache_limit_gib"):
        FeatureFiles(model, folder=tmp_path / "cache", limit=int(2.5 * size)).fill(samples)
    assert first.file(samples[1]).exists(), "what this run needs stays"


def test_what_a_kill_left_behind_is_taken_away_in_time(model: DehvfModel, samples: list[Sample], tmp_path: Path) -> None:
    store = FeatureFiles(model, folder=tmp_path / "cache")
    store.fill(samples)
    old, new = (store.file(samples[0]).with_name(f"{name}{TEMPORARY}") for name in ("old", "new"))
    for file in (old, new):
        file.write_bytes(b"half")
    os.utime(old, (1, 1))
    store.fill(samples)
    assert not old.exists() and new.exists(), "another process may be writing the new one"


def fill(model: DehvfModel, samples: list[Sample], folder: Path) -> None:
    torch.set_num_threads(1)
    FeatureFiles(model, folder=folder).fill(samples, batch_size=1)


@pytest.fixture
def many(tmp_path: Path) -> list[Sample]:
    found = []
    for number in range(60):
        picture = tmp_path / f"many{number}.png"
        Image.new("RGB", (40, 40), (number, 255 - number, 7)).save(picture)
        found.append(Sample(str(number), "q", "a", picture))
    return found


def test_two_processes_fill_one_folder_and_a_kill_leaves_it_whole(model: DehvfModel, many: list[Sample], tmp_path: Path) -> None:
    fork = multiprocessing.get_context("fork")
    workers = [fork.Process(target=fill, args=(model, many, tmp_path / "cache")) for _ in range(2)]
    for worker in workers:
        worker.start()
    store = FeatureFiles(model, folder=tmp_path / "cache")
    deadline = time.monotonic() + 60
    while not len(store) and time.monotonic() < deadline:
        time.sleep(0.002)
    os.kill(workers[0].pid, signal.SIGKILL)
    for worker in workers:
        worker.join(60)
    assert workers[1].exitcode == 0
    reference = FeatureFiles(model, folder=tmp_path / "other")
    reference.fill(many, batch_size=1)
    assert len(store) == 60
    for sample in many:
        assert torch.equal(store.read(sample), reference.read(sample))


def test_a_folder_that_cannot_be_written_is_said(model: DehvfModel, samples: list[Sample], tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(DataError, match="training.cache_folder"):
        FeatureFiles(model, folder=tmp_path / "cache").fill(samples)


@contextlib.contextmanager
def read_only(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As a folder of a file system that is mounted read-only; permissions would not stop root."""
    refused = OSError(errno.EROFS, os.strerror(errno.EROFS))

    def guarded(function, writes):
        def call(path, *arguments, **options):
            if not isinstance(path, int) and Path(path).is_relative_to(folder) and writes(*arguments):
                raise refused
            return function(path, *arguments, **options)

        return call

    with monkeypatch.context() as patch:
        for name in ("utime", "unlink", "replace", "rename", "mkdir"):
            patch.setattr(os, name, guarded(getattr(os, name), lambda *_: True))
        patch.setattr(os, "open", guarded(os.open, lambda flags, *_: flags & (os.O_WRONLY | os.O_RDWR)))
        patch.setattr(io, "open", guarded(io.open, lambda mode="r", *_: set(mode) & set("wax+")))
        yield


def test_a_read_only_folder_serves_what_it_holds(model, samples, tmp_path: Path, monkeypatch) -> None:
    folder = tmp_path / "cache"
    filled = FeatureFiles(model, folder=folder)
    filled.fill(samples[:2])
    size = filled.file(samples[0]).stat().st_size
    before = sorted(os.listdir(folder))
    with read_only(folder, monkeypatch):
        store = FeatureFiles(model, folder=folder, limit=size)  # a limit below what is there: nothing will be written
        assert store.fill(samples[:2]) == 0
        assert torch.equal(store.read(samples[1]), filled.read(samples[1]))
        monkeypatch.setattr(type(store), "_row", None)  # computing features would fail
        with pytest.raises(DataError, match="cannot be written: Read-only .* missing there: 1; name another folder"):
            store.fill(samples)
    assert sorted(os.listdir(folder)) == before


def test_a_damaged_file_in_a_read_only_folder_is_said(model, samples, tmp_path: Path, monkeypatch) -> None:
    store = FeatureFiles(model, folder=tmp_path / "cache")
    store.fill(samples[:1])
    store.file(samples[0]).write_bytes(b"cut")
    with read_only(tmp_path / "cache", monkeypatch), pytest.raises(DataError, match="damaged and cannot be removed .*Read-only"):
        store.read(samples[0])


@pytest.mark.nightly
@pytest.mark.skipif(not shutil.which("unshare"), reason="no unshare, which mounts for one process")
def test_a_folder_that_is_mounted_read_only_serves(model, samples, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    FeatureFiles(model, folder=folder).fill(samples[:2])
    mount = f"mount --bind {folder} {folder} && mount -o remount,ro,bind {folder}"
    if subprocess.run(["unshare", "-rm", "sh", "-c", mount], capture_output=True).returncode:
        pytest.skip("this user may not mount anything")
    here = Path(__file__)
    code = f"""
import sys, pathlib
sys.path[:0] = [{str(here.parent)!r}, {str(here.parents[1])!r}]
import test_feature_files as own
samples = [own.Sample(str(n), "q", "a", pathlib.Path({str(tmp_path)!r}) / f"{{n}}.png") for n in range(3)]
store = own.FeatureFiles(own.make_model(), folder=pathlib.Path({str(folder)!r}))
assert store.fill(samples[:2]) == 0 and store.read(samples[0]).isfinite().all()
store.fill(samples)
"""
    command = ["unshare", "-rm", "sh", "-c", f"{mount} && exec {sys.executable} -c {shlex.quote(code)}"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert "DataError" in result.stderr and "cannot be written: Read-only file system; images" in result.stderr


def test_a_trained_encoder_is_refused(samples: list[Sample], tmp_path: Path) -> None:
    model = tiny_model()
    with pytest.raises(DataError, match="vision adapter is trained"):
        FeatureFiles(model, folder=tmp_path)


def test_worker_processes_take_the_store_without_its_model(model: DehvfModel, tmp_path: Path) -> None:
    assert FeatureFiles(model, folder=tmp_path).__getstate__()["model"] is None


def test_two_runs_under_one_limit_do_not_take_each_others_features(model, samples, tmp_path: Path) -> None:
    first = FeatureFiles(model, folder=tmp_path / "cache")
    first.fill(samples[:2])
    limit = int(2.5 * first.file(samples[0]).stat().st_size)
    second = FeatureFiles(model, folder=tmp_path / "cache", limit=limit)
    with pytest.raises(DataError, match="MiB of it for runs that are going on, training.cache_limit_gib"):
        second.fill(samples[2:3])
    assert all(first.read(sample) is not None for sample in samples[:2])
    del second
    second = FeatureFiles(model, folder=tmp_path / "cache", limit=limit)
    second.fill(samples[1:2])
    del first
    third = FeatureFiles(model, folder=tmp_path / "cache", limit=limit)
    third.fill(samples[2:3])
    assert [third.file(sample).exists() for sample in samples[:3]] == [False, True, True]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a process is forked and killed")
def test_a_killed_run_protects_nothing(model, samples, tmp_path: Path) -> None:
    child = os.fork()
    if not child:
        store = FeatureFiles(model, folder=tmp_path / "cache")
        store.fill(samples[:2])
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    assert list((tmp_path / "cache").glob("in-use-*"))
    store = FeatureFiles(model, folder=tmp_path / "cache")
    store.limit = int(2.5 * store.file(samples[0]).stat().st_size)
    store.fill(samples[1:3])
    assert [store.file(sample).exists() for sample in samples[:3]] == [False, True, True]
    assert len(list((tmp_path / "cache").glob("in-use-*"))) == 1, "its list is gone"
