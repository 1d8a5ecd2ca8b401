"""Tar shards as webdataset 1.0.2 and datasets 5.2 group them, and what is wrong with damaged ones."""

from __future__ import annotations

import bz2
import gzip
import lzma
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from data.shards import ROW, picture, sample, tar
from dehvf_kit_streams.stream import StreamDataConfig
from dehvf_kit_streams.tar_shards import tar_rows

from dehvf_kit.data.samples import Issue
from dehvf_kit.errors import DataError


def read(path: Path, issues: list[Issue] | None = None, **settings: str) -> dict[str, tuple[dict[str, Any], bytes | None]]:
    """Rows and image bytes by key."""
    return {
        row.pop("__key__"): (row, image.read_bytes() if image else None) for _, row, image in tar_rows(path, issues, **settings)
    }


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    return tmp_path / "x.tar"


def test_the_rest_after_the_first_dot_is_the_field(shard: Path) -> None:
    depth = picture("black")
    members = [
        ("a.b/0001.depth.png", depth),
        ("a.b/0001.meta.json", b"[1]"),
        ("a.b/0001.TXT", b" hello \n"),
        ("a.b/0001.cls", b"3"),
        *sample("a.b/0001"),
        ("c/0001.json", ROW),
    ]
    shard.write_bytes(tar(*members))
    issues: list[Issue] = []
    found = read(shard, issues)
    assert list(found) == ["a.b/0001", "c/0001"], "folders belong to the key, their dots do not end it"
    row, image = found["a.b/0001"]
    assert row == {"question": "what ?", "answer": "red", "meta.json": [1], "txt": "hello", "cls": "3"}
    assert image == picture("red"), "not the depth map that comes first"
    assert [(str(issue), issue.fatal) for issue in issues] == [(f"{shard}:*.depth.png (1 member)", False)]
    assert read(shard, image="depth.png")["a.b/0001"][1] == depth


def test_samples_are_grouped_as_datasets_does(shard: Path, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    members = [
        (".DS_Store", b"x"),
        ("p/._0001.json", b"\0\5\x16\7"),
        *sample("p/0001"),
        ("p/._0002.png", b"\0\5\x16\7"),
        *sample("p/0002"),
        ("__MACOSX/p/._0002.png", b"\0\5"),
        *sample("q.r/0001"),
        ("README", b"read me"),
    ]
    shard.write_bytes(tar(*members))
    with tarfile.open(shard, "a") as archive:
        folder = tarfile.TarInfo("empty.folder")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
    table = datasets.load_dataset(
        "webdataset", data_files=str(shard), split="train", streaming=True, cache_dir=str(tmp_path / "cache")
    )
    theirs = {row["__key__"]: row["json"] for row in table.cast_column("png", datasets.Image(decode=False))}
    issues: list[Issue] = []
    assert {key: row for key, (row, _) in read(shard, issues).items()} == theirs
    assert [str(issue) for issue in issues] == [f"{shard}:* without an ending (1 member)"]


@pytest.mark.parametrize(
    ("members", "message"),
    [
        (sample("1") + sample("1"), r"x\.tar:1: has two members \.(json|png)"),
        ([*sample("1"), ("1.PNG", picture("blue"))], r"has two members \.png"),
        ([*sample("1"), ("1.jpg", picture("blue"))], r"has the images \.jpg, \.png; name one by data\.columns\.image"),
        ([("1.json", ROW), ("1.left.png", b""), ("1.right.png", b"")], r"has the images \.left\.png, \.right\.png"),
        ([("1.json", ROW[:-1] + b', "image": "a.png"}')], "names the image 'a.png', but the shard has none beside it"),
        ([("1.json", ROW), ("2.json", ROW), ("1.png", picture("red"))], "stands twice in its shard"),
        (sample("1", json=ROW[:-1] + b', "score": NaN}'), r"1: \.json: NaN is no number"),
        (sample("1", json=ROW[:-1] + b', "answer": "blue"}'), r"1: \.json: key 'answer' stands twice"),
        (sample("1", json=ROW[:-1] + b', "txt": "a"}', txt=b"b"), "has two values of 'txt'"),
        (sample("1", json=b"[]"), "wants a JSON object, this is list"),
        (sample("1", txt=b"\xff"), r"\.txt: not UTF-8"),
    ],
)
def test_a_sample_that_contradicts_itself(shard: Path, members: list[tuple[str, bytes]], message: str) -> None:
    shard.write_bytes(tar(*sample("0"), *members, *sample("9")))
    with pytest.raises(DataError, match=message):
        read(shard)
    issues: list[Issue] = []
    found = read(shard, issues)
    assert {"0", "9"} <= set(found), "the others are read"
    assert [issue.kind for issue in issues if issue.fatal] == ["faulty member"]


def config(*files: Path, **settings: Any) -> StreamDataConfig:
    return StreamDataConfig(train=[str(file) for file in files], size=9, **settings)


def cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


SHARD = tar(*(member for key in range(9) for member in sample(str(key))))
FLIPPED = bytearray(gzip.compress(SHARD))
FLIPPED[len(FLIPPED) // 2] ^= 0xFF
DAMAGED = {
    "cut in a member": ("x.tar", SHARD[: 512 * 18 + 600], "cannot be read as a tar file beyond '"),
    "cut between members": ("x.tar", SHARD[: 512 * 16], "there is no end mark"),
    "gzip cut": ("x.tar.gz", cut(gzip.compress(SHARD)), "cannot be read as a tar file beyond '"),
    "gzip damaged": ("x.tgz", bytes(FLIPPED), "cannot be read as a tar file"),
    "joined": ("x.tar", SHARD + tar(*sample("10")), "more follows its end mark"),
    "joined gzips": ("x.tar.gz", gzip.compress(SHARD) + gzip.compress(tar(*sample("10"))), "more follows its end mark"),
    "no tar": ("x.tar", b"no tar", "cannot be read as a tar file"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_shard_is_named_or_skipped(tmp_path: Path, case: str) -> None:
    name, data, message = DAMAGED[case]
    (tmp_path / name).write_bytes(data)
    (tmp_path / "next.tar").write_bytes(tar(*sample("11")))
    with pytest.raises(DataError, match=message) as caught:
        config(tmp_path / name).samples("train")
    assert str(tmp_path / name) in str(caught.value)
    reading = config(tmp_path / name, tmp_path / "next.tar", on_bad_sample="skip").usable("train")
    keys = [one.id for one in reading.samples]
    assert keys == [str(key) for key in range(len(keys) - 1)] + ["11"], "what is whole is read, and the next shard"
    assert len(keys) == 10 or "joined" not in case
    assert all(one.image is not None for one in reading.samples), "none of which half is missing"
    assert [(issue.kind, issue.place, issue.fatal) for issue in reading.issues] == [("damaged shard", str(tmp_path / name), True)]


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress])
def test_no_sample_of_damaged_compressed_content_is_used(tmp_path: Path, compress: Callable[[bytes], bytes]) -> None:
    """The checksum comes after the samples; without it a changed letter is as good as any other."""
    data = bytearray(compress(SHARD))
    data[-8 if compress is gzip.compress else len(data) // 2] ^= 0xFF
    (tmp_path / "x.tar").write_bytes(data)
    reading = StreamDataConfig(train=str(tmp_path / "x.tar"), size=1, on_bad_sample="skip").usable("train")
    assert not reading.samples and [issue.kind for issue in reading.issues] == ["damaged shard"]
    assert compress is not gzip.compress or "none of it is read" in reading.issues[0].detail
