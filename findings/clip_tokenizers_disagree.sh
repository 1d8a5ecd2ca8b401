#!/usr/bin/env bash
# open_clip's and transformers' CLIP tokenizers give different tokens for text with typographic quotes or HTML entities.
#
# Versions: open_clip_torch 3.2.0, transformers 5.23.0, torch 2.13.0, ftfy 6.3.1, Python 3.11; one vocabulary, one merge list.
# Surprise: open_clip repairs text with ftfy and unescapes HTML first, as CLIP's training did; transformers' CLIPTokenizer does
#   neither (it only normalises to NFC and lower case), so the same caption gets other tokens, and other features.
# Who meets it: captions and alt texts from the web or from a word processor: the curly apostrophe in "don't" is enough.
#   Image-text scores computed with transformers then differ from published ones made with open_clip.
# Workaround: text = html.unescape(html.unescape(ftfy.fix_text(text))) before transformers' tokenizer.
# Output when written (2026-11-29):
#   plain               same
#   curly apostrophe    open_clip "don 't stop", transformers "don ’ t stop"
#   HTML entity         open_clip "black & white cat", transformers "black & amp ; white cat"
#   full-width digit    open_clip "3 dogs", transformers "３ dogs"
#   after the workaround: same, same, same
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3.11 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --no-compile torch==2.13.0 torchvision==0.28.0 open_clip_torch==3.2.0 ftfy==6.3.1 \
  transformers==5.23.0 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import html
import json

import torch

if torch.version.cuda is None:  # PyPI's torchvision is built for CUDA torch; a CPU build lacks these names
    operators = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        operators.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

import ftfy
import open_clip
import transformers
from open_clip.tokenizer import SimpleTokenizer
from transformers import CLIPTokenizer

print("open_clip", open_clip.__version__, "transformers", transformers.__version__)
open_tokenizer = SimpleTokenizer()
names = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}  # the two differ in these names only
with open("vocab.json", "w") as file:
    json.dump({names.get(token, token): number for token, number in open_tokenizer.encoder.items()}, file)
with open("merges.txt", "w") as file:
    file.write("#version: 0.2\n")
    file.writelines(f"{left} {right}\n" for left, right in sorted(open_tokenizer.bpe_ranks, key=open_tokenizer.bpe_ranks.get))
hub_tokenizer = CLIPTokenizer(vocab="vocab.json", merges="merges.txt")


def tokens(text):
    """The token numbers of both, without start and end."""
    return open_tokenizer.encode(text), hub_tokenizer(text)["input_ids"][1:-1]


texts = {
    "plain": "a photo of a cat",
    "curly apostrophe": "don\u2019t stop",
    "HTML entity": "black &amp; white cat",
    "full-width digit": "\uff13 dogs",
}
for title, text in texts.items():
    left, right = tokens(text)
    shown = "same" if left == right else f'open_clip "{open_tokenizer.decode(left).strip()}", transformers "{hub_tokenizer.decode(right).strip()}"'
    print(f"{title:19} {shown}")
    assert (left == right) == (title == "plain")

cured = [left == right for left, right in (tokens(html.unescape(html.unescape(ftfy.fix_text(t)))) for t in texts.values())][1:]
print("after the workaround:", ", ".join("same" if same else "different" for same in cured))
assert all(cured)
PYTHON
