"""Data sets that are not believed."""

from __future__ import annotations

import gzip
import io
import json
import tarfile

from bad_files.ground import HANDLED, REFUSED, Case, Ground, Words, collector

DATA: list[Case] = []
case = collector("Data", DATA)
GOOD = '{"question": "what ?", "answer": "red"}\n'


def lines(ground: Ground, *content: str | bytes) -> Words:
    """JSON lines, each after a good one."""
    text = b"".join((GOOD.encode(), *(one.encode() if isinstance(one, str) else one for one in content)))
    return ["prepare", "--json", ground.write("a.jsonl", text)]


def row(**fields: object) -> str:
    return json.dumps({"question": "what ?", "answer": "red", **fields}) + "\n"


@case("a line cut in half", REFUSED, "a.jsonl:2 (not JSON: Unterminated string")
def cut(ground: Ground) -> Words:
    return lines(ground, '{"question": "wh')


@case("a line that is a list", REFUSED, "a line must be a JSON object, this one is list")
def listed(ground: Ground) -> Words:
    return lines(ground, "[1]\n")


@case("`NaN` in a line", REFUSED, "NaN is no number in JSON")
def nan(ground: Ground) -> Words:
    return lines(ground, '{"question": "what ?", "answer": "red", "score": NaN}\n')


@case("a number without end, `1e999`", REFUSED, "1e999 is too large a number")
def number(ground: Ground) -> Words:
    return lines(ground, '{"question": "what ?", "answer": "red", "score": 1e999}\n')


@case("a key twice in a line", REFUSED, "key 'answer' stands twice in one object; keep one")
def twice(ground: Ground) -> Words:
    return lines(ground, '{"question": "what ?", "answer": "red", "answer": "blue"}\n')


@case("an id twice", REFUSED, "id '7' appears twice")
def same_id(ground: Ground) -> Words:
    return lines(ground, row(id=7), row(id="7"))


@case("a list as id", REFUSED, "'id' must be a text or a number, given ['a']")
def list_id(ground: Ground) -> Words:
    return lines(ground, row(id=["a"]))


@case("lists in lists, 100,000 deep", REFUSED, "nested too deeply")
def deep(ground: Ground) -> Words:
    return lines(ground, '{"question": ' + "[" * 100_000 + "\n")


@case("half a character, `\\ud83d` alone", REFUSED, "holds half a character")
def half(ground: Ground) -> Words:
    return lines(ground, '{"question": "\\ud83d", "answer": "red"}\n')


@case("a null byte", REFUSED, "not JSON: Invalid control character")
def null(ground: Ground) -> Words:
    return lines(ground, b'{"question": "what\0", "answer": "red"}\n')


@case("Latin-1", REFUSED, "not UTF-8: invalid continuation byte at byte 14")
def latin(ground: Ground) -> Words:
    return lines(ground, '{"question": "é ?", "answer": "red"}\n'.encode("latin-1"))


@case("UTF-16", REFUSED, "a.jsonl:1 (not UTF-8")
def utf16(ground: Ground) -> Words:
    return ["prepare", "--json", ground.write("a.jsonl", GOOD.encode("utf-16"))]


@case("one line of 20 megabytes", REFUSED, "a line of more than 16,777,216 bytes; is this JSON lines?")
def long(ground: Ground) -> Words:
    return ["prepare", "--json", ground.write("a.jsonl", b" " * 20_000_000)]


@case("a byte order mark and Windows line ends", HANDLED, "no errors found")
def mark(ground: Ground) -> Words:
    return ["prepare", ground.write("a.jsonl", b"\xef\xbb\xbf" + GOOD.replace("\n", "\r\n").encode())]


@case("an image that is not there", REFUSED, "missing image")
def image_gone(ground: Ground) -> Words:
    return lines(ground, row(image="gone.png"))


@case("an image whose name holds a null character", REFUSED, "missing image")
def null_in_image_name(ground: Ground) -> Words:
    return lines(ground, row(image="a\0b.png"))


