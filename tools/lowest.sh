#!/bin/sh
# The lowest versions that pyproject.toml allows (constraints-lowest.txt): install them, and run tests that reach every part.
#   sh tools/lowest.sh [ENVIRONMENT]     PYTHON names the interpreter of a new environment
set -eu
cd "$(dirname "$0")/.."
environment=${1:-.venv-lowest}
if [ ! -x "$environment/bin/python" ]; then
    "${PYTHON:-python3.11}" -m venv "$environment"
    "$environment/bin/python" -m pip install --quiet -c constraints-lowest.txt '.[train]' pytest jsonschema hypothesis matplotlib \
        datasets
    "$environment/bin/python" -m pip install --quiet --no-deps plugins/*/  # the kit's own types that recipes of the tests name
fi
"$environment/bin/python" - <<'END'
import importlib.metadata, platform, re
print("Python", platform.python_version())
for line in open("constraints-lowest.txt"):
    if pin := re.match(r"([\w-]+)==(\S+)", line):
        installed = importlib.metadata.version(pin[1])
        print(pin[1], installed)
        assert installed == pin[2], f"{pin[1]}: wants {pin[2]}"
END
PYTHONPATH=. OMP_NUM_THREADS=1 "$environment/bin/python" -m pytest -q -p no:cacheprovider -m "not nightly" \
    tests/ops tests/model tests/recipe tests/components tests/adapter/test_checkpoint.py tests/training/test_trainer.py
