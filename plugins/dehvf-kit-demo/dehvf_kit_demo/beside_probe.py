"""What linear probes of the encoder's layers predict for each kind of question, beside what the demo's models answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dehvf_kit_report.page import Section, table

from dehvf_kit.errors import DataError
from dehvf_kit.model.features import FeatureStore
from dehvf_kit.recipe.recipe import Recipe


def probed_kinds(recipe: Recipe, features: FeatureStore) -> dict[str, dict[str, Any]]:
    """By kind of question: chance, the best layer (from 1), its accuracy with interval, and the penultimate layer's accuracy.

    Empty where dehvf-kit-probe is not installed, or no kind can be probed.
    """
    try:
        from dehvf_kit_probe.probe import probe
    except ModuleNotFoundError:
        return {}
    try:
        found = probe(recipe, next(iter(recipe.vision)), features=features, reads=("both",))
    except DataError:
        return {}
    kinds = {}
    for kind in found.kinds:
        best, penultimate = kind.best, next(one for one in kind.layers if one.layer == found.penultimate)
        score = best.scores["both"]
        kinds[kind.name] = {
            "chance": kind.chance,
            "best_layer": best.layer + 1,
            **{name: score[name] for name in ("accuracy", "low", "high", "questions")},
            "penultimate": penultimate.accuracy,
        }
    return kinds


def probe_section(summary: Mapping[str, Any]) -> Section:
    """Accuracy of both models by kind of question, beside the probes'. summary: as `summary.json` holds it."""
    ours, blind, probed = summary["scores"]["by_kind"], summary["blind_scores"]["by_kind"], summary["probe"]
    head = ["questions about", "count", "chance", "linear probe, best layer", "penultimate layer", "DEHVF", "without images"]
    rows = []
    for kind, score in ours.items():
        told, without = probed.get(kind), blind.get(kind)
        probes = ["-", "-", "-"]
        if told:
            probes = [f"{told['chance']:.1%}", f"{_interval(told)}, layer {told['best_layer']}", f"{told['penultimate']:.1%}"]
        rows.append([kind, f"{score['questions']:,}", *probes, _interval(score), f"{without['accuracy']:.1%}" if without else "-"])
    note = (
        "Ridge classifiers on one vector for each layer (class token and mean patch), fitted to the same training images, 95% "
        "intervals; kinds whose answer depends on the question's words, or has too many answers, are not probed. A probe above the "
        "model says that the encoder tells the answer and the model does not use it yet."
    )
    return Section("probe", "Beside the probe's prediction", table(head, rows), note)


def _interval(score: Mapping[str, Any]) -> str:
    return f"{score['accuracy']:.1%} ({100 * score['low']:.1f} to {100 * score['high']:.1f})"
