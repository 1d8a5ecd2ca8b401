"""One image per row gives the bits that the kit gave before rows could have several: the old code is run beside the new."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BEFORE = "da588fc"
SCRIPT = """
import hashlib, sys, torch
from helpers import MIXED, pixels, tiny_model, tokens
import dehvf_kit
assert dehvf_kit.__file__.startswith(sys.argv[1]), dehvf_kit.__file__
torch.set_num_threads(1)
def said(name, tensor):
    print("bits", form, name, hashlib.sha256(tensor.detach().contiguous().numpy().tobytes()).hexdigest())
for form in ("factored", "built", "auto"):
    model, text, images = tiny_model(graph={"injector": {"form": form}}), tokens(3), pixels()
    said("one each", model(text, pixel_values=images).logits)
    said("some have none", model(text, pixel_values=images, has_image=MIXED).logits)
    said("none", model(text).logits)
    said("shared", model(text, pixel_values=images[:2], image_index=torch.tensor([1, 0, 1])).logits)
    said("beams", model.generate(text, pixel_values=images, max_new_tokens=4, num_beams=2, do_sample=False))
    model.train()
    model(text, labels=text, pixel_values=images, has_image=MIXED).loss.backward()
    said("gradients", torch.cat([parameter.grad.flatten() for parameter in model.trainable_parameters()]))
"""


def bits(place: Path) -> list[str]:
    ways = os.pathsep.join([str(place), str(place / "tests")])
    ran = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(place)],
        cwd=place, env={**os.environ, "PYTHONPATH": ways, "HF_HUB_OFFLINE": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr[-2000:]
    return [line for line in ran.stdout.splitlines() if line.startswith("bits ")]


@pytest.mark.nightly
def test_one_image_a_row_is_bit_identical_to_the_kit_before_several(tmp_path: Path) -> None:
    found = subprocess.run(["git", "archive", BEFORE, "dehvf_kit", "tests"], cwd=ROOT, capture_output=True)
    if found.returncode:
        pytest.skip(f"this copy of the repository has no commit {BEFORE} to compare with")
    with tarfile.open(fileobj=io.BytesIO(found.stdout)) as archive:
        archive.extractall(tmp_path, filter="data")
    before, now = bits(tmp_path), bits(ROOT)
    assert before == now and len(now) == 18
