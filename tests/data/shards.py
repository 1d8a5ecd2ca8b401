"""Tar shards and Parquet files, made by tests."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

from PIL import Image

ROW = b'{"question": "what ?", "answer": "red"}'


def picture(colour: str) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (4, 4), colour).save(data, "PNG")
    return data.getvalue()


def tar(*members: tuple[str, bytes]) -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as archive:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return data.getvalue()


def sample(key: str, **fields: bytes) -> list[tuple[str, bytes]]:
    return [(f"{key}.{name}", content) for name, content in {"json": ROW, "png": picture("red"), **fields}.items()]


def rows(world: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (world / "train.jsonl").read_text().splitlines()]


def add(archive: tarfile.TarFile, name: str, data: bytes, **fields: Any) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    for field, value in fields.items():
        setattr(member, field, value)
    archive.addfile(member, io.BytesIO(data))


def shard(path: Path, world: Path, some: list[dict[str, Any]]) -> Path:
    with tarfile.open(path, "w") as archive:
        for row in some:
            facts = {key: row[key] for key in ("question", "answer", "kind")}
            add(archive, f"part/{row['id']}.json", json.dumps(facts).encode())
            add(archive, f"part/{row['id']}.png", (world / row["image"]).read_bytes())
    return path


def parquet(path: Path, world: Path, some: list[dict[str, Any]]) -> Path:
    import pyarrow as pa
    from pyarrow import parquet as format

    held = [{**row, "image": {"bytes": (world / row["image"]).read_bytes(), "path": None}} for row in some]
    format.write_table(pa.Table.from_pylist(held), path)
    return path
