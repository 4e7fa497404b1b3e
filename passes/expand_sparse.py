"""Expansion: sparse products become gathers and scattered sums, bounds of integers become guards."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from graphkb.ir.dims import Dim, maximum
from graphkb.ir.graph import Graph
from graphkb.ir.node import Node, make, remake
from graphkb.ir.origin import set_override
from graphkb.ir.record import record
from graphkb.ops import leaf
from graphkb.ops.elementwise import and_, cast, const_like, greater_equal, less, or_, select, stop_gradient
from graphkb.ops.index import gather, guard, scatter_add
from graphkb.ops.reduce import ANY, reduce, reduce_sum
from graphkb.ops.shape import expand_dims, pad, reshape, slice_


@record
class ExpandSparse:
    """Sparse ops in terms of gather and scatter_add, whose entries are checked once and before anything is written.

    sparse_dot(v, r, c, x) -> scatter_add(v * gather(x, c), r), and so on; entries that stand for nothing add 0 at
    the first place. bounded(x) -> guard(x, any(x out of bounds)).
    """

    name: str = "expand_sparse"

    def apply(self, graph: Graph) -> Graph:
        if not any(node.op.name in _EXPANSIONS for node in graph.nodes):
            return graph
        new: dict[Node, Node] = {}
        for node in graph.nodes:
            inputs = tuple([new[i] for i in node.inputs])
            expand = _EXPANSIONS.get(node.op.name)
            if expand is None:
                new[node] = remake(node, inputs)
            else:
                previous = set_override(node.origin)
                new[node] = expand(node, *inputs)
                set_override(previous)
        return graph.with_roots([new[r] for r in graph.roots])


@record
class _Entries:
    """The entries of a sparse matrix: whether they stand for something, and places that are safe to use for all."""

    present: Node
    rows: Node
    columns: Node
    bad: Node

    def places(self, width: Dim) -> Node:
        """Where the entries lie in a dense matrix, row by row."""
        return guard(self.rows * leaf.size(width, "int64") + self.columns, self.bad)


def _entries(rows: Node, columns: Node, height: Dim, width: Dim) -> _Entries:
    zero = const_like(0, rows)
    present = make(and_, (greater_equal(rows, zero), greater_equal(columns, zero)))
    beyond = make(
        or_, (greater_equal(rows, leaf.size(height, "int64")), greater_equal(columns, leaf.size(width, "int64")))
    )
    bad = reduce(ANY, make(and_, (present, beyond)), (0,))
    safe = [select(present, at, zero) for at in (rows, columns)]
    return _Entries(present, guard(safe[0], bad), guard(safe[1], bad), bad)


def _at_least_one(size: Dim) -> Dim:
    """The first place exists in a matrix of this size, whatever the size turns out to be."""
    return size if isinstance(size, int) and size > 0 else maximum(size, 1)


def _table(x: Node) -> Node:
    """An array with at least one row."""
    return pad(x, (0,) * x.ndim, (1,) * x.ndim, (_at_least_one(x.shape[0]), *x.shape[1:]))


def _wide(x: Node) -> Node:
    return cast(x, "float32") if x.dtype == "float16" else x


def _column(x: Node) -> Node:
    return expand_dims(x, 1)


def _dot(node: Node, values: Node, rows: Node, columns: Node, dense: Node) -> Node:
    height = node.attrs["height"]
    at = _entries(rows, columns, height, dense.shape[0])
    terms = _column(_wide(values)) * _wide(gather(_table(dense), at.columns))
    terms = select(_column(at.present), terms, const_like(0, terms))
    total = scatter_add(terms, at.rows, 0, (_at_least_one(height), dense.shape[1]))
    return cast(slice_(total, (0, 0), node.shape), node.dtype)


def _sample(node: Node, left: Node, rows: Node, columns: Node, right: Node) -> Node:
    at = _entries(rows, columns, left.shape[0], right.shape[0])
    picked = [_wide(gather(_table(x), i)) for x, i in ((left, at.rows), (right, at.columns))]
    sums = reduce_sum(picked[0] * picked[1], (1,))
    return cast(select(at.present, sums, const_like(0, sums)), node.dtype)


def _dense(node: Node, values: Node, rows: Node, columns: Node) -> Node:
    height, width = node.shape
    at = _entries(rows, columns, height, width)
    terms = _wide(values)
    terms = select(at.present, terms, const_like(0, terms))
    total = scatter_add(terms, at.places(width), 0, (_at_least_one(height * width),))
    return cast(reshape(slice_(total, (0,), (height * width,)), node.shape), node.dtype)


def _pick(node: Node, x: Node, rows: Node, columns: Node) -> Node:
    height, width = x.shape
    at = _entries(rows, columns, height, width)
    picked = gather(_table(reshape(x, (height * width,))), at.places(width))
    return select(at.present, picked, const_like(0, picked))


def _bounded(node: Node, x: Node) -> Node:
    low, high = node.attrs["low"], node.attrs["high"]
    outside = make(or_, (less(x, _size(low, x.dtype)), less(_size(high, x.dtype), x)))
    # Bounds need not be those of an axis: a gather looks at its indices again.
    return stop_gradient(guard(x, reduce(ANY, outside, tuple(range(x.ndim)))))


def _size(size: Dim, dtype: str) -> Node:
    """A bound as an integer of a dtype that may be too narrow for it."""
    info = np.iinfo(dtype)
    return leaf.size(min(max(size, int(info.min)), int(info.max)) if isinstance(size, int) else size, dtype)


_EXPANSIONS: dict[str, Callable[..., Node]] = {
    "sparse_dot": _dot,
    "sparse_sample": _sample,
    "sparse_dense": _dense,
    "sparse_pick": _pick,
    "bounded": _bounded,
}
