"""Unification: unknown sizes that must agree for the program to run become one, so that code can be made for any."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

from graphkb.ir.dims import Apply, Dim, Expr, Symbol, free_symbols, sole_atom, symbol
from graphkb.ir.graph import Graph, all_nodes
from graphkb.ir.node import Node
from graphkb.ir.record import record
from graphkb.passes.equal_sizes import equal_sizes


@record
class UnifySizes:
    """Bind unknown sizes that meet: along a contracted axis, in a broadcast, beside each other in a concatenation.

    A size that meets a known one takes it. Broadcasting an unknown size that turns out to be 1 is given up: only
    code that knows all sizes can do that.
    """

    name: str = "unify_sizes"

    def apply(self, graph: Graph) -> Graph:
        while bindings := meeting_sizes(graph):
            graph = graph.bind(bindings)
        return graph


def distinct_sizes(graph: Graph) -> dict[Symbol, Expr]:
    """New symbols, of names of their own, for the unknown sizes of the inputs whose names others have already.

    Code is made, ordered and compared by the names of sizes, and people tell sizes apart by them.
    """
    dims = [dim for node in graph.inputs for dim in node.shape]
    symbols = dict.fromkeys([s for dim in dims for s in sorted(free_symbols(dim), key=lambda s: s.name)])
    taken = {s.name for s in symbols}
    seen: set[str] = set()
    renamed: dict[Symbol, Expr] = {}
    for one in symbols:
        if one.name in seen:
            name = next(n for i in count(2) if (n := f"{one.name}_{i}") not in taken)
            renamed[one] = symbol(name)
            taken.add(name)
        seen.add(one.name)
    return renamed


def meeting_sizes(graph: Graph) -> dict[Symbol, Dim]:
    """What unknown sizes become because of what they meet; nothing where all is settled."""
    return _updated(graph) or _met(graph)


def _met(graph: Graph) -> dict[Symbol, Dim]:
    """Bindings for sizes that meet anywhere; several at once, as long as they do not touch the same symbols."""
    found: dict[Symbol, Dim] = {}
    touched: set[Symbol] = set()
    for node in all_nodes(graph):
        for a, b in _meetings(node):
            if a == b:
                continue
            symbol, value = _oriented(a, b)
            if symbol is None:
                continue
            involved = {symbol} | free_symbols(value)
            if not involved & touched:
                touched |= involved
                found[symbol] = value
    return found


def _oriented(a: Dim, b: Dim) -> tuple[Symbol | None, Dim]:
    """Which symbol becomes what; None where neither side is a symbol by itself, or it would contain itself."""
    for left, right in ((b, a), (a, b)):
        atom = sole_atom(left)
        if isinstance(atom, Symbol) and atom not in free_symbols(right):
            return atom, right
    return None, a


def _meetings(node: Node) -> Iterator[tuple[Dim, Dim]]:
    """Pairs of sizes that must be equal, 1 aside."""
    for dim in node.shape:
        yield from _broadcasts(dim)
    yield from equal_sizes(node)


def _broadcasts(dim: Dim) -> Iterator[tuple[Dim, Dim]]:
    """The sizes that meet in `broadcast` atoms, wherever they stand in an expression."""
    if not isinstance(dim, Expr):
        return
    for monomial, _ in dim.terms:
        for atom, _ in monomial:
            if isinstance(atom, Apply):
                if atom.fn == "broadcast":
                    yield from ((atom.args[0], other) for other in atom.args[1:])
                for arg in atom.args:
                    yield from _broadcasts(arg)


def _updated(graph: Graph) -> dict[Symbol, Dim]:
    """Sizes that the updates of variables, whose shapes are known, decide."""
    found: dict[Symbol, Dim] = {}
    for cell, value in graph.updates:
        for known, dim in zip(cell.type.shape, value.shape):
            atom = sole_atom(dim)
            if isinstance(atom, Symbol):
                found[atom] = known
    return found
