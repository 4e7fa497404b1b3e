"""Comparisons, logic, selection and casts: identities that hold for every value, NaN among them."""

from __future__ import annotations

import numpy as np

from graphkb.ir.node import Node, make
from graphkb.ir.types import FLOATS, INTEGERS, NUMPY_DTYPE
from graphkb.ops import elementwise as ew
from graphkb.passes.patterns import full, is_constant, is_float, never_negative, scalar, spread
from graphkb.passes.rewrite import rule

_MIRROR = {ew.lt: ew.gt, ew.gt: ew.lt, ew.le: ew.ge, ew.ge: ew.le}
_OPPOSITE = {ew.lt: ew.ge, ew.ge: ew.lt, ew.gt: ew.le, ew.le: ew.gt}


def logical_not(x: Node) -> Node:
    return make(ew.not_, (x,))


# ---------------------------------------------------------------------------------------------- comparisons
@rule("greater", "greater_equal")
def greater_to_less(node: Node) -> Node | None:
    """x > y -> y < x, unless y is a constant"""
    a, b = node.inputs
    return None if is_constant(b) else make(_MIRROR[node.op], (b, a))


@rule("less", "less_equal")
def compare_constant(node: Node) -> Node | None:
    """c < x -> x > c"""
    c, x = node.inputs
    return make(_MIRROR[node.op], (x, c)) if is_constant(c) and not is_constant(x) else None


@rule("equal", "not_equal", "less", "less_equal", "greater", "greater_equal")
def compare_self(node: Node) -> Node | None:
    """x < x -> False, x <= x and x == x -> True, for floats not isnan(x)"""
    a, b = node.inputs
    if a is not b:
        return None
    holds = node.op in (ew.eq, ew.le, ew.ge)
    if not is_float(a) or node.op in (ew.lt, ew.gt):
        return full(holds, node)
    nan = make(ew.isnan_, (a,))
    return logical_not(nan) if holds else nan


@rule("equal", "not_equal", "less", "less_equal", "greater", "greater_equal")
def compare_bool(node: Node) -> Node | None:
    """cast(b) > 0 -> b, cast(b) == 0 -> not b, b == True -> b"""
    x, c = node.inputs
    value = scalar(c)
    b = x.inputs[0] if x.op is ew.CAST else x
    if value is None or b.dtype != "bool" or c.shape != () or node.op.numpy is None:
        return None
    kind = NUMPY_DTYPE[x.dtype].type
    at_false, at_true = (bool(node.op.numpy(kind(operand), kind(value))) for operand in (0, 1))
    if at_false == at_true:
        return full(at_true, node)
    return b if at_true else logical_not(b)


@rule("less", "greater_equal")
def compare_sign(node: Node) -> Node | None:
    """x < 0 -> False and, for unsigned integers, x >= 0 -> True where x is never negative"""
    x, zero = node.inputs
    if scalar(zero) == 0 and never_negative(x):
        if node.op is ew.lt:
            return full(False, node)
        return None if is_float(x) else full(True, node)
    return None


# ---------------------------------------------------------------------------------------------- logic
@rule("logical_not")
def not_not(node: Node) -> Node | None:
    """not not x -> x"""
    (x,) = node.inputs
    return x.inputs[0] if x.op is ew.not_ else None


@rule("logical_not")
def not_compare(node: Node) -> Node | None:
    """not x == y -> x != y; not x < y -> x >= y except for floats"""
    (x,) = node.inputs
    if x.op is ew.eq or x.op is ew.ne:
        return make(ew.ne if x.op is ew.eq else ew.eq, x.inputs)
    # With NaN both x < y and x >= y are false.
    if x.op in _OPPOSITE and not is_float(x.inputs[0]):
        return make(_OPPOSITE[x.op], x.inputs)
    return None


@rule("logical_and", "logical_or", "logical_xor")
def logic_constant(node: Node) -> Node | None:
    """x and True -> x, x and False -> False, x or False -> x, x or True -> True, x xor True -> not x"""
    x, c = node.inputs
    value = scalar(c)
    if value is None:
        return None
    if node.op is ew.xor_:
        return spread(logical_not(x) if value else x, node)
    return spread(x, node) if bool(value) == (node.op is ew.and_) else full(bool(value), node)


@rule("logical_and", "logical_or", "logical_xor")
def logic_self(node: Node) -> Node | None:
    """x and x -> x, x xor x -> False, x and not x -> False, x or not x -> True"""
    a, b = node.inputs
    if a is b:
        return full(False, node) if node.op is ew.xor_ else a
    if (a.op is ew.not_ and a.inputs[0] is b) or (b.op is ew.not_ and b.inputs[0] is a):
        return full(node.op is not ew.and_, node)
    return None


