"""What the fuser's weights are worth, on a page: accuracy by kind of question with the weights replaced."""

from __future__ import annotations

from dehvf_kit_report.inside import Inside
from dehvf_kit_report.page import Section, missing, table
from dehvf_kit_report.weight_worth import WeightWorth, Worth

TITLE = "What the fuser's weights are worth"
HEADS = {
    "images": "mean over images",
    "layers": "mean over decoder layers",
    "kv": "mean of keys and values",
    "uniform": "mean of the group",
    "largest": "largest alone",
    "other": "another image's",
}


def worth_sections(inside: Inside) -> list[Section]:
    """The section; none where no question was asked again."""
    if inside.worth is None:
        why = inside.why.get("worth")
        return [Section("worth", TITLE, missing(why))] if why and "base" not in inside.why else []
    found = inside.worth
    head = ["questions about", "count", "as trained", *HEADS.values()]
    rows = []
    for kind, own in found.scores["own"].items():
        accuracy = f"{100 * own.accuracy:.1f}% ({100 * own.low:.1f} to {100 * own.high:.1f})"
        others = [_change(found.scores[name][kind]) for name in HEADS]
        rows.append([kind, f"{own.questions:,}", accuracy, *others])
    return [Section("worth", TITLE, table(head, rows), _note(found))]


def _change(score: Worth) -> str:
    return f"{-100 * score.lost:+.1f} ± {100 * score.half:.1f}"


def _note(found: WeightWorth) -> str:
    spread = ", ".join(f"{value:.3f} over {axis.replace('kv', 'keys and values')}" for axis, value in found.spread.items())
    left = f" {found.not_asked:,} questions without exactly one image were not asked." if found.not_asked else ""
    return (
        f"The adapter answered {found.questions:,} questions about {found.images:,} images once for each column, with other "
        "weights in place of its fuser's. Columns after the first: change of accuracy in points over the same questions, with "
        "its 95% interval. Where nothing is lost, that part of the choice carries nothing here. As trained, the largest weight is "
        f"{found.largest:.2f} on average; standard deviation of the weights: {spread}.{left}"
    )
