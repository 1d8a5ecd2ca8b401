"""Mutated records of runs, resumed otherwise than they were begun, and mutated shards of a stream."""

from __future__ import annotations

import bz2
import copy
import gzip
import json
import lzma
from pathlib import Path

import pytest
from data.shards import ROW, picture, sample, tar
from dehvf_kit_streams.stream import StreamDataConfig
from fuzz.mutations import TEXT_CHANGES, cut
from fuzz.settings import share
from hypothesis import given
from hypothesis import strategies as st
from training.conftest import tokenizer, world  # noqa: F401 - fixtures

import dehvf_kit
from dehvf_kit.errors import DataError, TrainingError
from dehvf_kit.training.run_folder import RECORD, compare_records, record_of, write_record

pytestmark = pytest.mark.scaled
COMPRESS = {".tar": bytes, ".tar.gz": gzip.compress, ".tar.bz2": bz2.compress, ".tar.xz": lzma.compress}
SMALL = st.integers(1, 4)


@pytest.fixture(scope="module")
def begun(world: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:  # noqa: F811
    recipe = dehvf_kit.load_recipe(world / "tiny.yaml", ["training.max_steps=24"])
    return tmp_path_factory.mktemp("begun"), record_of(recipe, [])


def situation(record: dict, processes: int, batch: int, accumulated: int, steps: int, code: str) -> dict:
    made = copy.deepcopy(record)
    training = made["recipe"]["training"]
    training |= {"batch_size": batch, "gradient_accumulation": accumulated, "max_steps": steps}
    made["batch"] = {"processes": processes, "samples_per_step": processes * batch * accumulated}
    made["code"]["dehvf-kit"] = code
    return made


SITUATIONS = st.tuples(SMALL, SMALL, SMALL, st.sampled_from([24, 25, 2**31 - 1]), st.sampled_from(["a", "b"]))


@share(0.05)
@given(before=SITUATIONS, after=SITUATIONS)
def test_a_run_goes_on_only_with_the_same_samples_in_each_step(begun, before, after) -> None:
    folder, record = begun
    then, now = situation(record, *before), situation(record, *after)
    write_record(folder, then)
    same_batch = then["batch"]["samples_per_step"] == now["batch"]["samples_per_step"]
    try:
        notes = compare_records(folder, now)
    except TrainingError as error:
        assert ("samples per step" in str(error)) == (not same_batch)
        assert ("training.max_steps" in str(error)) == (before[3] != after[3])
        assert not same_batch or before[3] != after[3]
    else:
        assert same_batch and before[3] == after[3]
        assert any(note.startswith("processes: ") for note in notes) == (before[0] != after[0])
        assert any(note.startswith("the code of dehvf-kit") for note in notes) == (before[4] != after[4])


@share(0.05)
@given(changes=TEXT_CHANGES)
def test_a_damaged_record_is_named(begun, changes) -> None:
    folder, record = begun
    write_record(folder, record)
    (folder / RECORD).write_bytes(cut((folder / RECORD).read_bytes(), changes))
    try:
        compare_records(folder, json.loads(json.dumps(record, default=str)))
    except TrainingError as error:
        assert str(folder) in str(error) and str(error).strip()


@share(0.05)
@given(ending=st.sampled_from(sorted(COMPRESS)), changes=TEXT_CHANGES, skip=st.booleans())
def test_a_damaged_shard_is_named_or_skipped(tmp_path_factory, ending, changes, skip) -> None:
    whole = tar(*(member for number in range(4) for member in sample(f"s{number}", json=ROW, png=picture("red"))))
    shard = tmp_path_factory.mktemp("stream") / f"a{ending}"
    shard.write_bytes(cut(COMPRESS[ending](whole), changes))
    data = StreamDataConfig(train=[str(shard)], size=4, shuffle=1, on_bad_sample="skip" if skip else "error")
    try:
        reading = data.usable("train")
    except DataError as error:
        assert shard.name in str(error), error
        return
    assert all(one.question and one.answer for one in reading.samples)
    assert len(reading.samples) >= 4 or reading.issues or "line twice" in str(changes), "samples lost in silence"
