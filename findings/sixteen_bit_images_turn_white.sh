#!/usr/bin/env bash
# A 16-bit grayscale PNG becomes an all-white image in most transformers image processors, and 257 times too bright in ViT's.
#
# Versions: transformers 5.23.0, pillow 12.3.0, torch 2.13.0, torchvision 0.28.0, Python 3.11.
# Surprise: Pillow opens such a PNG as mode "I;16". CLIP's, SigLIP's and DINOv2's (Bit) processors call convert("RGB"), which
#   clips at 255 instead of scaling: every pixel above 0.4 % of full scale is white. ViT's processor does not convert: the image
#   stays one channel, and dividing by 255 gives values up to 257. A uint16 array gives 257 in all of them. No error, no warning.
# Who meets it: depth maps, X-rays, microscopy and satellite bands are 16-bit PNGs; the model then sees the same white square
#   for all of them, and learns from the text alone.
# Workaround: scale to 8 bits first: Image.fromarray((numpy.asarray(image) / 257).round().astype("uint8")).convert("RGB").
# Output when written (2026-11-29), a ramp from 0 to 65535, where the mean should be 0.5:
#   CLIPImageProcessor   image (1, 3, 32, 32) mean 0.998 max 1.0; array max 257.0
#   SiglipImageProcessor image (1, 3, 32, 32) mean 0.998 max 1.0; array max 257.0
#   BitImageProcessor    image (1, 3, 32, 32) mean 0.998 max 1.0; array max 257.0
#   ViTImageProcessor    image (1, 1, 32, 32) mean 128.498 max 257.0; array max 257.0
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3.11 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --no-compile torch==2.13.0 torchvision==0.28.0 transformers==5.23.0 pillow==12.3.0 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import torch

if torch.version.cuda is None:  # PyPI's torchvision is built for CUDA torch; a CPU build lacks these names
    operators = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        operators.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

import numpy
import PIL
import transformers
from PIL import Image

print("transformers", transformers.__version__, "pillow", PIL.__version__)
ramp = numpy.linspace(0, 65535, 32 * 32).reshape(32, 32).astype("uint16")
Image.fromarray(ramp).save("ramp.png")
image = Image.open("ramp.png")
assert image.mode == "I;16", image.mode
colour = numpy.repeat(ramp[:, :, None], 3, axis=2)


def pixels(name, given):
    processor = getattr(transformers, name)(do_resize=False, do_center_crop=False, do_normalize=False)
    return processor(given, return_tensors="pt")["pixel_values"]


for name in ("CLIPImageProcessor", "SiglipImageProcessor", "BitImageProcessor", "ViTImageProcessor"):
    found, array = pixels(name, image), pixels(name, colour)
    mean, top, array_top = round(found.mean().item(), 3), round(found.max().item(), 3), round(array.max().item(), 3)
    print(f"{name:20} image {tuple(found.shape)} mean {mean} max {top}; array max {array_top}")
    assert array_top == 257
    if name == "ViTImageProcessor":
        assert found.shape[1] == 1 and top == 257
    else:
        assert found.shape[1] == 3 and mean > 0.99
PYTHON
