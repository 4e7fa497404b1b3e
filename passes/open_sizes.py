"""Opening sizes: the graph that serves many values of some unknown sizes, made from one set of values."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from graphkb.ir.dims import Dim, Symbol, free_symbols, substitute
from graphkb.ir.errors import OpenSizeError
from graphkb.ir.graph import Graph, graph_symbols
from graphkb.passes.size_guards import SizeGuards, size_guards
from graphkb.passes.unify_sizes import distinct_sizes, meeting_sizes


def open_sizes(
    graph: Graph, sizes: Mapping[Symbol, int], chosen: Collection[Symbol]
) -> tuple[Graph, SizeGuards, dict[Symbol, int]]:
    """The graph with the chosen sizes open and all others bound, what must hold of the open ones, and their values.

    Sizes that meet become one if they are equal now, and are bound if one of them is 1 and broadcasts. Those that
    are left have names of their own.

    Args:
        graph: as it was built.
        sizes: a value for every unknown size.
        chosen: the sizes that are to stay open.

    Raises:
        OpenSizeError: they can not stay open.
        ShapeError: the program is not valid for these sizes.
    """
    opened = graph.bind({s: n for s, n in sizes.items() if s not in chosen})
    while met := meeting_sizes(opened):
        opened = opened.bind(_settled(met, sizes))
    if not graph_symbols(opened):
        raise OpenSizeError("it meets a known size")
    renamed = distinct_sizes(opened)
    values = {**sizes, **{s: sizes[old] for old, new in renamed.items() for s in free_symbols(new)}}
    opened = opened.bind(renamed)
    guards = size_guards(opened)
    if not guards.hold(values):
        raise OpenSizeError("sizes broadcast or are empty here", lasting=False)
    return opened, guards, {s: values[s] for s in graph_symbols(opened)}


def _settled(met: Mapping[Symbol, Dim], sizes: Mapping[Symbol, int]) -> dict[Symbol, Dim]:
    settled: dict[Symbol, Dim] = {}
    for symbol, dim in met.items():
        value = substitute(dim, sizes)
        if value == sizes[symbol]:
            settled[symbol] = dim
        elif value == 1 and (symbols := free_symbols(dim)):
            settled |= {s: sizes[s] for s in symbols}
        else:
            settled[symbol] = sizes[symbol]
    return settled


__all__ = ["open_sizes"]
