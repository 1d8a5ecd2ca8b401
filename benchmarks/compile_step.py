"""A training step of the embedded default with and without `training.compile`, and the first step, which compiles.

    python benchmarks/compile_step.py                  # one thread, float32: the recipe as it stands
    python benchmarks/compile_step.py --repetitions 21 --threads 2

Both take the same batches of easy-VQA questions with cached features; compiled ones are padded to the next of few lengths.
The compiler's cache is empty at the start: `TORCHINDUCTOR_CACHE_DIR` is a new folder. Needs the demo's wheels (`make demo`
installs them).
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

import torch
from compare_timing import Case, interleave, keep_freed_memory, machine, quartiles, ratio
from demo_step import RECIPE, batches, dehvf_step
from torch.nn.functional import pad

import dehvf_kit
from dehvf_kit.backbones.attached import padded_length


def widened(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The batch as the collator pads it where layers are compiled."""
    length = batch["input_ids"].shape[1]
    more = padded_length(length, 512) - length
    return batch | {
        name: pad(batch[name], (0, more), value=-100 * (name == "labels")) for name in ("input_ids", "attention_mask", "labels")
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repetitions", type=int, default=11)
    parser.add_argument("--rows", type=int, default=16, help="of a batch")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    keep_freed_memory()
    changes = ["data.train_questions=128", f"training.batch_size={arguments.rows}", "training.compile=true"]
    recipe = dehvf_kit.load_recipe(RECIPE, overrides=changes)
    model = dehvf_kit.build(recipe)
    model.train()

    def reset() -> None:
        for parameter in model.trainable_parameters():
            parameter.grad = None

    def plain(batch: dict[str, torch.Tensor]) -> None:
        """As written: the layers' own call for the length of this step."""
        calls = [(layer, layer._compiled_call_impl) for layer in model.compiled.layers]
        for layer, _ in calls:
            layer._compiled_call_impl = None
        try:
            dehvf_step(model, batch)()
        finally:
            for layer, call in calls:
                layer._compiled_call_impl = call

    with tempfile.TemporaryDirectory() as folder:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder
        batch = batches(model, recipe, Path(folder) / "features")[0]
        wide = widened(batch)
        plain(batch)
        reset()
        start, used = time.perf_counter(), time.process_time()
        dehvf_step(model, wide)()
        first, first_cpu = time.perf_counter() - start, time.process_time() - used
        cases = {
            "as written": Case(lambda: plain(batch), reset),
            "as written, padded": Case(lambda: plain(wide), reset),
            "compiled": Case(dehvf_step(model, wide), reset),
        }
        seconds = interleave(cases, arguments.repetitions)
    print(f"{tuple(batch['input_ids'].shape)} padded to {tuple(wide['input_ids'].shape)}; {machine('cpu')}")
    print(
        f"first step, which compiles {len(model.compiled.layers)} layers: {first:.0f} s ({first_cpu:.0f} s of this process's CPU)"
    )
    for name, taken in seconds.items():
        low, median, high = quartiles(taken)
        print(f"{name:20} {1000 * median:6.0f} ms ({1000 * low:.0f} to {1000 * high:.0f})")
    for base in ("as written", "as written, padded"):
        print(f"compiled / {base}: {ratio(seconds['compiled'], seconds[base])}")
    saved = quartiles(seconds["as written"])[1] - quartiles(seconds["compiled"])[1]
    print(f"the first step is made up for after {first / saved:,.0f} steps" if saved > 0 else "a compiled step saves nothing here")


if __name__ == "__main__":
    main()
