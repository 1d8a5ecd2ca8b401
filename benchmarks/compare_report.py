"""What a comparison found, in words: tables for the terminal and the README, and one CSV row a figure."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from compare_timing import Ratio, quartiles, ratio

BASE, OURS, MEMVP, LLAVA = "text only", "DEHVF", "MemVP", "LLaVA-style"
BEGIN, END = "<!-- compare:begin -->", "<!-- compare:end -->"
SHAPES = ("layers", "hidden", "intermediate", "heads", "vocabulary", "vision_layers", "vision_hidden", "patches")


def report(results: Mapping[str, Any]) -> str:
    """The whole finding as Markdown."""
    parts = [part for number, run in enumerate(results["runs"]) for part in _run(run, results["runs"][:number])]
    if results["sweep"]:
        parts += _sweep(results["sweep"])
    return "\n\n".join(parts)


def _title(run: Mapping[str, Any], earlier: Sequence[Mapping[str, Any]]) -> str:
    """The heading of a run: its dtype, and for a second run of that dtype also what it repeats, so that no two are the same."""
    dtype = run["shapes"]["dtype"]
    before = [one for one in earlier if one["shapes"]["dtype"] == dtype]
    if not before:
        return dtype
    modes = " and ".join(dict.fromkeys({"decode": "decoding"}.get(point["mode"], point["mode"]) for point in run["points"]))
    counts = {_name(point): len(point["seconds"][BASE]) for point in before[0]["points"]}
    times = {len(point["seconds"][BASE]) / counts[_name(point)] for point in run["points"] if _name(point) in counts}
    more = f", {times.pop():g} times the repetitions" if len(times) == 1 else f", run {len(before) + 1}"
    return f"{dtype} {modes}{more}"


def _run(run: Mapping[str, Any], earlier: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    shapes, machine = run["shapes"], run["machine"]
    sizes = ", ".join(f"{name.replace('_', ' ')} {shapes[name]}" for name in SHAPES)
    busy = f"; {machine['note']}" if machine["note"] else ""
    load = f"load {machine['load'][0]} before and {run['load_after'][0]} after"
    yield f"### {_title(run, earlier)}\n\n{_place(machine)}, {load}{busy}. Shapes: {sizes}."
    rows = []
    for point in run["points"]:
        seconds = point["seconds"]
        low, median, high = quartiles(seconds[BASE])
        cells = [_name(point), f"{_ms(median)} ({_ms(low)} to {_ms(high)})"]
        cells += [str(ratio(seconds[name], seconds[BASE])) for name in seconds if name != BASE]
        cells += [str(ratio(seconds[baseline], seconds[OURS])) for baseline in (MEMVP, LLAVA)]
        rows.append([*cells, str(len(seconds[BASE]))])
    if rows:
        names = [f"{name} / text" for name in run["points"][0]["seconds"] if name != BASE]
        baselines = [f"{baseline} / {OURS}" for baseline in (MEMVP, LLAVA)]
        yield _table(["", "text only, ms (quartiles)", *names, *baselines, "repetitions"], rows)
        yield "Counted FLOPs, as multiples of the text alone:"
        yield _table(["", *names], [[_name(point), *_counted(point)] for point in run["points"]])
    if peaks := [point for point in run["points"] if point.get("peak")]:
        yield "Peak of the device's memory, GiB, the decoder and all subjects' weights included:"
        yield _table(
            ["", *peaks[0]["peak"]], [[_name(point), *(f"{one / 2**30:.2f}" for one in point["peak"].values())] for point in peaks]
        )
    if run["prepare"] and any(point["mode"] == "training" for point in run["points"]):
        yield from _preparation(run)
    yield _held(run["bytes"])


def _preparation(run: Mapping[str, Any]) -> Iterator[str]:
    """The training step of a deep decoder, extrapolated: its layers cost what ours did, preparation is paid once."""
    prepared, shapes = run["prepare"], run["shapes"]
    seconds, deep = prepared["seconds"], prepared["layers"]
    times = deep / shapes["layers"]
    cost = {name: statistics.median(taken) for name, taken in seconds.items()}
    whole = cost[f"{OURS}, {deep} layers"]
    rows = []
    for point in run["points"]:
        if point["mode"] != "training" or point["batch"] != prepared["batch"]:
            continue
        step = {name: quartiles(taken)[1] for name, taken in point["seconds"].items()}
        once = {**cost, OURS: whole}
        scaled = {name: times * (step[name] - cost[name]) + once[name] for name in step}
        share = whole / (times * step[BASE])
        cells = [f"{scaled[name] / scaled[BASE]:.3f}" for name in step if name != BASE]
        rows.append([_name(point), *cells, f"{_ms(whole)} ms", f"{share:.2%}"])
    names = [f"{name} / text" for name in run["points"][0]["seconds"] if name != BASE]
    yield (
        f"A training step at {deep} layers, extrapolated from the medians: {times:.3g} times the step without "
        f"preparation, plus one preparation ({OURS}'s measured with all {deep} layers' queries, forward and backward; "
        f"its share is of {times:.3g} times the text-only step):"
    )
    yield _table(["", *names, f"{OURS}'s preparation", "share"], rows)


def _held(held: Mapping[str, int]) -> str:
    built = held["DEHVF, built"]
    rows = [[name, f"{count / 2**20:.3f}", f"1/{built / count:.1f}" if count else "-"] for name, count in held.items()]
    return "Held for one image, counted from the tensors:\n\n" + _table(["", "MiB", "of built K and V"], rows)


def _sweep(sweep: Mapping[str, Any]) -> Iterator[str]:
    machine, line = sweep["machine"], sweep["line"]
    note = f"; {machine['note']}" if machine["note"] else ""
    yield (
        f"### Cost against size\n\n{_place(machine)}, load {machine['load'][0]}{note}. Forward pass of "
        f"{sweep['shapes']['layers']} layers, {sweep['shapes']['dtype']}, batch {sweep['batch']}, text {sweep['text']}, "
        f"{sweep['repetitions']} repetitions, ratios to text only."
    )
    for axis, points in sweep["axes"].items():
        names = [name for name in points[0] if name != "value"]
        rows = [[str(point["value"]), *(str(Ratio(**point[name])) for name in names)] for point in points]
        yield _table([axis, *names], rows)
    yield (
        "Straight line through the ratios against patches: "
        + "; ".join(
            f"{name} {found['start']:.3f} + {1000 * found['slope']:.3f} per 1000 patches, R² {found['r_squared']:.4f}, "
            f"no point further off than {found['largest_residual']:.1%}"
            for name, found in line.items()
        )
        + "."
    )


def _place(machine: Mapping[str, Any]) -> str:
    versions = f"Python {machine['python']}, torch {machine['torch']}, transformers {machine['transformers']}"
    return f"{machine['device']}, {machine['threads']} threads of {machine['cores']} cores, {machine['system']}, {versions}"


def _name(point: Mapping[str, Any]) -> str:
    return f"{point['mode']}, batch {point['batch']}, text {point['tokens']}"


def _counted(point: Mapping[str, Any]) -> list[str]:
    counted = point["flops"]
    return [f"{count / counted[BASE]:.3f}" for name, count in counted.items() if name != BASE]


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.0f}" if seconds > 0.1 else f"{1000 * seconds:.1f}"


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


HEAD = (
    *("mode", "dtype", "layers", "patches", "batch", "text", "subject"),
    *("q1_s", "median_s", "q3_s", "ratio", "low", "high", "flops"),
)


def write_csv(results: Mapping[str, Any], file: Path) -> None:
    """One row a point and subject: medians, quartiles, ratio to text only with its interval, FLOPs."""
    with file.open("w", newline="", encoding="utf-8") as lines:
        writer = csv.DictWriter(lines, HEAD, extrasaction="ignore")
        writer.writeheader()
        writer.writerows([*_point_rows(results["runs"]), *_sweep_rows(results["sweep"])])


def _point_rows(runs: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    for run in runs:
        for point in run["points"]:
            about = {**run["shapes"], "mode": point["mode"], "batch": point["batch"], "text": point["tokens"]}
            for name, seconds in point["seconds"].items():
                times = dict(zip(("q1_s", "median_s", "q3_s"), quartiles(seconds), strict=True))
                found = ratio(seconds, point["seconds"][BASE])
                counted = point["flops"][name]
                yield {**about, **times, "subject": name, **_columns(asdict(found)), "flops": counted}


def _sweep_rows(sweep: Mapping[str, Any] | None) -> Iterator[dict[str, Any]]:
    for axis, points in (sweep or {"axes": {}})["axes"].items():
        about = {**sweep["shapes"], "batch": sweep["batch"], "text": sweep["text"], "mode": f"sweep of {axis}"}
        for point in points:
            for name in (name for name in point if name != "value"):
                yield {**about, axis: point["value"], "subject": name, **_columns(point[name])}


def _columns(found: Mapping[str, float]) -> dict[str, float]:
    return {"ratio": found["median"], "low": found["low"], "high": found["high"]}


def write_readme(results: Mapping[str, Any], readme: Path, figure: Path) -> None:
    """Put tables and figure between the README's markers."""
    text = readme.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    shown = ""
    if results["sweep"]:
        place = figure.resolve().relative_to(readme.resolve().parent).as_posix()
        shown = f"\n\n![Cost of an image against its patches, the text's length, batch and decoder layers]({place})"
    part = readme.with_suffix(".part")
    part.write_text(f"{before}{BEGIN}\n{report(results)}{shown}\n{END}{after}", encoding="utf-8")
    part.replace(readme)