@case("an image whose name is 300 letters long", REFUSED, "missing image")
def long_image_name(ground: Ground) -> Words:
    return lines(ground, row(image="a" * 300))


@case("conversations cut in half", REFUSED, "talks.json:1: not JSON")
def talks(ground: Ground) -> Words:
    return ["prepare", "--json", ground.write("talks.json", '[{"conversations": [{"from": "human"')]


@case("a conversation of one turn", REFUSED, "wants `conversations`, turns of human and gpt in pairs")
def turn(ground: Ground) -> Words:
    return ["prepare", "--json", ground.write("talks.json", '[{"conversations": [{"from": "human", "value": "what ?"}]}]')]


@case("ScienceQA whose hint is a list", REFUSED, "hint is no text")
def hint(ground: Ground) -> Words:
    problem = {"question": "q", "choices": ["a", "b"], "answer": 0, "hint": ["x"], "subject": "natural science"}
    ground.write("sqa/problems.json", json.dumps({"1": {**problem, "grade": "grade2", "image": None}}))
    ground.write("sqa/pid_splits.json", '{"train": ["1"], "val": [], "test": []}')
    return ["prepare", "--json", ground.folder / "sqa"]


@case("a Parquet file that is a text", REFUSED, "cannot be read as a table", needs="datasets")
def parquet(ground: Ground) -> Words:
    return ["prepare", "--json", ground.write("a.parquet", "no table")]


@case("a recipe's data file that is a folder", REFUSED, "data.train: there is no file")
def folder(ground: Ground) -> Words:
    return ["data", ground.world / "tiny.yaml", f"data.train={ground.world}"]


def members(more: dict[str, bytes] | None = None) -> bytes:
    """A tar shard of two samples, and further members after the first."""
    data = io.BytesIO()
    names = {"a.json": GOOD.encode(), **(more or {}), "b.json": GOOD.encode()}
    with tarfile.open(fileobj=data, mode="w") as archive:
        for name, content in names.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return data.getvalue()


def shard(ground: Ground, content: bytes, name: str = "a.tar") -> Words:
    """A recipe that streams a shard."""
    recipe = ground.write(
        "r.yaml",
        f"extends: {ground.world}/tiny.yaml\n"
        f"data: {{type: stream, train: {ground.write(name, content)}, size: 2, text_only: true}}\n",
    )
    return ["prepare", "--json", recipe]


@case("a tar shard cut short", REFUSED, "cannot be read as a tar file")
def cut_shard(ground: Ground) -> Words:
    return shard(ground, members()[:700])


@case("a compressed shard cut in half", REFUSED, "Compressed file ended before the end-of-stream marker was reached")
def cut_gzip(ground: Ground) -> Words:
    whole = gzip.compress(members({"a.npy": bytes(range(256)) * 64}))
    return shard(ground, whole[: len(whole) // 2], "a.tar.gz")


@case("two shards joined by `cat`", REFUSED, "more follows its end mark, as where archives were joined")
def joined_shards(ground: Ground) -> Words:
    return shard(ground, members() + members())


@case("a shard with `NaN` in a `.json`", REFUSED, "NaN is no number in JSON")
def nan_shard(ground: Ground) -> Words:
    return shard(ground, members({"c.json": b'{"question": "what ?", "answer": "red", "score": NaN}'}))


@case("a shard with two images in one sample", REFUSED, "has the images .jpg, .png; name one by data.columns.image")
def two_images(ground: Ground) -> Words:
    return shard(ground, members({"a.png": b"", "a.jpg": b""}))


@case("a shard whose sample has a depth map alone", REFUSED, "has the images .depth.png; name one by data.columns.image")
def depth_shard(ground: Ground) -> Words:
    return shard(ground, members({"a.depth.png": b""}))


@case("a shard with the resource files of macOS (`._a.json`)", HANDLED, "no errors found")
def resource_files(ground: Ground) -> Words:
    words = shard(ground, members({"._a.json": b"\0\5\x16\7"}))
    return [word for word in words if word != "--json"]
