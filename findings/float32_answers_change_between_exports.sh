#!/usr/bin/env bash
# One float32 column of answers becomes three different texts, depending on the library that writes the JSON lines.
#
# Versions: pandas 3.1.1, polars 2.1.0, duckdb 2.0.1, pyarrow 26.0.1, Python 3.11.
# Surprise: the float32 nearest to 0.1 is printed as 0.1 by polars, as 0.1000000015 by pandas (to_json keeps ten decimals) and as
#   0.10000000149011612 by duckdb (widened to a double), all from the same Parquet file. pandas' text, read back
#   as JSON numbers are (a double), is none of the others' numbers.
# Who meets it: whoever exports numeric answers (chart or document questions, counts, prices) for a language model: exact match
#   then compares "0.1" with "0.10000000149011612", and the same data set scores differently by the tool that wrote it.
# Workaround: store answers as text, or cast to float64 and round before writing.
# Output when written (2026-11-29):
#   pandas 3.1.1: {"answer":0.1000000015}
#   polars 2.1.0: {"answer":0.1}
#   duckdb 2.0.1: {"answer":0.10000000149011612}
#   pandas' text read back as a double equals the stored value: False; as a float32: True
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3.11 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --no-compile pandas==3.1.1 polars==2.1.0 duckdb==2.0.1 pyarrow==26.0.1
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import json
from importlib.metadata import version

import duckdb
import numpy
import pandas
import polars
import pyarrow
import pyarrow.parquet

pyarrow.parquet.write_table(pyarrow.table({"answer": pyarrow.array([0.1, 2.5], pyarrow.float32())}), "answers.parquet")
pandas.read_parquet("answers.parquet").to_json("pandas.jsonl", orient="records", lines=True)
polars.read_parquet("answers.parquet").write_ndjson("polars.jsonl")
duckdb.sql("COPY (SELECT * FROM 'answers.parquet') TO 'duckdb.jsonl' (FORMAT json)")
found = {}
for tool in ("pandas", "polars", "duckdb"):
    with open(f"{tool}.jsonl") as opened:
        found[tool] = opened.readline().strip()
    print(f"{tool} {version(tool)}: {found[tool]}")
back = json.loads(found["pandas"])["answer"]
same = numpy.float32(back) == numpy.float32(0.1)
print(f"pandas' text read back as a double equals the stored value: {back == float(numpy.float32(0.1))}; as a float32: {same}")
texts = {tool: line.split(":")[1].strip(" }") for tool, line in found.items()}
assert texts == {"pandas": "0.1000000015", "polars": "0.1", "duckdb": "0.10000000149011612"}, texts
PYTHON
