"""The two parts as files, and the files run: ONNX by ONNX Runtime, .pt2 by torch.export."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dehvf_kit.errors import DehvfError
from dehvf_kit.model.model import DehvfModel
from dehvf_kit.model.run import by_encoder
from dehvf_kit.utils.atomic import write_text
from dehvf_kit_export.parts import EMPTY, Decoder, Encoder, empty_cache

FORMATS = ("onnx", "pt2")
FACTS = "export.json"
TRACED_ROWS, TRACED_TOKENS = 3, 5


def pixel_names(model: DehvfModel) -> list[str]:
    return ["pixel_values"] if len(model.towers) == 1 else [f"pixel_values_{name}" for name in model.towers]


def example_pixels(model: DehvfModel, rows: int, seed: int = 0) -> dict[str, Tensor]:
    """Noise of the size that the recipe reads, one tensor per encoder."""
    from PIL import Image

    blank = by_encoder(model.processor.image_processor([Image.new("RGB", (64, 64))], return_tensors="pt")["pixel_values"])
    generator = torch.Generator().manual_seed(seed)
    device = next(model.decoder.parameters()).device
    return {name: torch.randn(rows, *blank[name].shape[1:], generator=generator).to(device) for name in model.towers}


@torch.no_grad()
def write(model: DehvfModel, folder: Path, kind: str) -> dict[str, Any]:
    """Both parts of a model in evaluation, and `export.json`, which names their inputs and outputs; gives its content.

    Raises: DehvfError for a model that cannot be exported.
    """
    batch, dynamic = torch.export.Dim("row"), torch.export.Dim.DYNAMIC
    pixels = example_pixels(model, TRACED_ROWS)
    encoder = Encoder(model, pixels)
    decoder = Decoder(model, encoder)
    memory = list(encoder(*pixels.values()))
    past = empty_cache(model, TRACED_ROWS)
    device = memory[0].device
    tokens = torch.zeros(TRACED_ROWS, TRACED_TOKENS, dtype=torch.long, device=device)
    mask = torch.ones(TRACED_ROWS, EMPTY + TRACED_TOKENS, dtype=torch.long, device=device)
    flags = torch.ones(TRACED_ROWS, dtype=torch.bool, device=device)
    shapes = (
        {0: batch, 1: dynamic},
        {0: batch, 1: dynamic},
        {0: batch},
        [{0: batch} if slot.by_row else None for slot in encoder.slots],
        [{0: batch, 2: dynamic} for _ in past],
    )
    names = [slot.name for slot in encoder.slots]
    cached = [f"{what}_{layer}" for layer in range(len(past) // 2) for what in ("key", "value")]
    facts = {
        "format": kind,
        "kit": "dehvf-kit",
        "encoder": {"inputs": pixel_names(model), "outputs": names},
        "decoder": {
            "inputs": ["input_ids", "attention_mask", "has_image", *names, *(f"past_{name}" for name in cached)],
            "outputs": ["logits", *(f"present_{name}" for name in cached)],
        },
        "memory_by_row": [slot.by_row for slot in encoder.slots],
        "empty_cache": [list(one.shape[1:]) for one in past],
        "dtype": str(past[0].dtype).removeprefix("torch."),
    }
    pixel_shapes = tuple({0: batch} for _ in pixels)
    _write(encoder, tuple(pixels.values()), (pixel_shapes,), folder / f"encoder.{kind}", facts["encoder"])
    _write(decoder, (tokens, mask, flags, memory, past), shapes, folder / f"decoder.{kind}", facts["decoder"])
    write_text(folder / FACTS, json.dumps(facts, indent=1) + "\n")
    return facts


def _write(part: nn.Module, given: tuple[Any, ...], shapes: Any, file: Path, names: Mapping[str, Sequence[str]]) -> None:
    """Raises: DehvfError naming what torch could not export."""
    notes = logging.getLogger("onnx_ir")  # one for each weight that is an output of the graph too
    level = notes.level
    notes.setLevel(logging.ERROR)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            program = torch.export.export(part, given, dynamic_shapes=shapes, strict=False)
            if file.suffix == ".pt2":
                with _File(file, "w+") as opened:
                    torch.export.save(program, opened)  # type: ignore[arg-type]  # a raw file is one too
                if opened.failure is not None:
                    raise opened.failure
                return
            written = torch.onnx.export(
                program, dynamo=True, input_names=list(names["inputs"]), output_names=list(names["outputs"]), verbose=False
            )
            written.save(str(file), external_data=True)
        except OSError:
            raise
        except Exception as error:  # torch and onnxscript raise whatever a model makes them stumble over
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise DehvfError(f"{file.stem}: cannot be exported: {reason}") from error
        finally:
            notes.setLevel(level)


class _File(io.FileIO):
    """A file that keeps its first failure for its owner to raise: torch's zip writer ends the process at a full disk."""

    failure: OSError | None = None

    def write(self, data: Any) -> int:
        left = memoryview(data).cast("B")
        size = left.nbytes
        try:
            while self.failure is None and left.nbytes:
                left = left[super().write(left) or 0 :]
        except OSError as error:
            self.failure = error
        return size


