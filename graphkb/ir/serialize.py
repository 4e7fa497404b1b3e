"""Flat forms of graphs for pickling: deep graphs pickle without recursion, shared cells stay shared."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from graphkb.ir.graph import Graph, toposort
from graphkb.ir.node import Node, make
from graphkb.ir.op import Op
from graphkb.ir.origin import Origin
from graphkb.ir.types import TensorType

# One row per node: op, positions of the inputs, attributes, type, origin; then the positions of the roots.
Flat = tuple[list[tuple[Op, tuple[int, ...], dict[str, Any], TensorType, Origin | None]], list[int]]


def flatten(roots: Sequence[Node]) -> Flat:
    """All nodes that the roots need, as rows that refer to one another by position."""
    order = toposort(roots)
    position = {node: i for i, node in enumerate(order)}
    rows = [(n.op, tuple(position[i] for i in n.inputs), dict(n.attrs), n.type, n.origin) for n in order]
    return rows, [position[r] for r in roots]


def unflatten(flat: Flat) -> list[Node]:
    """The roots of a flat form, interned anew."""
    rows, roots = flat
    nodes: list[Node] = []
    for op, inputs, attrs, type, origin in rows:
        nodes.append(make(op, tuple([nodes[i] for i in inputs]), attrs, type, origin))
    return [nodes[r] for r in roots]


def unflatten_one(flat: Flat) -> Node:
    return unflatten(flat)[0]


def flatten_graph(graph: Graph) -> tuple[Any, ...]:
    """A graph as `(flat nodes, number of inputs, number of outputs, cells, name)`."""
    flat = flatten(graph.inputs + graph.roots)
    return flat, len(graph.inputs), len(graph.outputs), [cell for cell, _ in graph.updates], graph.name


def unflatten_graph(form: tuple[Any, ...]) -> Graph:
    """The graph of `flatten_graph`."""
    flat, inputs, outputs, cells, name = form
    nodes = unflatten(flat)
    values = nodes[inputs + outputs :]
    return Graph(tuple(nodes[:inputs]), tuple(nodes[inputs : inputs + outputs]), tuple(zip(cells, values)), name)
