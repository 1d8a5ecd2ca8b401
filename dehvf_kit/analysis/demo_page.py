"""One self-contained page about a demo run: scores, the fuser's weights as a heat map, answers with their pictures."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dehvf_kit.analysis.fuser_weights import LayerWeights
from dehvf_kit.scoring.answers import Prediction
from dehvf_kit.shapes import KV

CELL = 15
STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:1060px;margin:2rem auto;padding:0 1rem;color:#1d2433;background:#fff}
h1{font-size:1.6rem;margin-bottom:.2rem}h2{font-size:1.15rem;margin-top:2.2rem}p.note{color:#5a6477;margin-top:.2rem}
table{border-collapse:collapse}td,th{padding:.25rem .9rem .25rem 0;text-align:left}td.n,th.n{text-align:right}
tr+tr td{border-top:1px solid #e4e7ee}.maps{display:flex;gap:2rem;flex-wrap:wrap}
.cards{display:grid;grid-template-columns:repeat(auto-fill,minmax(190px,1fr));gap:14px}
.card{border:1px solid #e4e7ee;border-radius:8px;padding:10px}
.card img{width:96px;height:96px;image-rendering:pixelated;border-radius:4px}
.card p{margin:.3rem 0}.right{color:#15703c}.wrong{color:#b3261e}.blind{color:#5a6477;font-size:.87em}
"""


def write_page(
    path: Path,
    title: str,
    facts: Sequence[str],
    scores: Mapping[str, Mapping[str, Any]],
    weights: LayerWeights | None,
    predictions: Sequence[Prediction],
    blind: Sequence[Prediction],
    examples: int = 18,
) -> None:
    """Write the page. scores: per model what `accuracy` returns; predictions and blind answer the same questions."""
    parts = [
        f"<!doctype html><html lang='en'><meta charset='utf-8'><title>{html.escape(title)}</title><style>{STYLE}</style>",
        f"<h1>{html.escape(title)}</h1>",
        *(f"<p class='note'>{html.escape(fact)}</p>" for fact in facts),
        "<h2>Accuracy on pictures never seen in training</h2>",
        _score_table(scores),
    ]
    if weights is not None:
        parts += [
            "<h2>Which vision layers each decoder layer reads</h2>",
            "<p class='note'>The fuser's weights, averaged over the test pictures. Rows: decoder layers, counted from 1. "
            "Columns: vision layers, counted from 1. Each row sums to one; darker is more.</p>",
            f"<div class='maps'>{''.join(_heat_map(weights, kv) for kv in range(weights.weights.shape[1]))}</div>",
        ]
    parts += [
        "<h2>Some answers</h2>",
        f"<div class='cards'>{''.join(_cards(predictions, blind, examples))}</div></html>",
    ]
    path.write_text("\n".join(parts) + "\n", encoding="utf-8")


def _score_table(scores: Mapping[str, Mapping[str, Any]]) -> str:
    kinds = list(next(iter(scores.values()))["by_kind"])
    head = "".join(f"<th class='n'>{html.escape(kind)}</th>" for kind in ["all", *kinds])
    rows = []
    for name, score in scores.items():
        cells = [score["all"], *(score["by_kind"][kind] for kind in kinds)]
        rows.append(
            f"<tr><td>{html.escape(name)}</td>"
            + "".join(f"<td class='n'>{cell['accuracy']:.1%}</td>" for cell in cells)
            + "</tr>"
        )
    counts = next(iter(scores.values()))
    questions = [counts["all"], *(counts["by_kind"][kind] for kind in kinds)]
    rows.append(
        "<tr><td>questions</td>" + "".join(f"<td class='n'>{cell['questions']:,}</td>" for cell in questions) + "</tr>"
    )
    return f"<table><tr><th></th>{head}</tr>{''.join(rows)}</table>"


def _heat_map(weights: LayerWeights, kv: int) -> str:
    """One role's weights as an SVG grid."""
    table = weights.weights[:, kv]
    rows, columns = table.shape
    left, top = 58, 44
    width, height = left + columns * CELL * 2 + 8, top + rows * CELL + 6
    name = KV[kv] if weights.weights.shape[1] > 1 else "key and value"
    parts = [
        f"<svg width='{width}' height='{height}' font-family='system-ui,sans-serif' font-size='10' role='img' "
        f"aria-label='weights for {name}'>",
        f"<text x='{left}' y='14' font-size='13'>memory {name}s, by vision layer</text>"
        if weights.weights.shape[1] > 1
        else f"<text x='{left}' y='14' font-size='13'>by vision layer</text>",
    ]
    for column, label in enumerate(weights.labels):
        parts.append(f"<text x='{left + column * CELL * 2 + CELL}' y='{top - 6}' text-anchor='middle'>{label}</text>")
    for row in range(rows):
        parts.append(f"<text x='{left - 6}' y='{top + row * CELL + 11}' text-anchor='end'>layer {row + 1}</text>")
        for column in range(columns):
            value = float(table[row, column])
            if value <= 0:
                continue
            x, y = left + column * CELL * 2, top + row * CELL
            shade = f"rgb({round(246 - 220 * value)},{round(249 - 190 * value)},{round(255 - 120 * value)})"
            parts.append(
                f"<rect x='{x}' y='{y}' width='{CELL * 2 - 1}' height='{CELL - 1}' fill='{shade}'><title>{value:.3f}</title></rect>"
            )
    return "".join([*parts, "</svg>"])


def _cards(predictions: Sequence[Prediction], blind: Sequence[Prediction], count: int) -> list[str]:
    """Examples spread over question kinds, right and wrong ones in the proportion they have."""
    kinds = sorted({prediction.kind for prediction in predictions})
    chosen: list[int] = []
    for kind in kinds:
        places = [place for place, one in enumerate(predictions) if one.kind == kind and one.image]
        step = max(1, len(places) * len(kinds) // count)
        chosen += places[::step][: count // len(kinds)]
    cards = []
    for place in chosen:
        one, other = predictions[place], blind[place]
        data = base64.b64encode(Path(one.image).read_bytes()).decode()
        verdict = "right" if one.right else "wrong"
        answer = html.escape(one.prediction or "(nothing)")
        told = "" if one.right else f" (it is {html.escape(one.answer)})"
        cards.append(
            f"<div class='card'><img src='data:image/png;base64,{data}' alt=''><p>{html.escape(one.question)}</p>"
            f"<p class='{verdict}'><b>{answer}</b>{told}</p>"
            f"<p class='blind'>without pictures: {html.escape(other.prediction)}</p></div>"
        )
    return cards
