"""Gradients of softmax, sigmoid and their logarithms, as differentiation builds them, without quotients of zeros."""

from __future__ import annotations

from graphkb.ir.node import Node, make
from graphkb.ops import elementwise as ew
from graphkb.ops import reduce as reductions
from graphkb.ops import shape as sh
from graphkb.passes.patterns import scalar
from graphkb.passes.rewrite import rule


# ---------------------------------------------------------------------------------------------- parts
def is_shifted(x: Node, axes: tuple[int, ...]) -> bool:
    """Whether x is y - max(y), so that exp(x) is at most 1 and its sum at least 1."""
    if x.op is not ew.sub:
        return False
    y, shift = x.inputs
    if shift.op is ew.SELECT and shift.inputs[0].op is ew.isfinite_:
        shift = shift.inputs[1]
    return shift.op is reductions.MAX and shift.inputs[0] is y and shift.attrs["axes"] == axes


def kept_sum(node: Node) -> Node | None:
    """The sum that a node is with the summed axes kept as size 1, by keepdims or by a reshape."""
    total = node.inputs[0] if node.op is sh.RESHAPE else node
    if total.op is not reductions.SUM:
        return None
    return total if node.shape == reductions.reduced_shape(total.inputs[0].shape, total.attrs["axes"], True) else None


def is_sum_of_exp(total: Node) -> bool:
    """A sum of exp(x), over axes that surely have elements, of an x whose maximum was not yet subtracted."""
    if total.op is not reductions.SUM or total.inputs[0].op is not ew.exp_:
        return False
    x = total.inputs[0].inputs[0]
    axes = total.attrs["axes"]
    return all(isinstance(x.shape[a], int) and x.shape[a] > 0 for a in axes) and not is_shifted(x, axes)


def shift_of(x: Node, axes: tuple[int, ...]) -> Node:
    """The maximum over axes, but 0 where it is infinite or NaN, since inf - inf would be NaN."""
    largest = reductions.reduce(reductions.MAX, x, axes, True)
    return ew.select(make(ew.isfinite_, (largest,)), largest, 0)


def shifted(x: Node, axes: tuple[int, ...]) -> Node:
    """`x` less its maximum, unless that was subtracted already."""
    return x if is_shifted(x, axes) else x - shift_of(x, axes)


def softmax_of(x: Node, axes: tuple[int, ...]) -> Node:
    """exp(x) / sum(exp(x)), of the shifted x."""
    e = ew.exp(shifted(x, axes))
    return e / reductions.reduce_sum(e, axes, True)


def is_softmax(p: Node, x: Node, axes: tuple[int, ...]) -> bool:
    """Whether p is what `softmax_of` makes, with the sum in either form."""
    if p.op is not ew.div or p.inputs[0].op is not ew.exp_ or p.inputs[0].inputs[0] is not shifted(x, axes):
        return False
    total = kept_sum(p.inputs[1])
    return total is not None and total.inputs[0] is p.inputs[0] and total.attrs["axes"] == axes


# ---------------------------------------------------------------------------------------------- softmax
@rule("mul")
def softmax_gradient(node: Node) -> Node | None:
    """(g / s - sum(g * p / s)) * e -> p * (g - sum(g * p)) for p = e / s, e = exp(x), s = sum(e)"""
    # Fewer roundings, and for g = h / p, the gradient of log(p), h - p * sum(h): nothing is divided by a p that is 0.
    for a, e in (node.inputs, node.inputs[::-1]):
        if e.op is ew.exp_ and a.op in (ew.add, ew.sub):
            found = _softmax_gradient(a, e)
            if found is not None and found.type == node.type:
                return found
    return None


