"""Trained parameters, term by term from the configs alone, and their comparison with a published figure."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal, InvalidOperation

from dehvf_kit.errors import DehvfError
from dehvf_kit.recipe.graph import Graph
from dehvf_kit.recipe.parser import PRINTED, PRINTED_EXAMPLES, Published

UNITS = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9}


@dataclass(frozen=True)
class ParameterTerm:
    """One term of one node's count: `fuser`, `cross_attention`, `blocks`, 199936."""

    node: str
    type: str
    term: str
    count: int


@dataclass(frozen=True)
class ParameterTable:
    """All terms of a graph, beside what was published for it (None where nothing was)."""

    terms: tuple[ParameterTerm, ...]
    published: Published | None = None

    @property
    def trainable(self) -> int:
        """Parameters this kit trains."""
        return sum(term.count for term in self.terms)

    @property
    def unused(self) -> int:
        """Parameters that the published count includes and no computation reads; dehvf-kit does not have them."""
        return self.published.unused_parameters if self.published else 0

    @property
    def as_published(self) -> int:
        """The count in the published convention."""
        return self.trainable + self.unused

    def rows(self) -> list[tuple[str, str, str]]:
        """Every term as (node, term, count); a node is named once."""
        nodes = ["", *(term.node for term in self.terms)]
        return [
            (term.node if term.node != before else "", term.term, f"{term.count:,}")
            for before, term in zip(nodes, self.terms, strict=False)
        ]

    @property
    def matches(self) -> bool | None:
        """Whether the count rounds to the published figure as printed; None where none was published."""
        return agrees(self.as_published, self.published.parameters) if self.published else None


def parameter_table(graph: Graph, published: Published | None = None) -> ParameterTable:
    """Count a checked graph. No module is built and no weight is needed."""
    terms = [
        ParameterTerm(name, graph.nodes[name].config.type, term, count)
        for name in graph.order
        for term, count in graph.num_params(name).items()
    ]
    return ParameterTable(tuple(terms), published)


def agrees(count: int, printed: str) -> bool:
    """Whether `count` rounds to a figure as it is printed: `agrees(4_171_520, "4.17M")`.

    Raises: DehvfError for a text that is no figure.
    """
    found = PRINTED.fullmatch(printed)
    if found is None:
        raise DehvfError(f"published.parameters: given {printed!r}; wants {PRINTED_EXAMPLES}")
    whole, fraction, unit = found[1].replace(",", ""), found[2] or "", found[3].upper()
    figure = Decimal(whole + fraction)
    try:
        return (Decimal(count) / UNITS[unit]).quantize(figure, rounding=ROUND_HALF_UP) == figure
    except InvalidOperation:  # a figure of more digits than decimals have
        return False