@rule("maximum", "minimum")
def extremum_of_bools(node: Node) -> Node | None:
    """max(x, y) -> x or y, min(x, y) -> x and y for bools"""
    if node.dtype != "bool":
        return None
    return make(ew.or_ if node.op is ew.max_ else ew.and_, node.inputs)


# ---------------------------------------------------------------------------------------------- selection
@rule("select")
def select_constant(node: Node) -> Node | None:
    """select(True, x, y) -> x, select(False, x, y) -> y"""
    condition, a, b = node.inputs
    value = scalar(condition)
    return None if value is None else spread(a if value else b, node)


@rule("select")
def select_same(node: Node) -> Node | None:
    """select(c, x, x) -> x"""
    _, a, b = node.inputs
    return spread(a, node) if a is b else None


@rule("select")
def select_not(node: Node) -> Node | None:
    """select(not c, x, y) -> select(c, y, x)"""
    condition, a, b = node.inputs
    return make(ew.SELECT, (condition.inputs[0], b, a)) if condition.op is ew.not_ else None


@rule("select")
def select_select(node: Node) -> Node | None:
    """select(c, select(c, x, y), z) -> select(c, x, z)"""
    condition, a, b = node.inputs
    if a.op is ew.SELECT and a.inputs[0] is condition:
        return spread(make(ew.SELECT, (condition, a.inputs[1], b)), node)
    if b.op is ew.SELECT and b.inputs[0] is condition:
        return spread(make(ew.SELECT, (condition, a, b.inputs[2])), node)
    return None


@rule("select")
def select_numbers(node: Node) -> Node | None:
    """select(c, 1, 0) -> cast(c), select(c, 0, 1) -> cast(not c)"""
    condition, a, b = node.inputs
    yes, no = scalar(a), scalar(b)
    # str tells -0.0 from 0.0.
    if yes is None or no is None or "-" in f"{yes}{no}":
        return None
    if (yes, no) == (1, 0):
        return spread(ew.cast(condition, node.dtype), node)
    if (yes, no) == (0, 1):
        return spread(ew.cast(logical_not(condition), node.dtype), node)
    return None


@rule("select")
def select_bools(node: Node) -> Node | None:
    """select(c, x, False) -> c and x, select(c, True, x) -> c or x for bools"""
    condition, a, b = node.inputs
    if node.dtype != "bool":
        return None
    if scalar(b) is False:
        return spread(make(ew.and_, (condition, a)), node)
    if scalar(a) is True:
        return spread(make(ew.or_, (condition, b)), node)
    return None


# ---------------------------------------------------------------------------------------------- casts
@rule("cast")
def cast_same(node: Node) -> Node | None:
    """cast(x, its own dtype) -> x"""
    (x,) = node.inputs
    return x if x.dtype == node.dtype else None


@rule("cast")
def cast_cast(node: Node) -> Node | None:
    """cast(cast(x, a), b) -> cast(x, b) where the first loses nothing that the second keeps"""
    (x,) = node.inputs
    if x.op is not ew.CAST:
        return None
    source, middle, target = x.inputs[0].dtype, x.dtype, node.dtype
    return ew.cast(x.inputs[0], target) if _skips(source, middle, target) else None


def _skips(source: str, middle: str, target: str) -> bool:
    if source == "bool":
        return True
    whole = [dtype in INTEGERS for dtype in (source, middle, target)]
    if all(whole):
        # Integers wrap around, so only the low bits count.
        return _holds(source, middle) or NUMPY_DTYPE[middle].itemsize >= NUMPY_DTYPE[target].itemsize
    if not _holds(source, middle):
        return False
    # A float out of the range of the integers converts to what the processor likes, an integer wraps around.
    return target not in INTEGERS or _holds(source, target)


def _holds(source: str, target: str) -> bool:
    """Whether every value of one dtype is a value of the other."""
    if target == "bool":
        return source == "bool"
    if source in INTEGERS and target in FLOATS:
        return np.iinfo(source).bits - (np.iinfo(source).min < 0) <= np.finfo(target).nmant + 1
    return bool(np.can_cast(source, target, "safe"))


LOGIC = (
    greater_to_less,
    compare_constant,
    compare_self,
    compare_bool,
    compare_sign,
    not_not,
    not_compare,
    logic_constant,
    logic_self,
    extremum_of_bools,
    select_constant,
    select_same,
    select_not,
    select_select,
    select_numbers,
    select_bools,
    cast_same,
    cast_cast,
)
