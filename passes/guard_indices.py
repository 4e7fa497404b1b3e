"""Guarding: every gather and scatter_add gets a check of its indices, which runs before it."""

from __future__ import annotations

import numpy as np

from graphkb.ir.dims import Dim
from graphkb.ir.graph import Graph
from graphkb.ir.node import Node, make, remake
from graphkb.ir.origin import set_override
from graphkb.ir.record import record
from graphkb.ops import leaf
from graphkb.ops.elementwise import cast, greater_equal
from graphkb.ops.index import guard, scatter_add
from graphkb.ops.reduce import ANY, reduce

INDIRECT = {"gather", "scatter_add"}


@record
class GuardIndices:
    """gather(x, i) -> gather(x, guard(i, any(i out of range))), so that no kernel reads or writes past an array.

    The check is a node of its own: kernels that it guards depend on it, and whoever runs them stops where it holds.
    Sums of float16 are made in float32 here, as NumPy's are.
    """

    name: str = "guard_indices"

    def apply(self, graph: Graph) -> Graph:
        if not any(node.op.name in INDIRECT for node in graph.nodes):
            return graph
        new: dict[Node, Node] = {}
        for node in graph.nodes:
            inputs = tuple([new[i] for i in node.inputs])
            if node.op.name in INDIRECT:
                previous = set_override(node.origin)
                new[node] = _guarded(node, *inputs)
                set_override(previous)
            else:
                new[node] = remake(node, inputs)
        return graph.with_roots([new[r] for r in graph.roots])


def _guarded(node: Node, x: Node, indices: Node) -> Node:
    axis = node.attrs["axis"]
    length = node.attrs["shape"][axis] if node.op.name == "scatter_add" else x.shape[axis]
    if not _is_known_to_fit(indices, length):
        indices = guard(indices, _out_of_range(indices, length))
    if node.op.name == "scatter_add" and x.dtype == "float16":
        return cast(scatter_add(cast(x, "float32"), indices, axis, node.attrs["shape"]), "float16")
    return make(node.op, (x, indices), node.attrs)


def _is_known_to_fit(indices: Node, length: Dim) -> bool:
    if indices.op.name == "guard":
        return True
    if indices.op.name != "constant" or not isinstance(length, int):
        return False
    array = indices.attrs["value"].array
    return bool(np.all((array >= 0) & (array < length)))


def _out_of_range(indices: Node, length: Dim) -> Node:
    """Whether any index is negative or too large: as unsigned numbers, negative ones are too large."""
    bits = indices.dtype.lstrip("uint")
    dtype = f"uint{bits}" if isinstance(length, int) and length < 1 << (int(bits) - 1) else "uint64"
    outside = greater_equal(cast(indices, dtype), leaf.size(length, dtype))
    return reduce(ANY, outside, tuple(range(indices.ndim)))
