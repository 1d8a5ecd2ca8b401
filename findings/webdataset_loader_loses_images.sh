#!/usr/bin/env bash
# datasets' WebDataset loader decides the columns from the first five samples; later .jpg images in a .png shard become None.
#
# Versions: datasets 5.2.0, webdataset 1.0.2, pillow 12.3.0, Python 3.11.
# Surprise: load_dataset("webdataset") reads five samples and keeps just their file endings as columns. From the sixth sample
#   on, a file with another ending is dropped without a message: the image of `6.jpg` is lost, and its column is None. The same
#   mixture among the first five raises an error. The webdataset library itself reads all of it. The two also differ in case:
#   `1.PNG` is field "png" in webdataset and column "PNG" in datasets.
# Who meets it: shards packed from the web hold .jpg, .jpeg and .png in one tar. Code that skips empty rows trains on a part of
#   the data, and reports that as normal.
# Workaround: write one ending for all images when packing, or read with webdataset and `rename(image="jpg;jpeg;png")`.
# Output when written (2026-11-29):
#   datasets:   8 samples, 5 with an image, columns __key__, __url__, png, txt
#   webdataset: 8 samples, 8 with an image
#   first five mixed: ValueError
#   1.PNG: datasets has column PNG, webdataset field png
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3.11 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --no-compile datasets==5.2.0 webdataset==1.0.2 pillow==12.3.0 numpy==2.4.6
cd "$folder"
HF_HOME="$folder/cache" "$folder/venv/bin/python" - <<'PYTHON'
import io
import tarfile
from importlib.metadata import version

import datasets
import webdataset
from datasets import load_dataset
from PIL import Image

print("datasets", datasets.__version__, "webdataset", version("webdataset"))
datasets.disable_progress_bars()


def image(kind):
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, kind)
    return buffer.getvalue()


def shard(path, endings):
    with tarfile.open(path, "w") as tar:
        for number, ending in enumerate(endings, 1):
            kind = "JPEG" if ending.lower() == "jpg" else "PNG"
            for name, data in ((f"{number}.{ending}", image(kind)), (f"{number}.txt", b"a caption")):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return path


def both(path):
    table = load_dataset("webdataset", data_files=path, split="train")
    return table, list(webdataset.WebDataset(path, shardshuffle=False))


table, samples = both(shard("late.tar", ["png"] * 5 + ["jpg"] * 3))
kept = sum(row["png"] is not None for row in table)
read = sum("png" in sample or "jpg" in sample for sample in samples)
print(f"datasets:   {len(table)} samples, {kept} with an image, columns {', '.join(sorted(table.column_names))}")
print(f"webdataset: {len(samples)} samples, {read} with an image")
assert (len(table), kept, len(samples), read) == (8, 5, 8, 8) and "jpg" not in table.column_names

try:
    load_dataset("webdataset", data_files=shard("early.tar", ["png", "jpg"]), split="train")
except ValueError as error:
    print("first five mixed:", type(error).__name__)
else:
    raise SystemExit("a mixture in the first five samples no longer raises")

table, samples = both(shard("case.tar", ["PNG"]))
print(f"1.PNG: datasets has column {[c for c in table.column_names if c.lower() == 'png'][0]}, webdataset field png")
assert "PNG" in table.column_names and "png" in samples[0]
PYTHON
