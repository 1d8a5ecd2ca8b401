"""An image's price: text only, DEHVF and seven other methods on one frozen decoder, in one interleaved run.

    python benchmarks/compare.py --quick                 # smoke check on small shapes
    python benchmarks/compare.py                         # LLaMA-7B layer shapes, 2 layers, float32
    python benchmarks/compare.py --dtype float32 bfloat16 --sweep --write-readme
    python benchmarks/compare.py --device cuda --table2  # all of LLaMA-7B, batches of the paper's Table 2

README.md beside this file says what the figures mean. The vision encoder is left out: features are given.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from compare_cases import MODES, flops, preparation
from compare_methods import PUBLISHED_LAYERS, Dehvf, Llava, LlavaLora, Method, subjects
from compare_report import report, write_csv, write_readme
from compare_shapes import QUICK, Shapes, frozen_decoder
from compare_sweep import AXES, QUICK_AXES, sweep
from compare_timing import interleave, keep_freed_memory, load, machine, peak_memory

HERE = Path(__file__).parent
TABLE2 = {"layers": PUBLISHED_LAYERS, "vocabulary": 32000, "dtype": ["bfloat16"], "repetitions": 10}
TABLE2_POINTS = ["training-4-128", "prefill-32-128", "decode-32-128"]
POINTS = [*(("training", 4, tokens) for tokens in (64, 128)), *(("decode", batch, 64) for batch in (1, 8, 32)), ("prefill", 8, 64)]


def main() -> None:
    options = arguments()
    torch.manual_seed(0)
    torch.set_num_threads(options.threads)
    kept = keep_freed_memory()
    output = options.output
    output.mkdir(parents=True, exist_ok=True)
    results = json.loads((output / "compare.json").read_text()) if options.merge else {"runs": [], "sweep": None}
    shapes = replace(QUICK if options.quick else Shapes(), layers=options.layers, device=options.device)
    shapes = replace(shapes, vocabulary=options.vocabulary or shapes.vocabulary)
    about = {**machine(options.device), "malloc_keeps": kept, "note": options.note}
    for dtype in options.dtype if options.points else ():
        run: dict[str, Any] = {"machine": about}
        results["runs"].append(run)
        for _ in compare(run, replace(shapes, dtype=dtype), options):
            save(results, output)
    if options.sweep is not None:
        axes = {axis: (QUICK_AXES if options.quick else AXES)[axis] for axis in options.sweep or AXES}
        found = sweep(replace(shapes, dtype=options.dtype[0]), axes, options.sweep_repetitions)
        results["sweep"] = {"machine": about, **found}
        save(results, output)
    print(report(results))
    write_csv(results, output / "compare.csv")
    if results["sweep"]:
        from compare_figure import draw

        draw(results["sweep"], output / "cost.svg")
    if options.write_readme:
        write_readme(results, HERE / "README.md", output / "cost.svg")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [*MODES, *(f"{mode}-{batch}-{tokens}" for mode, batch, tokens in POINTS)]
    add = parser.add_argument
    add("--quick", action="store_true", help="small shapes and few repetitions: shows that it runs, measures nothing")
    add("--table2", action="store_true", help="32 layers, 32,000 words, bfloat16; training of batch 4, inference of batch 32")
    add("--layers", type=int, help="decoder layers (default 2; a GPU holds all 32)")
    add("--vocabulary", type=int, help="words (default 1,024, so that the output head hides no difference)")
    add("--device", choices=["cpu", "cuda"], default="cpu")
    add("--dtype", nargs="+", choices=["float32", "bfloat16", "float16"])
    add("--threads", type=int, default=2)
    add("--repetitions", type=int, help="of training and prefill (default 15); decode runs three times as many")
    add("--slow-every", type=int, default=1, help="time LLaVA-style in every n-th training and prefill repetition only")
    add("--only", nargs="+", type=points, metavar="POINT", help=f"of {', '.join(names)}, or of another batch and length")
    add("--no-points", dest="points", action="store_false", help="leave out the comparison, as for a sweep alone")
    add("--sweep", nargs="*", choices=list(AXES), help="also cost against these (none named: all), with an image")
    add("--sweep-repetitions", type=int, help="default 5")
    add("--merge", action="store_true", help="add to the results that are there instead of starting anew")
    add("--note", default="", help="what else the machine was doing; stands below the table")
    add("--output", type=Path, default=HERE / "results")
    add("--write-readme", action="store_true", help="write table and figure into README.md")
    options = parser.parse_args()
    if options.quick and options.write_readme:
        parser.error("--quick measures nothing worth writing into README.md; leave one of the two out")
    if options.merge and not (options.output / "compare.json").is_file():
        parser.error(f"--merge: there is no {options.output / 'compare.json'} yet")
    if options.write_readme and not options.output.resolve().is_relative_to(HERE):
        parser.error(f"--write-readme shows the figure from --output, which must be in {HERE.name}/")
    if options.table2:
        for name, value in TABLE2.items():
            setattr(options, name, getattr(options, name) or value)
        options.only = options.only or [points(name) for name in TABLE2_POINTS]
    options.layers, options.dtype = options.layers or 2, options.dtype or ["float32"]
    options.only = list(dict.fromkeys(point for named in options.only or [POINTS] for point in named))
    options.repetitions = options.repetitions or (3 if options.quick else 15)
    options.sweep_repetitions = options.sweep_repetitions or (2 if options.quick else 5)
    return options


def points(text: str) -> list[tuple[str, int, int]]:
    """The points of a mode, or one written as mode-batch-tokens."""
    if text in MODES:
        return [point for point in POINTS if point[0] == text]
    found = re.fullmatch(rf"({'|'.join(MODES)})-([1-9]\d*)-([1-9]\d*)", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text}: neither one of {', '.join(MODES)} nor MODE-BATCH-TOKENS")
    return [(found[1], int(found[2]), int(found[3]))]


def compare(run: dict[str, Any], shapes: Shapes, options: argparse.Namespace) -> Iterator[None]:
    """Fill a run's findings in, point by point: seconds of each repetition, counted FLOPs, bytes held."""
    methods = subjects(shapes)
    run |= {"shapes": asdict(shapes), "points": [], "prepare": None, "bytes": held_bytes(shapes, methods)}
    for mode, batch, tokens in options.only:
        print(f"{shapes.dtype}: {mode}, batch {batch}, {tokens} tokens", flush=True)
        cases = {method.name: MODES[mode](method, batch, tokens) for method in methods}
        fast = mode == "decode"
        if not fast:
            for name in (Llava.name, LlavaLora.name):
                cases[name] = replace(cases[name], every=options.slow_every)
        counted = {}
        for name, case in cases.items():
            case.reset()
            counted[name] = flops(case.run)
        seconds = interleave(cases, options.repetitions * (3 if fast else 1), warm_up=3 if fast else 1)
        peak = {name: peak_memory(case) for name, case in cases.items()} if shapes.device == "cuda" else {}
        point = {"mode": mode, "batch": batch, "tokens": tokens, "seconds": seconds, "flops": counted, "peak": peak}
        run["points"].append(point)
        run["load_after"] = load()
        yield
    if shapes.layers < PUBLISHED_LAYERS and any(mode == "training" for mode, _, _ in options.only):
        run["prepare"] = prepare(shapes, methods, options)
        yield


