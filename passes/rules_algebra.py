"""Algebra of numbers: identities that hold for every value, NaN, infinities and signed zeros among them."""

from __future__ import annotations

import math

import numpy as np

from graphkb.ir.node import Node, make
from graphkb.ir.types import FLOATS, NUMPY_DTYPE, UNSIGNED
from graphkb.ops import elementwise as ew
from graphkb.ops.leaf import constant
from graphkb.passes.patterns import (
    full,
    is_constant,
    is_float,
    is_negative_zero,
    never_negative,
    never_negative_zero,
    scalar,
    spread,
)
from graphkb.passes.rewrite import rule


# ---------------------------------------------------------------------------------------------- order
@rule("add", "mul", "equal", "not_equal", "logical_and", "logical_or", "logical_xor")
def constant_last(node: Node) -> Node | None:
    """c + x -> x + c"""
    c, x = node.inputs
    if is_constant(c) and not is_constant(x):
        return make(node.op, (x, c))
    return None


# ---------------------------------------------------------------------------------------------- sums
@rule("add")
def add_zero(node: Node) -> Node | None:
    """x + 0 -> x, for floats x + -0.0 -> x"""
    x, zero = node.inputs
    value = scalar(zero)
    if value is None or value != 0:
        return None
    # -0.0 + 0.0 is 0.0, so a positive zero may only go where x is never -0.0.
    if is_float(node) and not is_negative_zero(value) and not never_negative_zero(x):
        return None
    return spread(x, node)


@rule("sub")
def sub_zero(node: Node) -> Node | None:
    """x - 0 -> x"""
    x, zero = node.inputs
    value = scalar(zero)
    if value is None or value != 0:
        return None
    if is_float(node) and is_negative_zero(value) and not never_negative_zero(x):
        return None
    return spread(x, node)


@rule("sub")
def zero_sub(node: Node) -> Node | None:
    """0 - x -> -x for integers, -0.0 - x -> -x for floats"""
    zero, x = node.inputs
    value = scalar(zero)
    # 0.0 - 0.0 is 0.0, but -(0.0) is -0.0.
    if value is not None and value == 0 and (not is_float(node) or is_negative_zero(value)):
        return spread(-x, node)
    return None


@rule("sub")
def sub_self(node: Node) -> Node | None:
    """x - x -> 0 for integers"""
    a, b = node.inputs
    return full(0, node) if a is b and not is_float(node) else None


@rule("add")
def add_neg(node: Node) -> Node | None:
    """x + -y -> x - y"""
    a, b = node.inputs
    if b.op is ew.neg_:
        return a - b.inputs[0]
    if a.op is ew.neg_:
        return b - a.inputs[0]
    return None


@rule("sub")
def sub_neg(node: Node) -> Node | None:
    """x - -y -> x + y"""
    a, b = node.inputs
    return a + b.inputs[0] if b.op is ew.neg_ else None


@rule("sub")
def sub_constant(node: Node) -> Node | None:
    """x - c -> x + -c for integers"""
    x, c = node.inputs
    if is_float(node) or not is_constant(c) or is_constant(x):
        return None
    return x + (-c)


@rule("add")
def add_constants(node: Node) -> Node | None:
    """(x + c) + d -> x + (c + d) for integers"""
    return None if is_float(node) else _join_constants(node)


@rule("mul")
def mul_constants(node: Node) -> Node | None:
    """(x * c) * d -> x * (c * d) for integers"""
    return None if is_float(node) else _join_constants(node)


def _join_constants(node: Node) -> Node | None:
    inner, d = node.inputs
    if inner.op is node.op and is_constant(d) and is_constant(inner.inputs[1]) and not is_constant(inner.inputs[0]):
        x, c = inner.inputs
        return make(node.op, (x, make(node.op, (c, d))))
    return None


# ---------------------------------------------------------------------------------------------- signs
@rule("neg")
def neg_neg(node: Node) -> Node | None:
    """--x -> x"""
    (x,) = node.inputs
    return x.inputs[0] if x.op is ew.neg_ else None


@rule("neg")
def neg_sub(node: Node) -> Node | None:
    """-(x - y) -> y - x for integers"""
    # For floats -(1 - 1) is -0.0.
    (x,) = node.inputs
    if x.op is ew.sub and not is_float(node):
        a, b = x.inputs
        return b - a
    return None


@rule("neg")
def neg_scaled(node: Node) -> Node | None:
    """-(x * c) -> x * -c, and so for x / c and c / x"""
    (x,) = node.inputs
    if x.op is ew.mul or x.op is ew.div:
        a, b = x.inputs
        if is_constant(b):
            return make(x.op, (a, -b))
        if is_constant(a):
            return make(x.op, (-a, b))
    return None


