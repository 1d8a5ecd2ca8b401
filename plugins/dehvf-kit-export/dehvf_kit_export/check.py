"""The exported files beside the model: memory, prefill and decoding, for other sizes than they were exported with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from dehvf_kit.model.model import DehvfModel
from dehvf_kit.recipe.files import alone
from dehvf_kit_export.files import Exported, example_pixels
from dehvf_kit_export.parts import Encoder

CASES = {"one row": (1, 7), "four rows, padded": (4, 9)}
STEPS = 4


@torch.no_grad()
def compare(model: DehvfModel, folder: Path) -> dict[str, Any]:
    """The largest difference of every output that is compared, and how many tokens differ.

    Prompts are random tokens, the rows of a batch padded to different lengths, the last one without an image.
    """
    exported = Exported(folder)
    rows_found = []
    for case, (rows, length) in CASES.items():
        generator = torch.Generator().manual_seed(rows)
        pixels = example_pixels(model, rows, seed=rows)
        tokens = torch.randint(2, model.decoder.get_input_embeddings().num_embeddings, (rows, length), generator=generator)
        mask = torch.ones_like(tokens)
        for row in range(1, rows):
            mask[row, :row] = 0
        flags = torch.arange(rows) < max(1, rows - 1)
        wanted = Encoder(model, pixels)(*pixels.values())
        memory = max(_largest(*pair) for pair in zip(exported.encode(*pixels.values()), wanted, strict=True))
        said, scores = exported.generate(tokens, mask, list(pixels.values()), STEPS, flags)
        given = {name: one[flags] for name, one in pixels.items()}
        whole = torch.cat([tokens, said[:, :-1]], 1)
        seen = torch.cat([mask, mask.new_ones(rows, STEPS - 1)], 1)
        places = (seen.cumsum(-1) - 1).clamp(min=0)
        eager = model(
            input_ids=whole, attention_mask=seen, position_ids=places, pixel_values=alone(given), has_image=flags, use_cache=False
        ).logits[:, length - 1 :]
        differing = int((eager.argmax(-1) != said).sum())
        figures = {
            "memory": memory,
            "prefill": _largest(scores[:, 0], eager[:, 0]),
            "decode": _largest(scores[:, 1:], eager[:, 1:]),
        }
        rows_found.append({"case": case, **figures, "changed_tokens": differing, "logit_range": float(eager.abs().max())})
    return {"format": exported.facts["format"], "runtime": _runtime(exported.facts["format"]), "cases": rows_found}


def _largest(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one.float() - other.float()).abs().max())


def _runtime(kind: str) -> str:
    if kind == "onnx":
        import onnxruntime

        return f"onnxruntime {onnxruntime.__version__}"
    return f"torch {torch.__version__}"
