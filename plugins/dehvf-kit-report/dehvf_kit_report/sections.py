"""The sections of a run's page; one without data names the command that makes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

from dehvf_kit.adapter.card import about, read_measured
from dehvf_kit.data.images import open_image
from dehvf_kit.data.metrics.exact_match import Prediction
from dehvf_kit.data.metrics.scores import Score, Scores
from dehvf_kit.data.samples import Sample
from dehvf_kit.errors import DehvfError
from dehvf_kit.training.callbacks import best_of
from dehvf_kit_report.charts import heat_map, intervals, lines
from dehvf_kit_report.finished_run import PREDICTIONS, FinishedRun
from dehvf_kit_report.fuser_weights import ReadLayers
from dehvf_kit_report.inside import Inside, evenly
from dehvf_kit_report.memory_section import memory_maps
from dehvf_kit_report.page import Section, inline_image, missing, table, text

if TYPE_CHECKING:
    from dehvf_kit_report.drawing.wiring import Drawing

EXAMPLES = 12  # of right answers, and of wrong ones
NO_DATA = "The recipe has no `data` section."
SOME_DATA = "data.type=jsonl data.test=FILE"
CURVES = {"loss": "loss", "learning_rate": "learning rate", "grad_norm": "gradient norm"}


def recipe_section(run: FinishedRun, drawing: Drawing | DehvfError) -> Section:
    """The recipe's graph, drawn."""
    from dehvf_kit_report.drawing.svg import svg

    if isinstance(drawing, DehvfError):
        body = missing(f"The graph cannot be drawn here: {drawing}")
    else:
        body = f"<div class='wide'>{svg(drawing)}</div>"
    note = "Grey: frozen. Blue: trained. Solid lines carry tensors, dashed ones are hooks. Axes are listed below each output."
    return Section("graph", "Recipe and graph", body, note)


def curves_section(run: FinishedRun) -> Section:
    """Loss, learning rate, gradient norm, and the scores in the log, by step."""
    names = {name: CURVES.get(name, name.replace("_", " ")) for row in run.rows for name in row if _is_curve(name)}
    ordered = [name for name in CURVES if name in names] + [name for name in names if name not in CURVES]
    charts = []
    for name in ordered:
        points = [(row["step"], float(row[name])) for row in run.rows if isinstance(row.get(name), int | float)]
        drawn = lines(points, "step", names[name], logarithmic="loss" in name, smooth=name != "learning_rate")
        charts += [f"<figure>{drawn}</figure>"] if drawn else []
    if not charts:
        why, command = ("The run has no log.jsonl with several steps.", f"dehvf-kit train RECIPE --output {quote(str(run.folder))}")
        return Section("curves", "Training curves", missing(why, command))
    last = next((row for row in reversed(run.log) if "train_runtime" in row), None)
    note = "Thin: as logged; bold: its running mean. Losses on a logarithmic axis."
    if last is not None:
        note += f" {run.steps:,} steps in {float(last['train_runtime']) / 60:.1f} minutes."
    best = best_of(run.log, run.recipe.training.metric_for_best)
    if best is not None:
        note += f" Best {run.recipe.training.metric_for_best} of the validation split: {best[1]:.4g} at step {best[0]:,}."
    note += "".join(f" Test score: {row['test_score']:.4g}." for row in run.log if isinstance(row.get("test_score"), float))
    return Section("curves", "Training curves", f"<div class='pair'>{''.join(charts)}</div>", note)


def _is_curve(name: str) -> bool:
    speed = name.endswith(("runtime", "per_second", "_time"))
    return name in CURVES or (name.startswith(("eval_", "score", "accuracy")) and not speed)


def scored(run: FinishedRun, predictions: Sequence[Prediction] | None) -> Scores | DehvfError | None:
    """The figures of some answers, or the reason why there are none; without answers, the scores that `--store` kept."""
    if predictions is None:
        return _stored(run)
    if run.recipe.data is None:
        return None
    try:
        return run.recipe.data.score(predictions)
    except DehvfError as error:
        return error


