"""What each element-wise op of the op table is in instructions, on scalars and vectors alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from graphkb.codegen.builder import ITEM_SIZES, Builder, Value
from graphkb.codegen.random_draws import draw
from graphkb.codegen.vecmath import VECTOR_MATH
from graphkb.ops.random import DRAWS, FRACTION_BITS

Emit = Callable[..., Value]


def _compare(order: str) -> Emit:
    return lambda b, x, y: b.compare(order, x, y)


def _relu(b: Builder, x: Value) -> Value:
    return b.maximum(x, b.const_like(0, x))


def _reciprocal(b: Builder, x: Value) -> Value:
    return b.fdiv(b.const_like(1, x), x)


def _isinf(b: Builder, x: Value) -> Value:
    return b.fcmp("oeq", b.fabs(x), b.const_like(float("inf"), x))


def _isfinite(b: Builder, x: Value) -> Value:
    return b.fcmp("one", b.fabs(x), b.const_like(float("inf"), x))


def _minimum(b: Builder, x: Value, y: Value) -> Value:
    return b.and_(x, y) if x.dtype == "bool" else b.minimum(x, y)


def _maximum(b: Builder, x: Value, y: Value) -> Value:
    return b.or_(x, y) if x.dtype == "bool" else b.maximum(x, y)


def _power(b: Builder, x: Value, y: Value) -> Value:
    if x.dtype.startswith(("int", "uint")):
        return _integer_power(b, x, y)
    return VECTOR_MATH["pow"](b, x, y)


def _integer_power(b: Builder, x: Value, y: Value) -> Value:
    """Squaring and multiplying, lane by lane; negative exponents give 1/x truncated, which is 0 but for |x| = 1."""
    one, zero = b.const_like(1, x), b.const_like(0, x)
    signed = x.dtype.startswith("int")
    exponent = b.maximum(y, zero) if signed else y

    def more(result: Value, base: Value, rest: Value) -> Value:
        return b.any_lane(b.icmp("ne", rest, zero))

    def step(result: Value, base: Value, rest: Value) -> Sequence[Value]:
        odd = b.icmp("ne", b.and_(rest, one), zero)
        return b.select(odd, b.imul(result, base), result), b.imul(base, base), b.lshr(rest, 1)

    result = b.repeat(more, step, [one, x, exponent])[0]
    if not signed:
        return result
    odd = b.icmp("ne", b.and_(y, one), zero)
    unit = b.select(odd, x, one)
    is_unit = b.or_(b.icmp("eq", x, one), b.icmp("eq", x, b.const_like(-1, x)))
    return b.select(b.icmp("slt", y, zero), b.select(is_unit, unit, zero), result)


def _select(b: Builder, condition: Value, x: Value, y: Value) -> Value:
    return b.select(condition, x, y)


def _fraction(b: Builder, bits: Value, dtype: str) -> Value:
    """The uppermost bits as a number in [0, 1)."""
    count, signed = FRACTION_BITS[dtype], bits.dtype.lstrip("u")
    top = b.bitcast(b.lshr(bits, ITEM_SIZES[bits.dtype] * 8 - count), signed)  # signed conversions are quicker
    wide = "float32" if dtype == "float16" else dtype
    number = b.cast(top if dtype == "float64" else b.cast(top, "int32"), wide)
    return b.cast(b.fmul(number, b.const_like(2.0**-count, number)), dtype)


EMIT: dict[str, Emit] = {
    "add": Builder.add,
    "sub": Builder.sub,
    "mul": Builder.mul,
    "div": Builder.fdiv,
    "floordiv": Builder.floor_divide,
    "mod": Builder.remainder,
    "pow": _power,
    "maximum": _maximum,
    "minimum": _minimum,
    "equal": _compare("eq"),
    "not_equal": _compare("ne"),
    "less": _compare("lt"),
    "less_equal": _compare("le"),
    "greater": _compare("gt"),
    "greater_equal": _compare("ge"),
    "logical_and": Builder.and_,
    "logical_or": Builder.or_,
    "logical_xor": Builder.xor,
    "logical_not": Builder.not_,
    "neg": Builder.neg,
    "abs": Builder.abs,
    "sign": Builder.sign,
    "round": Builder.rint,
    "floor": Builder.floor,
    "ceil": Builder.ceil,
    "trunc": Builder.trunc,
    "square": lambda b, x: b.mul(x, x),
    "reciprocal": _reciprocal,
    "sqrt": Builder.sqrt,
    "isnan": Builder.isnan,
    "isinf": _isinf,
    "isfinite": _isfinite,
    "select": _select,
    "relu": _relu,
}
# Ops whose instructions stand in the vector math package, under the op's own name.
MATH = (
    "exp", "exp2", "expm1", "log", "log2", "log10", "log1p", "sin", "cos", "tan", "asin", "acos", "atan", "atan2",
    "sinh", "cosh", "tanh", "asinh", "acosh", "atanh", "sigmoid", "softplus", "erf", "erfc", "rsqrt",
)  # fmt: skip


def emit_op(b: Builder, op: str, args: Sequence[Value], dtype: str) -> Value:
    """The result of an element-wise op; scalars among vector operands are repeated in every lane."""
    lanes = max(a.lanes for a in args)
    args = [b.splat(a, lanes) for a in args]
    if op == "cast":
        return b.cast(args[0], dtype)
    if op == "fraction":
        return _fraction(b, args[0], dtype)
    if op in DRAWS:
        return draw(b, op, dtype, *args)
    if op in EMIT:
        return EMIT[op](b, *args)
    return VECTOR_MATH[op](b, *args)
