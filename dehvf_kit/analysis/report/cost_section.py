"""Parameters and costs of a recipe as tables: what `dehvf-kit build` prints."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dehvf_kit.analysis.report.page import Section, table, text
from dehvf_kit.costs.flops import FlopCount, count_flops
from dehvf_kit.costs.memory import MemoryUsage, memory_usage
from dehvf_kit.costs.parameters import ParameterTable, parameter_table
from dehvf_kit.utils.units import ratio, si

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
    right = "<h3>Memory</h3>" + _memory(memory)
    flop = "<h3>Forward FLOPs</h3>" + _flops(flops) + "<h3>One sample through the decoder</h3>" + _samples(flops)
    body = f"<div class='pair'><div>{left}{right}</div><div>{flop}</div></div>"
    note = "Counted from configs and shapes. A multiply-add is two FLOPs; samples do not include the encoders."
    return Section("costs", "Parameters and costs", body, note)


def _parameters(found: ParameterTable) -> str:
    rows, before = [], ""
    for term in found.terms:
        rows.append([term.node if term.node != before else "", term.term, f"{term.count:,}"])
        before = term.node
    shown = table(["", "", "numbers"], [*rows, ["sum", "", f"{found.trainable:,}"]], words=2, last_is_sum=True)
    if found.published is not None:
        equal = "equals" if found.matches else "differs from"
        shown += (
            f"<p class='note'>{found.as_published:,} in the published convention, which {equal} the published "
            f"{text(found.published.parameters)} ({text(found.published.source)}).</p>"
        )
    return shown


def _memory(found: MemoryUsage) -> str:
    rows = [
        ["adapter, float32", si(found.adapter, "B")],
        ["gradients and AdamW", si(found.gradients_and_optimiser, "B")],
    ]
    rows.append([f"decoder, {found.dtype}", si(found.decoder, "B")])
    rows += [[name, si(count, "B")] for name, count in found.vision.items()]
    if found.factored_per_image:
        rows.append(["an image's memory, factored (as stored)", si(found.factored_per_image, "B")])
        rows.append(["an image's memory, keys and values built", si(found.built_per_image, "B")])
    if found.prepended_cache_per_image:
        rows.append(["an image as tokens: its key/value cache", si(found.prepended_cache_per_image, "B")])
    return table(["", "bytes"], rows)


def _flops(found: FlopCount) -> str:
    rows = [
        [name, "per image", "not known" if count is None else si(count, "FLOP")] for name, count in found.vision.items()
    ]
    for name, cost in found.components.items():
        for count, unit in (
            (cost.per_step, "per step"),
            (cost.per_image, "per image"),
            (cost.per_token, "per text token"),
        ):
            if count:
                rows.append([name, unit, si(count, "FLOP")])
    rows.append(["decoder", "per text token", si(found.decoder_per_token, "FLOP")])
    return table(["", "", "FLOPs"], rows, words=2)


def _samples(found: FlopCount) -> str:
    rows = []
    for sample in found.samples:
        cells = [str(sample.tokens), si(sample.text, "")]
        for count in (sample.memory, sample.prepended):
            cells += ["-", "-"] if count is None else [si(count, ""), ratio(count, sample.text)]
        rows.append(cells)
    return table(["text tokens", "text alone", "in memory", "", "as tokens", ""], rows)
