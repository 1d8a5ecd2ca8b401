#!/usr/bin/env bash
# timm's evaluation transform cuts the border off images for OpenAI CLIP B/16 and B/32 and for SigLIP, but not for CLIP L/14.
#
# Versions: timm 1.0.31, transformers 5.23.0, torch 2.13.0, torchvision 0.28.0, Python 3.11 (configs only, no weights).
# Surprise: the pretrained configs of vit_base_patch16_clip_224.openai, its patch32 sister and the SigLIP models keep timm's
#   default crop_pct 0.9: the image is resized to 248 and the middle 224 kept, which cuts 5 % off every edge. CLIP itself, its
#   transformers processor and timm's own vit_large_patch14_clip_224.openai resize to 224 and lose nothing of a square image.
# Who meets it: a recipe that takes the mean and std from timm (they do match) and trusts the rest, or compares a timm with
#   a transformers encoder of one checkpoint: text and objects at the border are missing from the former.
# Workaround: resolve_data_config({"crop_pct": 1.0}, pretrained_cfg=...), or use the checkpoint's own processor.
# Output when written (2026-11-29), a white square image with a black border of 4 % of its width:
#   timm vit_base_patch16_clip_224.openai  crop_pct 0.9 border seen: False
#   timm vit_base_patch32_clip_224.openai  crop_pct 0.9 border seen: False
#   timm vit_base_patch16_siglip_224.webli crop_pct 0.9 border seen: False
#   timm vit_large_patch14_clip_224.openai crop_pct 1.0 border seen: True
#   transformers CLIPImageProcessor                     border seen: True
#   transformers SiglipImageProcessor                   border seen: True
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3.11 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --no-compile torch==2.13.0 torchvision==0.28.0 timm==1.0.31 transformers==5.23.0 \
  pillow==12.3.0 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import torch

if torch.version.cuda is None:  # PyPI's torchvision is built for CUDA torch; a CPU build lacks these names
    operators = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        operators.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

import timm
import transformers
from PIL import Image
from timm.data import create_transform, resolve_data_config
from timm.models import get_pretrained_cfg
from transformers import CLIPImageProcessor, SiglipImageProcessor

print("timm", timm.__version__, "transformers", transformers.__version__)
image = Image.new("RGB", (500, 500), "black")
image.paste("white", (20, 20, 480, 480))


def border_seen(title, pixels):
    """Whether the outermost pixels of the model's input are black."""
    seen = bool(pixels[0, 0, 0] < 0 and pixels[0, -1, -1] < 0)
    print(f"{title:51} border seen: {seen}")
    return seen


zoomed = {
    "vit_base_patch16_clip_224.openai": True,
    "vit_base_patch32_clip_224.openai": True,
    "vit_base_patch16_siglip_224.webli": True,
    "vit_large_patch14_clip_224.openai": False,
}
for name, expected in zoomed.items():
    config = resolve_data_config({}, pretrained_cfg=get_pretrained_cfg(name).to_dict())
    pixels = create_transform(**config)(image)
    assert border_seen(f"timm {name:33} crop_pct {config['crop_pct']}", pixels) != expected
for processor in (CLIPImageProcessor(), SiglipImageProcessor()):
    assert border_seen(f"transformers {type(processor).__name__}", processor(image, return_tensors="pt")["pixel_values"][0])

cured = resolve_data_config({"crop_pct": 1.0}, pretrained_cfg=get_pretrained_cfg("vit_base_patch16_clip_224.openai").to_dict())
assert border_seen("timm B/16 with crop_pct 1.0", create_transform(**cured)(image))
PYTHON
