"""Reductions: over nothing, over axes of size 1, over broadcasts, over other reductions and views.

In which order one reduction takes its elements is nowhere specified, so a view of the operand may change it; two sums
are not joined, since their order is.
"""

from __future__ import annotations

import math

import numpy as np

from graphkb.ir.dims import product
from graphkb.ir.node import Node, make
from graphkb.ir.types import FLOATS
from graphkb.ops import elementwise as ew
from graphkb.ops import leaf
from graphkb.ops import reduce as reductions
from graphkb.ops import shape as sh
from graphkb.passes.patterns import full, is_float, never_negative_zero, scalar
from graphkb.passes.rewrite import rule
from graphkb.passes.rules_views import aligned, is_exact

_ALL = ("sum", "prod", "max", "min", "any", "all")
# Every whole number up to here is a value of the dtype.
_EXACT = {"float16": 2**11, "float32": 2**24, "float64": 2**53}


def _plus_zero(x: Node, node: Node) -> Node:
    """What NumPy's sum of the one element x is: x, but 0.0 for -0.0."""
    if node.op is reductions.SUM and is_float(x) and not never_negative_zero(x):
        return x + 0
    return x


@rule(*_ALL)
def reduce_nothing(node: Node) -> Node | None:
    """sum(x, no axes) -> x"""
    return _plus_zero(node.inputs[0], node) if not node.attrs["axes"] else None


@rule(*_ALL)
def reduce_ones(node: Node) -> Node | None:
    """sum(x) -> reshape(x) over axes of size 1"""
    (x,) = node.inputs
    if all(x.shape[a] == 1 for a in node.attrs["axes"]):
        return sh.reshape(_plus_zero(x, node), node.shape)
    return None


@rule("variance")
def variance_sums(node: Node) -> Node:
    """variance(x) -> mean(square(x - mean(x)))"""
    # Gradients, which know that the mean adds nothing to them, are built by now.
    return reductions.mean_squared_distance(node.inputs[0], node.attrs["axes"], node.attrs["keepdims"])


@rule("argmax", "argmin")
def argmax_ones(node: Node) -> Node | None:
    """argmax(x) -> 0 over an axis of size 1"""
    return full(0, node) if node.inputs[0].shape[node.attrs["axis"]] == 1 else None


@rule("cumsum", "cumprod")
def cumulative_ones(node: Node) -> Node | None:
    """cumsum(x) -> x along an axis of size 1"""
    (x,) = node.inputs
    return x if x.shape[node.attrs["axis"]] == 1 and not node.attrs["exclusive"] else None


@rule("max", "min", "any", "all")
def extremum_broadcast(node: Node) -> Node | None:
    """max(broadcast_to(x)) -> max(x) over the axes that repeat"""
    (x,) = node.inputs
    if x.op is not sh.BROADCAST_TO or not is_exact(x):
        return None
    base = aligned(x.inputs[0], x.ndim)
    repeated = [a for a in node.attrs["axes"] if base.shape[a] != x.shape[a]]
    # Over no elements `any` is False whatever x is, and max is an error.
    if not repeated or not all(isinstance(x.shape[a], int) and x.shape[a] > 0 for a in repeated):
        return None
    kept = tuple([1 if a in repeated else d for a, d in enumerate(x.shape)])
    return sh.reshape(make(node.op, (sh.broadcast_to(base, kept),), node.attrs), node.shape)


@rule("sum")
def sum_broadcast(node: Node) -> Node | None:
    """sum(broadcast_to(x)) -> sum(x) * n over the axes that repeat n times"""
    # One rounded product is closer to the exact sum than n additions.
    (x,) = node.inputs
    if x.op is not sh.BROADCAST_TO or not is_exact(x):
        return None
    base = aligned(x.inputs[0], x.ndim)
    repeated = [a for a in node.attrs["axes"] if base.shape[a] != x.shape[a]]
    if not repeated:
        return None
    times = product([x.shape[a] for a in repeated])
    if is_float(node):
        if isinstance(times, int):
            # 0 * inf is NaN, where the sum of nothing is 0.
            if not 0 < times <= _EXACT[node.dtype]:
                return None
        else:
            # A negative number times none is -0.0, and a count may be too large for float16.
            value = scalar(x)
            if value is None or not 0 <= value < math.inf or node.dtype == "float16":
                return None
    elif isinstance(times, int):
        times = int(np.asarray(times).astype(node.dtype))  # sums of integers wrap around, and so does the count
    elif node.type.itemsize < 4:
        return None
    kept = tuple([1 if a in repeated else d for a, d in enumerate(x.shape)])
    inner = make(node.op, (sh.broadcast_to(base, kept),), node.attrs)
    return sh.reshape(inner * leaf.size(times, node.dtype), node.shape)


@rule(*_ALL)
def reduce_reduce(node: Node) -> Node | None:
    """max(max(x, i), j) -> max(x, i and j), and so for sums of integers"""
    # A floating-point sum in another order may round in another way.
    return None if node.dtype in FLOATS and node.op in (reductions.SUM, reductions.PROD) else join_reductions(node)


def join_reductions(node: Node) -> Node | None:
    """One reduction in the place of two of one kind."""
    (x,) = node.inputs
    if x.op is not node.op:
        return None
    inner, outer = x.attrs["axes"], node.attrs["axes"]
    if x.attrs["keepdims"]:
        axes = set(inner) | set(outer)
    else:
        left = [a for a in range(x.inputs[0].ndim) if a not in inner]
        axes = {*inner, *[left[a] for a in outer]}
    if x.attrs["keepdims"] != node.attrs["keepdims"]:
        joined = reductions.reduce(node.op, x.inputs[0], tuple(axes))
        return sh.reshape(joined, node.shape)
    return reductions.reduce(node.op, x.inputs[0], tuple(axes), node.attrs["keepdims"])


@rule(*_ALL)
def reduce_transpose(node: Node) -> Node | None:
    """sum(transpose(x)) -> sum(x) where the axes that stay keep their order"""
    (x,) = node.inputs
    if x.op is not sh.TRANSPOSE or node.attrs["keepdims"]:
        return None
    order = x.attrs["axes"]
    stay = [a for i, a in enumerate(order) if i not in node.attrs["axes"]]
    if stay != sorted(stay):
        return None
    return reductions.reduce(node.op, x.inputs[0], tuple([order[a] for a in node.attrs["axes"]]))


@rule(*_ALL)
def reduce_reshape(node: Node) -> Node | None:
    """sum(reshape(x)) -> sum(x) over all axes"""
    (x,) = node.inputs
    if x.op is not sh.RESHAPE or node.attrs["keepdims"] or len(node.attrs["axes"]) != x.ndim or not x.inputs[0].ndim:
        return None
    return reductions.reduce(node.op, x.inputs[0], tuple(range(x.inputs[0].ndim)))


@rule("any", "all")
def any_not(node: Node) -> Node | None:
    """any(not x) -> not all(x), all(not x) -> not any(x)"""
    (x,) = node.inputs
    if x.op is not ew.not_:
        return None
    opposite = reductions.ALL if node.op is reductions.ANY else reductions.ANY
    return make(ew.not_, (make(opposite, x.inputs, node.attrs),))


REDUCE = (
    reduce_nothing,
    variance_sums,
    reduce_ones,
    argmax_ones,
    cumulative_ones,
    extremum_broadcast,
    sum_broadcast,
    reduce_reduce,
    reduce_transpose,
    reduce_reshape,
    any_not,
)
