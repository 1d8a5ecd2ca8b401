"""A self-contained HTML page: sections, tables, cards, inlined images; light and dark by what the reader prefers."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

from dehvf_kit._version import __version__

if TYPE_CHECKING:
    from PIL.Image import Image

GENERATOR = f"dehvf-kit {__version__}"
MARK = "<meta name='generator' content='dehvf-kit "
SMALL_PNG = 60_000  # bytes; larger images are inlined as JPEG
STYLE = """
:root{color-scheme:light dark;--ink:#1d2433;--soft:#5a6477;--line:#e1e5ec;--paper:#fff;--card:#f7f8fb;--accent:#3b6fc4;
--heat:#2a62bd;--good:#15703c;--bad:#b3261e;--a:#3b6fc4;--b:#d1495b;--c:#2a9d6f;--d:#b98a1d}
@media(prefers-color-scheme:dark){:root{--ink:#e6e9f0;--soft:#a3acbe;--line:#2e3545;--paper:#151922;--card:#1c212c;
--accent:#7fb0ff;--heat:#7fb0ff;--good:#6fcf97;--bad:#ff8a80;--a:#7fb0ff;--b:#ff8a97;--c:#6fd3a8;--d:#e3bd5c}}
*{box-sizing:border-box}body{font:15px/1.55 system-ui,-apple-system,'Segoe UI',Roboto,sans-serif;max-width:1080px;
margin:0 auto;padding:1.6rem 1.1rem 4rem;color:var(--ink);background:var(--paper)}
h1{font-size:1.55rem;line-height:1.25;margin:.2rem 0;overflow-wrap:anywhere}
h2{font-size:1.2rem;margin:2.6rem 0 .3rem;padding-top:.5rem;border-top:1px solid var(--line)}
h3{font-size:1rem;margin:1.3rem 0 .3rem}p.note,figcaption,.soft{color:var(--soft)}p.note{margin:.2rem 0 .8rem;max-width:76ch}
a{color:var(--accent)}nav{display:flex;flex-wrap:wrap;gap:.2rem 1rem;margin:.9rem 0;font-size:.93rem}
code,pre{font:13px/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace}pre{background:var(--card);border:1px solid
var(--line);border-radius:7px;padding:.7rem .9rem;overflow-x:auto;margin:.5rem 0}code{overflow-wrap:anywhere}
.wide{overflow-x:auto}table{border-collapse:collapse;margin:.4rem 0}th{font-weight:600;text-align:left;vertical-align:bottom}
td,th{padding:.28rem .9rem .28rem 0}td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}td.n{white-space:nowrap}
tbody td{border-top:1px solid var(--line);vertical-align:top}tr.sum td{font-weight:600}
.facts{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:.7rem;margin:1rem 0}
.fact{background:var(--card);border:1px solid var(--line);border-radius:9px;padding:.6rem .8rem}
.fact b{display:block;font-size:1.22rem;line-height:1.3}.fact span{color:var(--soft);font-size:.87rem}
.pair{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,400px),1fr));gap:1.2rem}
.pair>*{min-width:0}figure{margin:0}figcaption{font-size:.88rem}svg.chart{width:100%;height:auto;max-width:560px;display:block}
.row{display:flex;flex-wrap:wrap;gap:1.6rem}.row>*{max-width:100%}
.missing{border:1px dashed var(--soft);border-radius:8px;padding:.6rem .9rem;color:var(--soft);margin:.6rem 0}
.missing pre{color:var(--ink);margin-bottom:.1rem}.cards{display:grid;gap:.8rem;
grid-template-columns:repeat(auto-fill,minmax(min(100%,225px),1fr))}
.card{border:1px solid var(--line);background:var(--card);border-radius:9px;padding:.7rem;overflow-wrap:anywhere}
.card img{width:100%;height:120px;object-fit:contain;display:block;border-radius:5px}.card p{margin:.3rem 0}
.right{color:var(--good)}.wrong{color:var(--bad)}.card .soft{font-size:.87em}details{margin:.5rem 0}
summary{cursor:pointer;color:var(--accent)}.dg{max-width:none}@media print{nav{display:none}}
"""


@dataclass(frozen=True)
class Section:
    """A part of a page. id: its anchor; body: HTML."""

    id: str
    title: str
    body: str
    note: str = ""


def page(title: str, description: str, facts: Sequence[tuple[str, str]], sections: Sequence[Section]) -> str:
    """The whole page. facts: (figure, what it is) for the head."""
    links = "".join(f"<a href='#{section.id}'>{text(section.title)}</a>" for section in sections)
    cards = "".join(f"<div class='fact'><b>{text(value)}</b><span>{text(name)}</span></div>" for value, name in facts)
    parts = [
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>",
        "<meta name='viewport' content='width=device-width,initial-scale=1'>",
        f"<meta name='generator' content='{GENERATOR}'><title>{text(title)}</title><style>{STYLE}</style></head><body>",
        f"<h1>{text(title)}</h1><p class='note'>{text(description)}</p><div class='facts'>{cards}</div><nav>{links}</nav>",
    ]
    for section in sections:
        note = f"<p class='note'>{section.note}</p>" if section.note else ""
        parts.append(f"<section id='{section.id}'><h2>{text(section.title)}</h2>{note}{section.body}</section>")
    return "\n".join([*parts, "</body></html>"]) + "\n"


def text(value: object) -> str:
    """A value as HTML shows it."""
    return escape(str(value), quote=True)


def table(head: Sequence[str], rows: Iterable[Sequence[object]], words: int = 1, last_is_sum: bool = False) -> str:
    """A table whose first `words` columns are words and whose others are figures, set to the right."""
    kinds = ["" if column < words else " class='n'" for column in range(len(head))]
    top = "".join(f"<th{kind}>{text(cell)}</th>" for kind, cell in zip(kinds, head, strict=True))
    rows = list(rows)
    body = []
    for number, row in enumerate(rows):
        cells = "".join(f"<td{kind}>{text(cell)}</td>" for kind, cell in zip(kinds, row, strict=True))
        body.append(f"<tr{' class=sum' if last_is_sum and number == len(rows) - 1 else ''}>{cells}</tr>")
    return f"<div class='wide'><table><thead><tr>{top}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"


def missing(why: str, *commands: str) -> str:
    """The placeholder of a section without data: the reason, and the commands that make them."""
    shown = f"<pre>{text(chr(10).join(commands))}</pre>" if commands else ""
    return f"<div class='missing'>{text(why)}{shown}</div>"


def inline_image(image: Image, side: int = 240) -> str:
    """An image as a data URL, at most `side` pixels wide and high."""
    shown = image.convert("RGB")
    shown.thumbnail((side, side))
    for kind, more in (("png", {"optimize": True}), ("jpeg", {"quality": 88})):
        held = io.BytesIO()
        shown.save(held, kind, **more)
        if held.tell() <= SMALL_PNG:
            break
    return f"data:image/{kind};base64,{base64.b64encode(held.getvalue()).decode()}"