def _stored(run: FinishedRun) -> Scores | None:
    """The scores in the adapter's `measured.json`, if they are about its weights."""
    kept = about(read_measured(run.adapter), run.adapter).get("scores")
    if not kept:
        return None
    scores = [Score(name, **row, percent=False) for name, row in kept["scores"].items()]
    return Scores(scores, scores[0].name, {}, notes=[f"Stored by dehvf-kit eval --store, times 100; on {kept['data']}."])


def scores_section(run: FinishedRun, name: str, main: Scores | DehvfError | None) -> Section:
    """Each column with its interval, beside the runs it is compared with."""
    if main is None:
        return Section("scores", "Scores", _no_answers(run))
    if isinstance(main, DehvfError):
        return Section("scores", "Scores", missing(f"The answers cannot be scored here: {main}"))
    others = {baseline: scored(run, answers) for baseline, answers in run.baselines.items()}
    models = {name: main, **{baseline: found for baseline, found in others.items() if isinstance(found, Scores)}}
    by_model = {model: {score.name: score for score in found.scores} for model, found in models.items()}
    head, rows, chart = ["", *(f"{model}" for model in models), "95% interval", "answers"], [], []
    for score in main.scores:
        cells = [_figure(by_model[model].get(score.name)) for model in models]
        interval = f"{100 * score.low:.{score.digits}f} to {100 * score.high:.{score.digits}f}" if score.count else "-"
        rows.append([score.name, *cells, interval, f"{score.count:,}"])
        if score.percent and score.count:
            values = [by_model[model].get(score.name) for model in models]
            chart.append((score.name, [_interval(one) for one in values]))
    notes = "".join(f"<p class='note'>{text(note)}</p>" for note in main.notes)
    body = f"{table(head, rows)}<figure>{intervals(chart, list(models)) if chart else ''}"
    key = ", ".join(f"<b style='color:var(--{'abcd'[number % 4]})'>{text(model)}</b>" for number, model in enumerate(models))
    body += f"<figcaption>{key}; bars: 95% intervals, per cent</figcaption></figure>{notes}"
    note = "On the test split, whose images are not in the training split; the interval belongs to the first column of figures."
    return Section("scores", "Scores", body, note)


def _figure(score: Score | None) -> str:
    if score is None or not score.count:
        return "-"
    return f"{100 * score.value:.{score.digits}f}" + ("%" if score.percent else "")


def _interval(score: Score | None) -> tuple[float, float, float]:
    nothing = float("nan")
    return (100 * score.value, 100 * score.low, 100 * score.high) if score else (nothing, nothing, nothing)


def layers_sections(run: FinishedRun, inside: Inside) -> list[Section]:
    """Per-layer vision weights of this adapter (the paper's Figures 3 and 4)."""
    titles = ("figure3", "Vision layers by group (Figure 3)"), ("figure4", "Vision layers by decoder layer (Figure 4)")
    if inside.layers is None:
        body = missing(inside.why.get("layers", "Not computed."), *_again(run, inside, "layers"))
        return [Section("figure3", "Vision weights by layer (Figures 3 and 4)", body)]
    found = inside.layers
    note = (
        f"The fuser's weights, averaged over {found.images:,} images of the test split. Layers are counted from 1; each row "
        "sums to one, a stronger colour is more. Framed cells are the layers that a row can read."
    )
    groups = weight_maps(found, found.by_group(), _decoder_layers)
    layers = weight_maps(found, found.by_layer(), lambda row: f"layer {row['decoder_layer']}")
    return [Section(*titles[0], groups, note), Section(*titles[1], layers)]


def _decoder_layers(row: Mapping[str, Any]) -> str:
    first, last = row["decoder_layers"][0], row["decoder_layers"][-1]
    return f"layers {first} to {last}" if first != last else f"layer {first}"


def weight_maps(found: ReadLayers, rows: Sequence[Mapping[str, Any]], name: Callable[[Mapping[str, Any]], str]) -> str:
    """One heat map for keys and one for values, or one for both. rows: of `by_group` or `by_layer`; name: what a row is called."""
    columns = found.weights.labels
    maps = []
    for kv in rows[0]["weights"]:
        values = []
        for row in rows:
            first = row["decoder_layers"][0] if "group" in row else row["decoder_layer"]
            read = {columns[place] for place in found.members[found.group_of_layer[first - 1]]}
            known = dict(zip(row["vision_layers"], row["weights"][kv], strict=True))
            values.append([known[column] if column in read else None for column in columns])
        maps.append(heat_map(values, [name(row) for row in rows], columns, kv, "vision layer"))
    return f"<div class='row'>{''.join(maps)}</div>"


