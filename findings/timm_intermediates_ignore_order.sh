#!/usr/bin/env bash
# timm returns intermediate layers in depth order without duplicates, whatever was asked, and feature_info disagrees.
#
# Versions: timm 1.0.31, torch 2.13.0, torchvision 0.28.0, Python 3.11.
# Surprise: forward_intermediates(indices=[5, 2]) returns layer 2, then 5; [2, 2, 5] returns two tensors, not three; so does
#   [-1, 11] with one. create_model(features_only=True, out_indices=(3, 1)) likewise yields stage 1 first, yet
#   feature_info.channels() lists the channels in the order asked for, so a layer built from it gets the wrong width.
# Who meets it: code that takes several ViT layers as levels or groups, deepest first or one layer in two groups. With a plain
#   ViT all layers have one shape, so zip(indices, features) pairs the wrong ones and nothing fails.
# Workaround: ask for sorted(set(indices)) and pick from the result by index: by_layer = dict(zip(wanted, features)).
# Output when written (2026-11-29):
#   indices [5, 2] give layers [2, 5]
#   indices [2, 2, 5] give 2 tensors
#   indices [-1, 11] give 1 tensors
#   convnext_atto out_indices (3, 1): feature_info says [320, 80], the tensors have [80, 320]
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3.11 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --no-compile torch==2.13.0 torchvision==0.28.0 timm==1.0.31 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import torch

if torch.version.cuda is None:  # PyPI's torchvision is built for CUDA torch; a CPU build lacks these names
    operators = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        operators.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

import timm

print("timm", timm.__version__, "torch", torch.__version__)
torch.manual_seed(0)
vit = timm.create_model("vit_tiny_patch16_224", pretrained=False, img_size=32, num_classes=0).eval()
image = torch.randn(1, 3, 32, 32)


@torch.no_grad()
def layers(indices):
    return vit.forward_intermediates(image, indices=indices, intermediates_only=True)


single = {i: layers([i])[0] for i in (2, 5)}
order = [next(i for i, alone in single.items() if alone.equal(found)) for found in layers([5, 2])]
print("indices [5, 2] give layers", order)
assert order == [2, 5]
for asked, count in (([2, 2, 5], 2), ([-1, 11], 1)):
    print(f"indices {asked} give {len(layers(asked))} tensors")
    assert len(layers(asked)) == count

stages = timm.create_model("convnext_atto", pretrained=False, features_only=True, out_indices=(3, 1)).eval()
told, found = stages.feature_info.channels(), [x.shape[1] for x in stages(torch.randn(1, 3, 64, 64))]
print(f"convnext_atto out_indices (3, 1): feature_info says {told}, the tensors have {found}")
assert told == found[::-1] and told != found
PYTHON
