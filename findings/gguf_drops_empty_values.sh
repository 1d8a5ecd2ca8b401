#!/usr/bin/env bash
# GGUFWriter silently leaves out an empty list or an empty string: the key is missing from the file.
#
# Versions: gguf 0.19.0, numpy 2.4.6, Python 3.11.
# Surprise: add_array("x", []) and add_string("y", "") are accepted and write nothing, although both values are valid in a GGUF
#   file and 0 and False are written. A reader cannot tell "none" from "never stored".
# Who meets it: exporting an adapter or projector whose config has an optional list (layers, stop tokens) or text (prompt
#   prefix): `reader.get_field(key)` is None, and the reader's default, often "all layers", takes the place of "none".
# Workaround: store the whole config as one JSON string, which is never empty.
# Output when written (2026-11-29):
#   written: layers, no_layers, prefix, no_prefix, zero, false
#   read:    layers, prefix, zero, false
#   {"no_layers": []} as JSON reads back unchanged: True
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3.11 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --no-compile gguf==0.19.0 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import json
from importlib.metadata import version

from gguf import GGUFReader, GGUFWriter

print("gguf", version("gguf"))
config = json.dumps({"no_layers": []})
writer = GGUFWriter("adapter.gguf", "adapter")
writer.add_array("layers", [1, 2])
writer.add_array("no_layers", [])
writer.add_string("prefix", "Question:")
writer.add_string("no_prefix", "")
writer.add_uint32("zero", 0)
writer.add_bool("false", False)
writer.add_string("config", config)
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()

reader = GGUFReader("adapter.gguf")
written = ["layers", "no_layers", "prefix", "no_prefix", "zero", "false"]
found = [name for name in written if reader.get_field(name) is not None]
print("written:", ", ".join(written))
print("read:   ", ", ".join(found))
assert found == ["layers", "prefix", "zero", "false"]
whole = reader.get_field("config").contents()
print(config, "as JSON reads back unchanged:", whole == config)
assert whole == config
PYTHON