class Exported:
    """An exported folder, run on the CPU: `encode` once an image, then `step` for a prompt and for each token."""

    def __init__(self, folder: Path) -> None:
        try:
            self.facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DehvfError(f"{folder}: holds no exported adapter: {error}") from error
        kind = self.facts["format"]
        if kind == "onnx":
            import onnxruntime

            self._encoder, self._decoder = (
                onnxruntime.InferenceSession(str(folder / f"{name}.onnx"), providers=["CPUExecutionProvider"])
                for name in ("encoder", "decoder")
            )
        else:
            self._encoder, self._decoder = (torch.export.load(folder / f"{name}.pt2").module() for name in ("encoder", "decoder"))

    def encode(self, *pixels: Tensor) -> list[Tensor]:
        """Pixels of each encoder -> the memory."""
        if self.facts["format"] == "onnx":
            return self._onnx(self._encoder, "encoder", pixels)
        return list(self._encoder(*pixels))

    def step(
        self, input_ids: Tensor, attention_mask: Tensor, has_image: Tensor, memory: Sequence[Tensor], past: Sequence[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        """Logits of the new tokens, and the cache with them."""
        if self.facts["format"] == "onnx":
            found = self._onnx(self._decoder, "decoder", [input_ids, attention_mask, has_image, *memory, *past])
        else:
            found = list(self._decoder(input_ids, attention_mask, has_image, list(memory), list(past)))
        return found[0], found[1:]

    def _onnx(self, session: Any, part: str, given: Sequence[Tensor]) -> list[Tensor]:
        named = dict(zip(self.facts[part]["inputs"], given, strict=True))
        wanted = {one.name for one in session.get_inputs()}  # an input that nothing reads is not among them
        found = session.run(self.facts[part]["outputs"], {name: one.numpy() for name, one in named.items() if name in wanted})
        return [torch.from_numpy(one) for one in found]

    def empty(self, rows: int) -> list[Tensor]:
        """A cache without tokens; its columns are masked out."""
        return [torch.zeros(rows, *shape, dtype=getattr(torch, self.facts["dtype"])) for shape in self.facts["empty_cache"]]

    def generate(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        pixels: Sequence[Tensor],
        max_new_tokens: int,
        has_image: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The likeliest tokens [row, new], and their logits [row, new, vocabulary]. Prompts are padded on the left."""
        rows = len(input_ids)
        flags = torch.ones(rows, dtype=torch.bool) if has_image is None else has_image
        memory, past = self.encode(*pixels), self.empty(rows)
        mask = torch.cat([attention_mask.new_zeros(rows, EMPTY), attention_mask], 1)
        tokens, said, scores = input_ids, [], []
        for _ in range(max_new_tokens):
            logits, past = self.step(tokens, mask, flags, memory, past)
            scores.append(logits[:, -1])
            tokens = logits[:, -1].argmax(-1, keepdim=True)
            said.append(tokens)
            mask = torch.cat([mask, mask.new_ones(rows, 1)], 1)
        return torch.cat(said, 1), torch.stack(scores, 1)
