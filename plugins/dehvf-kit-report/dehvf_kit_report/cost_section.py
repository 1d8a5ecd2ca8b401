"""Parameters and costs of a recipe as tables: what `dehvf-kit build` prints."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dehvf_kit.costs.flops import count_flops
from dehvf_kit.costs.memory import memory_usage
from dehvf_kit.costs.parameters import ParameterTable, parameter_table
from dehvf_kit_report.page import Section, table, text

if TYPE_CHECKING:
    from dehvf_kit.model.model import DehvfModel


def cost_section(model: DehvfModel) -> Section:
    """Everything that can be counted of a model, which may be on the meta device."""
    recipe = model.recipe
    dtypes = {name: tower.dtype for name, tower in recipe.vision.items()}
    with model.hooks_disabled():
        flops = count_flops(model.graph, model.decoder, model.towers)
        memory = memory_usage(model.graph, model.decoder, model.towers, recipe.decoder.dtype, dtypes)
    left = "<h3>Trained parameters</h3>" + _parameters(parameter_table(model.graph, recipe.published))
    right = "<h3>Memory</h3>" + table(["", "", "bytes"], _figures_last(memory.rows()), words=2)
    samples = table(["text tokens", "text alone", "in memory", "", "as tokens", ""], [sample.cells() for sample in flops.samples])
    flop = "<h3>Forward FLOPs</h3>" + table(["", "", "FLOPs"], _figures_last(flops.rows()), words=2)
    flop += "<h3>One sample through the decoder</h3>" + samples
    body = f"<div class='pair'><div>{left}{right}</div><div>{flop}</div></div>"
    note = "Counted from configs and shapes. A multiply-add is two FLOPs; samples do not include the encoders."
    return Section("costs", "Parameters and costs", body, note)


def _figures_last(rows: list[tuple[str, str, str]]) -> list[tuple[str, str, str]]:
    return [(name, note, figure) for name, figure, note in rows]


def _parameters(found: ParameterTable) -> str:
    rows = [*found.rows(), ("sum", "", f"{found.trainable:,}")]
    shown = table(["", "", "numbers"], rows, words=2, last_is_sum=True)
    if found.published is not None:
        equal = "equals" if found.matches else "differs from"
        shown += (
            f"<p class='note'>{found.as_published:,} in the published convention, which {equal} the published "
            f"{text(found.published.parameters)} ({text(found.published.source)}).</p>"
        )
    return shown
