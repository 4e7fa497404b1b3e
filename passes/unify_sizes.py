"""Unification: unknown sizes that must agree for the program to run become one, so that code can be made for any."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from graphkb.ir.dims import Apply, Dim, Expr, Symbol, free_symbols, sole_atom
from graphkb.ir.graph import Graph, bodies
from graphkb.ir.node import Node


@dataclass(frozen=True)
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


def meeting_sizes(graph: Graph) -> dict[Symbol, Dim]:
    """What unknown sizes become because of what they meet; nothing where all is settled."""
    return _updated(graph) or _met(graph)


def _met(graph: Graph) -> dict[Symbol, Dim]:
    """Bindings for sizes that meet anywhere; several at once, as long as they do not touch the same symbols."""
    found: dict[Symbol, Dim] = {}
    touched: set[Symbol] = set()
    for node in _all_nodes(graph):
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


def _all_nodes(graph: Graph) -> Iterator[Node]:
    """The nodes of a graph and of the bodies inside it."""
    for node in graph.nodes:
        yield node
        for _, body in bodies(node):  # as deep as bodies nest
            yield from _all_nodes(body)


def _oriented(a: Dim, b: Dim) -> tuple[Symbol | None, Dim]:
    """Which symbol becomes what; None where neither side is a symbol by itself, or it would contain itself."""
    for left, right in ((b, a), (a, b)):
        atom = sole_atom(left)
        if isinstance(atom, Symbol) and atom not in free_symbols(right):
            return atom, right
    return None, a


def _meetings(node: Node) -> Iterator[tuple[Dim, Dim]]:
    """Pairs of sizes that must be equal, 1 aside."""
    attrs = node.attrs
    for dim in node.shape:
        yield from _broadcasts(dim)
    match node.op.name:
        case "dot":
            x, y = node.inputs
            yield from ((x.shape[a], y.shape[b]) for a, b in zip(attrs["batch_x"], attrs["batch_y"]))
            yield from ((x.shape[a], y.shape[b]) for a, b in zip(attrs["contract_x"], attrs["contract_y"]))
        case "conv":
            x, kernel = node.inputs
            n = len(attrs["strides"])
            yield from ((x.shape[-1], kernel.shape[-2]), *zip(x.shape[n + 1 : -1], kernel.shape[n:-2]))
        case "scatter_add":
            updates, indices = node.inputs
            axis, dims = attrs["axis"], attrs["shape"]
            yield from zip(updates.shape, (*dims[:axis], *indices.shape, *dims[axis + 1 :]))
        case "concatenate":
            for operand in node.inputs[1:]:
                pairs = enumerate(zip(node.inputs[0].shape, operand.shape))
                yield from (pair for axis, pair in pairs if axis != attrs["axis"])
        case "scan":
            body, length, states = attrs["body"], attrs["length"], attrs["states"]
            operands = [operand.shape for operand in node.inputs]
            for i in range(states, states + attrs["sequences"]):
                yield operands[i][0], length
                operands[i] = operands[i][1:]
            for shape, parameter in zip(operands, body.inputs):
                yield from zip(shape, parameter.shape)
            for parameter, after in zip(body.inputs[:states], body.outputs):
                yield from zip(parameter.shape, after.shape)
        case "cond":
            then, other = attrs["then"], attrs["other"]
            for body in (then, other):
                for operand, parameter in zip(node.inputs[1:], body.inputs):
                    yield from zip(operand.shape, parameter.shape)
            for a, b in zip(then.outputs, other.outputs):
                yield from zip(a.shape, b.shape)
        case _ if node.op.kind == "elementwise" or node.op.name in ("broadcast_to", "broadcast_like"):
            for operand in node.inputs:
                aligned = zip(reversed(node.shape), reversed(operand.shape))
                yield from ((m, n) for m, n in aligned if n != 1 and m != 1)
        case _:
            pass


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
