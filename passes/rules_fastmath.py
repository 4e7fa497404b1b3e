"""Rules that change values: they reorder roundings, and take values to be finite and the sign of zero to be nothing."""

from __future__ import annotations

import numpy as np

from graphkb.ir.node import Node, make
from graphkb.ops import elementwise as ew
from graphkb.ops import reduce as reductions
from graphkb.ops.leaf import constant
from graphkb.passes.patterns import full, is_constant, is_float, scalar, spread
from graphkb.passes.rewrite import rule
from graphkb.passes.rules_reduce import join_reductions


@rule("add", "sub")
def fast_add_zero(node: Node) -> Node | None:
    """x + 0.0 -> x, x - 0.0 -> x, 0.0 - x -> -x"""
    a, b = node.inputs
    if scalar(b) == 0:
        return spread(a, node)
    return spread(-b, node) if node.op is ew.sub and scalar(a) == 0 else None


@rule("mul")
def fast_mul_zero(node: Node) -> Node | None:
    """x * 0.0 -> 0.0"""
    return full(0, node) if scalar(node.inputs[1]) == 0 else None


@rule("sub")
def fast_sub_self(node: Node) -> Node | None:
    """x - x -> 0.0"""
    a, b = node.inputs
    return full(0, node) if a is b else None


@rule("div")
def fast_div_self(node: Node) -> Node | None:
    """x / x -> 1.0"""
    a, b = node.inputs
    return full(1, node) if a is b else None


@rule("sub")
def fast_sub_constant(node: Node) -> Node | None:
    """x - c -> x + -c"""
    x, c = node.inputs
    return x + (-c) if is_constant(c) and not is_constant(x) else None


@rule("add", "mul")
def fast_constants(node: Node) -> Node | None:
    """(x + c) + d -> x + (c + d), (x * c) * d -> x * (c * d)"""
    inner, d = node.inputs
    if inner.op is not node.op or not is_constant(d) or not is_constant(inner.inputs[1]):
        return None
    x, c = inner.inputs
    return None if is_constant(x) else make(node.op, (x, make(node.op, (c, d))))


@rule("div")
def fast_div_constant(node: Node) -> Node | None:
    """x / c -> x * (1 / c)"""
    x, c = node.inputs
    value = scalar(c)
    if value is None or is_constant(x):
        return None
    inverse = np.asarray(1 / np.float64(value) if value else np.inf).astype(node.dtype)
    # An inverse without its full precision would cost more than a rounding.
    if not np.isfinite(inverse) or abs(inverse) < np.finfo(node.dtype).tiny:
        return None
    return x * constant(inverse)


@rule("pow")
def fast_pow_half(node: Node) -> Node | None:
    """x**0.5 -> sqrt(x), x**-0.5 -> rsqrt(x)"""
    x, power = node.inputs
    value = scalar(power) if is_float(node) else None
    if value not in (0.5, -0.5):
        return None
    return spread(ew.sqrt(x) if value == 0.5 else ew.rsqrt(x), node)


@rule("div")
def fast_div_sqrt(node: Node) -> Node | None:
    """x / sqrt(y) -> x * rsqrt(y)"""
    x, root = node.inputs
    return x * ew.rsqrt(root.inputs[0]) if root.op is ew.sqrt_ else None


@rule("sum")
def fast_sum_sum(node: Node) -> Node | None:
    """sum(sum(x, i), j) -> sum(x, i and j)"""
    return join_reductions(node)


@rule("sum")
def fast_sum_scaled(node: Node) -> Node | None:
    """sum(x * c) -> sum(x) * c, sum(-x) -> -sum(x)"""
    (x,) = node.inputs
    if x.op is ew.neg_:
        return -make(reductions.SUM, x.inputs, node.attrs)
    if x.op is ew.mul and not x.inputs[1].shape and is_constant(x.inputs[1]):
        base, c = x.inputs
        return make(reductions.SUM, (base,), node.attrs) * c
    return None


FASTMATH = (
    fast_add_zero,
    fast_mul_zero,
    fast_sub_self,
    fast_div_self,
    fast_sub_constant,
    fast_constants,
    fast_div_constant,
    fast_pow_half,
    fast_div_sqrt,
    fast_sum_sum,
    fast_sum_scaled,
)