def _softmax_gradient(a: Node, e: Node) -> Node | None:
    direct, through = a.inputs
    sign = 1
    if direct.op is not ew.div or kept_sum(through) is None:
        direct, through = through, direct
        sign = -1 if a.op is ew.sub else 1
    spread = kept_sum(through)
    if direct.op is not ew.div or spread is None:
        return None
    inner, axes = spread.inputs[0], spread.attrs["axes"]
    if (a.op is ew.add) != (inner.op is ew.neg_):
        return None
    if inner.op is ew.neg_:
        inner = inner.inputs[0]
    if inner.op is not ew.div or inner.inputs[0].op is not ew.mul or inner.inputs[1] is not direct.inputs[1]:
        return None
    total, x = kept_sum(direct.inputs[1]), e.inputs[0]
    if total is None or total.inputs[0] is not e or total.attrs["axes"] != axes:
        return None
    if not is_shifted(x, axes) and not is_sum_of_exp(total):
        return None
    g, p = inner.inputs[0].inputs
    if not is_softmax(p, x, axes):
        g, p = p, g
    if not is_softmax(p, x, axes) or direct.inputs[0] is not g:
        return None
    if g.op is ew.div and g.inputs[1] is p:
        h = g.inputs[0]
        mean = p * reductions.reduce_sum(sh.broadcast_to(h, g.shape), axes, True)
        return h - mean if sign > 0 else mean - h
    slope = p * (g - reductions.reduce_sum(g * p, axes, True))
    return slope if sign > 0 else -slope


@rule("mul")
def log_sum_exp_gradient(node: Node) -> Node | None:
    """(g / s) * e -> g * (e / s) for e = exp(x), s = sum(e), of a shifted x"""
    # Where exp overflows, e and s are infinite and their quotient is NaN.
    for a, e in (node.inputs, node.inputs[::-1]):
        if e.op is not ew.exp_:
            continue
        slope = a.inputs[0] if a.op is sh.RESHAPE else a
        total = slope.inputs[-1] if slope.op in (ew.div, ew.reciprocal_) else None
        if total is None or not is_sum_of_exp(total) or total.inputs[0] is not e:
            continue
        p = softmax_of(e.inputs[0], total.attrs["axes"])
        if slope.op is ew.reciprocal_:
            return p if p.type == node.type and total.type.size == a.type.size else None
        g = sh.broadcast_to(slope.inputs[0], slope.shape)
        found = p * (sh.reshape(g, a.shape) if a.op is sh.RESHAPE else g)
        return found if found.type == node.type else None
    return None


# ---------------------------------------------------------------------------------------------- sigmoid
@rule("mul")
def sigmoid_gradient(node: Node) -> Node | None:
    """(g / s) * (s * c) -> g * c, (g / c) * (s * c) -> g * s for s = sigmoid(x), c = 1 - s, and so for sums of them"""
    # Where s or c vanishes, its quotient is infinite and the product NaN.
    for a, slope in (node.inputs, node.inputs[::-1]):
        pair = _sigmoid_slope(slope)
        if pair is None:
            continue
        found = _times_slope(a, *pair)
        if found is None and a.op in (ew.add, ew.sub):
            left, right = (_times_slope(term, *pair) for term in a.inputs)
            if left is not None and right is not None:
                found = left + right if a.op is ew.add else left - right
        if found is not None and found.type == node.type:
            return found
    return None


def _sigmoid_slope(node: Node) -> tuple[Node, Node] | None:
    """The s and 1 - s whose product a node is."""
    if node.op is not ew.mul:
        return None
    for s, c in (node.inputs, node.inputs[::-1]):
        if s.op is ew.sigmoid_ and c.op is ew.sub and c.inputs[1] is s and scalar(c.inputs[0]) == 1:
            return s, c
    return None


def _times_slope(a: Node, s: Node, c: Node) -> Node | None:
    if a.op is ew.div and a.inputs[1] in (s, c):
        return a.inputs[0] * (c if a.inputs[1] is s else s)
    if a.op is ew.reciprocal_ and a.inputs[0] in (s, c):
        return c if a.inputs[0] is s else s
    return None


GRADIENTS = (softmax_gradient, log_sum_exp_gradient, sigmoid_gradient)