@rule("mul", "div")
def pull_neg(node: Node) -> Node | None:
    """-x * y -> -(x * y), -x * -y -> x * y, -x * c -> x * -c, and so for quotients"""
    a, b = node.inputs
    if a.op is ew.neg_:
        x = a.inputs[0]
        if b.op is ew.neg_:
            return make(node.op, (x, b.inputs[0]))
        return make(node.op, (x, -b)) if is_constant(b) else -make(node.op, (x, b))
    if b.op is ew.neg_:
        y = b.inputs[0]
        return make(node.op, (-a, y)) if is_constant(a) else -make(node.op, (a, y))
    return None


@rule("abs", "square", "cos", "cosh")
def even_of_sign(node: Node) -> Node | None:
    """f(-x) -> f(x) and f(abs(x)) -> f(x) for even f"""
    (x,) = node.inputs
    # -1 is 255 for uint8, and abs keeps it.
    if x.dtype in UNSIGNED and node.op is ew.abs_:
        return None
    if x.op is ew.neg_ or x.op is ew.abs_:
        return make(node.op, x.inputs)
    return None


@rule("abs", "relu")
def drop_sign(node: Node) -> Node | None:
    """abs(x) -> x and relu(x) -> x where x is never negative"""
    (x,) = node.inputs
    return x if never_negative(x) else None


@rule("relu")
def relu_relu(node: Node) -> Node | None:
    """relu(relu(x)) -> relu(x)"""
    (x,) = node.inputs
    return x if x.op is ew.relu_ else None


@rule("sign", "round", "floor", "ceil", "trunc")
def repeated_rounding(node: Node) -> Node | None:
    """floor(round(x)) -> round(x), sign(sign(x)) -> sign(x), floor(cast(i)) -> cast(i) for integers i"""
    (x,) = node.inputs
    if node.op is ew.sign_:
        return x if x.op is ew.sign_ else None
    if x.op in (ew.round_, ew.floor_, ew.ceil_, ew.trunc_, ew.sign_):
        return x
    return x if x.op is ew.CAST and not is_float(x.inputs[0]) else None


# ---------------------------------------------------------------------------------------------- products
@rule("mul")
def mul_one(node: Node) -> Node | None:
    """x * 1 -> x"""
    x, one = node.inputs
    return spread(x, node) if scalar(one) == 1 else None


@rule("mul")
def mul_minus_one(node: Node) -> Node | None:
    """x * -1 -> -x"""
    x, c = node.inputs
    return spread(-x, node) if scalar(c) == -1 else None


@rule("mul")
def mul_zero(node: Node) -> Node | None:
    """x * 0 -> 0 for integers"""
    # For floats the product of 0 and an infinity or NaN is NaN.
    return full(0, node) if not is_float(node) and scalar(node.inputs[1]) == 0 else None


@rule("mul")
def mul_self(node: Node) -> Node | None:
    """x * x -> square(x)"""
    a, b = node.inputs
    return ew.square(a) if a is b else None


@rule("div")
def div_one(node: Node) -> Node | None:
    """x / 1 -> x"""
    x, one = node.inputs
    return spread(x, node) if scalar(one) == 1 else None


@rule("div")
def div_power_of_two(node: Node) -> Node | None:
    """x / 2**k -> x * 2**-k"""
    x, c = node.inputs
    value = scalar(c)
    if value is None or value == 0 or not math.isfinite(value) or abs(math.frexp(value)[0]) != 0.5:
        return None
    # The reciprocal of a power of two is exact unless it overflows or falls below the least subnormal number.
    with np.errstate(all="ignore"):
        inverse = np.asarray(1 / value, NUMPY_DTYPE[node.dtype])
    if not np.isfinite(inverse) or float(inverse) * value != 1:
        return None
    return x * constant(inverse)


@rule("div")
def one_div(node: Node) -> Node | None:
    """1 / x -> reciprocal(x)"""
    one, x = node.inputs
    return spread(ew.reciprocal(x), node) if scalar(one) == 1 else None


@rule("reciprocal")
def reciprocal_sqrt(node: Node) -> Node | None:
    """reciprocal(sqrt(x)) -> rsqrt(x)"""
    (x,) = node.inputs
    return ew.rsqrt(x.inputs[0]) if x.op is ew.sqrt_ else None


@rule("floordiv")
def floordiv_one(node: Node) -> Node | None:
    """x // 1 -> x for integers"""
    # For floats inf // 1 is NaN.
    x, one = node.inputs
    return spread(x, node) if not is_float(node) and scalar(one) == 1 else None