def memory_section(run: FinishedRun, inside: Inside) -> Section:
    """How much the patches of some images contributed to each decoder layer."""
    title = "Memory contributions by decoder layer"
    if not inside.maps:
        return Section("memory", title, missing(inside.why.get("maps", "Not computed."), *_again(run, inside, "maps")))
    answers = {one.id: one for one in run.predictions or []}
    note = (
        "Each patch has one memory slot in every decoder layer. Shown is the norm of what it adds to the layer's output at the "
        "last token of the question, minus what its slot would add without the image; brighter is more."
    )
    return Section("memory", title, memory_maps(inside.maps, answers), note)


def _again(run: FinishedRun, inside: Inside, what: str) -> list[str]:
    if what in inside.why and "base" not in inside.why:
        return []
    return [f"dehvf-kit report {quote(str(run.folder))}" + (f" {SOME_DATA}" if run.recipe.data is None else "")]


def answers_section(run: FinishedRun, samples: Mapping[str, Sample]) -> Section:
    """Correct and wrong answers with their images, spread over the kinds of questions."""
    if run.predictions is None:
        return Section("answers", "Answers", _no_answers(run))
    parts = []
    for right, title in ((False, "Wrong"), (True, "Right")):
        found = sorted((one for one in run.predictions if one.right is right), key=lambda one: one.kind)
        chosen = _spread_over_kinds(found, EXAMPLES)
        cards = "".join(_card(run, one, samples.get(one.id)) for one in chosen)
        shown = f"{len(chosen)} of {len(found):,}" if found else "none"
        parts.append(f"<h3>{title} <span class='soft'>({shown})</span></h3><div class='cards'>{cards}</div>")
    return Section("answers", "Answers", "".join(parts))


def _spread_over_kinds(found: Sequence[Prediction], count: int) -> list[Prediction]:
    kinds = {kind: [one for one in found if one.kind == kind] for kind in dict.fromkeys(one.kind for one in found)}
    share = max(1, count // max(1, len(kinds)))
    chosen = [one for several in kinds.values() for one in evenly(several, share)]
    rest = [one for one in found if one not in chosen]
    return evenly([*chosen, *evenly(rest, count - len(chosen))] if len(chosen) < count else chosen, count)


def _card(run: FinishedRun, one: Prediction, sample: Sample | None) -> str:
    shown = ""
    if sample is not None and sample.image is not None:
        try:
            shown = f"<img src='{inline_image(open_image(sample))}' alt=''>"
        except DehvfError:
            shown = "<p class='soft'>its image cannot be read here</p>"
    expected = "" if one.right else f" <span class='soft'>correct: {text(one.answer)}</span>"
    verdict = "right" if one.right else "wrong"
    others = ""
    for name, answers in run.baselines.items():
        other = next((answer for answer in answers if answer.id == one.id), None)
        if other is not None:
            others += f"<p class='soft'>{text(name)}: {text(_cut(other.prediction))}</p>"
    return (
        f"<div class='card'>{shown}<p>{text(_cut(one.question, 400))}</p>"
        f"<p class='{verdict}'><b>{text(_cut(one.prediction))}</b>{expected}</p>{others}</div>"
    )


def _cut(words: str, length: int = 160) -> str:
    words = words.strip() or "(nothing)"
    return words if len(words) <= length else f"{words[: length - 1]}…"


def _no_answers(run: FinishedRun) -> str:
    command = eval_command(run.adapter, run.folder)
    if run.recipe.data is None:
        return missing(f"{NO_DATA} Name one, for example:", f"{command} {SOME_DATA}")
    return missing("This run has no saved answers.", command)


def eval_command(adapter: Path, folder: Path) -> str:
    """The command that saves a run's answers where the page looks for them."""
    return f"dehvf-kit eval {quote(str(adapter))} --output {quote(str(folder / PREDICTIONS))}"