def prepare(shapes: Shapes, methods: list[Method], options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of preparing 4 images, forward and backward: each subject's, and DEHVF's with all 32 layers' queries."""
    batch = 4
    deep = replace(shapes, layers=PUBLISHED_LAYERS)
    whole = Dehvf(frozen_decoder(replace(deep, device="meta")), deep)
    whole.model.nodes.to(shapes.device)
    cases = {method.name: preparation(method, batch) for method in methods}
    cases[f"DEHVF, {PUBLISHED_LAYERS} layers"] = preparation(whole, batch)
    return {"batch": batch, "layers": PUBLISHED_LAYERS, "seconds": interleave(cases, options.repetitions)}


def held_bytes(shapes: Shapes, methods: list[Method]) -> dict[str, int]:
    """Bytes of real tensors held for one image by each subject, and by DEHVF with keys and values built."""
    features = shapes.features(1)
    found = {}
    with torch.no_grad():
        for method in methods:
            held = method.prepare(features)
            found[method.name] = method.held_bytes(held)
            if isinstance(method, Dehvf):
                found["DEHVF, built"] = method.built_bytes(held)
    return found


def save(results: dict[str, Any], output: Path) -> None:
    """Write what there is, whole or not at all."""
    part = output / "compare.json.part"
    part.write_text(json.dumps(results, indent=1))
    part.replace(output / "compare.json")


if __name__ == "__main__":
    main()