@rule("mod")
def mod_one(node: Node) -> Node | None:
    """x % 1 -> 0 for integers"""
    return full(0, node) if not is_float(node) and scalar(node.inputs[1]) == 1 else None


# ---------------------------------------------------------------------------------------------- powers
@rule("pow")
def pow_constant(node: Node) -> Node | None:
    """x**0 -> 1, x**1 -> x, x**2 -> square(x), x**3 -> square(x) * x, x**4 -> square(square(x)), x**-1 -> 1 / x"""
    # Products are at most 1.5 units in the last place from the exact power, as good as a library's pow.
    x, power = node.inputs
    match scalar(power):
        case 0:
            return full(1, node)
        case 1:
            return spread(x, node)
        case 2:
            return spread(ew.square(x), node)
        case 3:
            return spread(ew.square(x) * x, node)
        case 4:
            return spread(ew.square(ew.square(x)), node)
        case -1 if is_float(node):
            return spread(ew.reciprocal(x), node)
    return None


@rule("pow")
def pow_half(node: Node) -> Node | None:
    """x**0.5 -> sqrt(x) and x**-0.5 -> rsqrt(x) where x is never negative"""
    # In general they differ: (-0.0)**0.5 is 0.0 and (-inf)**0.5 is inf, the roots are -0.0 and NaN.
    x, power = node.inputs
    value = scalar(power)
    if value in (0.5, -0.5) and never_negative(x):
        return spread(ew.sqrt(x) if value == 0.5 else ew.rsqrt(x), node)
    return None


@rule("pow")
def constant_pow(node: Node) -> Node | None:
    """1**x -> 1, for floats 2**x -> exp2(x)"""
    base, x = node.inputs
    value = scalar(base)
    if value == 1:
        return full(1, node)
    if value == 2 and is_float(node):
        return spread(make(ew.exp2_, (x,)), node)
    return None


# ---------------------------------------------------------------------------------------------- extrema
@rule("maximum", "minimum")
def extremum_self(node: Node) -> Node | None:
    """max(x, x) -> x"""
    a, b = node.inputs
    return a if a is b else None


@rule("maximum", "minimum")
def extremum_nested(node: Node) -> Node | None:
    """max(max(x, c), d) -> max(x, max(c, d))"""
    inner, d = node.inputs
    if inner.op is not node.op:
        return None
    x, c = inner.inputs
    if not is_constant(d) or not is_constant(c) or is_constant(x):
        return None
    # Which of two zeros max gives is not specified, so those stay in their order.
    if is_float(node) and (scalar(c) in (None, 0) or scalar(d) in (None, 0)):
        return None
    return make(node.op, (x, make(node.op, (c, d))))


@rule("maximum", "minimum")
def extremum_bound(node: Node) -> Node | None:
    """max(x, least value) -> x; for integers max(x, greatest value) -> the greatest value"""
    for x, c in (node.inputs, node.inputs[::-1]):
        value = scalar(c)
        if value is None:
            continue
        least, greatest = _bounds(node.dtype)
        if node.op is ew.min_:
            least, greatest = greatest, least
        if value == least:
            return spread(x, node)
        # For floats the other operand may be NaN.
        if value == greatest and not is_float(node):
            return full(value, node)
    return None


def _bounds(dtype: str) -> tuple[float, float]:
    if dtype in FLOATS:
        return -math.inf, math.inf
    if dtype == "bool":
        return 0, 1
    info = np.iinfo(dtype)
    return int(info.min), int(info.max)


@rule("maximum")
def maximum_zero(node: Node) -> Node | None:
    """max(x, 0) -> relu(x)"""
    x, zero = node.inputs
    value = scalar(zero)
    if value is not None and value == 0 and node.dtype != "bool" and not is_negative_zero(value):
        return spread(ew.relu(x), node)
    return None


ALGEBRA = (
    constant_last,
    add_zero,
    add_neg,
    add_constants,
    sub_zero,
    zero_sub,
    sub_self,
    sub_neg,
    sub_constant,
    neg_neg,
    neg_sub,
    neg_scaled,
    pull_neg,
    even_of_sign,
    drop_sign,
    relu_relu,
    repeated_rounding,
    mul_one,
    mul_minus_one,
    mul_zero,
    mul_self,
    mul_constants,
    div_one,
    div_power_of_two,
    one_div,
    reciprocal_sqrt,
    floordiv_one,
    mod_one,
    pow_constant,
    pow_half,
    constant_pow,
    extremum_self,
    extremum_nested,
    extremum_bound,
    maximum_zero,
)
