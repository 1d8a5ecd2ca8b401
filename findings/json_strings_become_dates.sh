#!/usr/bin/env bash
# datasets rewrites JSON strings that look like a date, even in a column declared as string.
#
# Versions: datasets 5.2.0, pyarrow 26.0.1, Python 3.11.
# Surprise: load_dataset("json") looks into JSON *strings*. A file (or block of a file) whose answers all are dates becomes a
#   timestamp column; joined with other files, "2021-05-01" comes back as the text "2021-05-01 00:00:00", and with the files in
#   the opposite order loading raises. features= with Value("string") does not help: the text is still rewritten. Numbers fare
#   alike without features=: after a file with a bare 3, the string "007" becomes 7.
# Who meets it: question answering on documents, receipts and book covers, in shards. The exact match of a date falls to 0
#   because the reference answer is no longer what the file says; only dates in blocks of their own are hit.
# Workaround: read the lines yourself: Dataset.from_list([json.loads(line) for line in file]).
# Output when written (2026-11-29):
#   dates alone                [datetime.datetime(2021, 5, 1, 0, 0)]
#   other, then date           ['no', '2021-05-01 00:00:00']
#   date, then other           DatasetGenerationError
#   declared as string         ['no', '2021-05-01 00:00:00']
#   declared, with a time      ['2021-05-01 10:00:00']  (the file has 2021-05-01T10:00:00Z)
#   date and other in one file ['2021-05-01', 'no']
#   3, then "007"              [3, 7]
#   Dataset.from_list          ['no', '2021-05-01']
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3.11 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --no-compile datasets==5.2.0 pyarrow==26.0.1 numpy==2.4.6
cd "$folder"
HF_HOME="$folder/cache" "$folder/venv/bin/python" - <<'PYTHON'
import datetime
import json
import logging

import datasets
from datasets import Dataset, Features, Value, load_dataset
from datasets.exceptions import DatasetGenerationError

print("datasets", datasets.__version__)
datasets.disable_progress_bars()
logging.disable(logging.CRITICAL)
count = 0


def loaded(title, *files, features=None):
    """The answers as load_dataset returns them; each file is a list of answers."""
    global count
    paths = []
    for answers in files:
        count += 1
        paths.append(f"{count}.jsonl")
        with open(paths[-1], "w") as file:
            file.writelines(json.dumps({"answer": answer}) + "\n" for answer in answers)
    try:
        found = list(load_dataset("json", data_files=paths, split="train", features=features)["answer"])
    except DatasetGenerationError as error:
        found = type(error).__name__
    print(f"{title:26} {found}")
    return found


text = Features({"answer": Value("string")})
assert loaded("dates alone", ["2021-05-01"]) == [datetime.datetime(2021, 5, 1)]
assert loaded("other, then date", ["no"], ["2021-05-01"]) == ["no", "2021-05-01 00:00:00"]
assert loaded("date, then other", ["2021-05-01"], ["no"]) == "DatasetGenerationError"
assert loaded("declared as string", ["no"], ["2021-05-01"], features=text) == ["no", "2021-05-01 00:00:00"]
assert loaded("declared, with a time", ["2021-05-01T10:00:00Z"], features=text) == ["2021-05-01 10:00:00"]
assert loaded("date and other in one file", ["2021-05-01", "no"]) == ["2021-05-01", "no"]
assert loaded('3, then "007"', [3], ["007"]) == [3, 7]

lines = ['{"answer": "no"}', '{"answer": "2021-05-01"}']
kept = list(Dataset.from_list([json.loads(line) for line in lines])["answer"])
print(f"{'Dataset.from_list':26} {kept}")
assert kept == ["no", "2021-05-01"]
PYTHON
