"""The contracts of the element-wise ops; float references are C's extended-precision functions and mpmath's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import mpmath
import numpy as np
from contracts import PAIRS, UNARY_SHAPES, Array, Case, Contract, Rng, binary, each, sample, split, unary

from graphkb.ir.types import BOOL, DTYPES, FLOATS, INTEGERS, NUMBERS

# The bounds of NumPy's own float loops, the worst of its float16, float32 and float64 versions.
NUMPY_ULP = 4.0


def _mp(function: Callable[[Any], Any]) -> Callable[[Array], Array]:
    """A function of mpmath in extended precision, special values by its limits."""

    def one(x: Any) -> Any:
        with mpmath.workprec(80):
            return np.longdouble(mpmath.nstr(function(mpmath.mpf(str(x))), 25))

    return lambda x: np.asarray(np.frompyfunc(one, 1, 1)(x)).astype(np.longdouble)


def _erf(x: Array) -> Array:
    return np.where(np.isnan(x), x, _mp(mpmath.erf)(np.where(np.isnan(x), 0, x)))


def _erfc(x: Array) -> Array:
    return np.where(np.isnan(x), x, _mp(mpmath.erfc)(np.clip(np.where(np.isnan(x), 0, x), -106, 106)))


def _integer_pow(a: int, b: int) -> int:
    if b >= 0:
        return pow(a, b, 1 << 64)
    return (1 if b % 2 == 0 else a) if a in (1, -1) else 0


def _float_op(
    name: str,
    reference: Callable[..., Any],
    low: float = -4,
    high: float = 4,
    ulp: float = NUMPY_ULP,
    smooth: bool = True,
) -> Contract:
    return Contract(name, unary(low, high), reference, FLOATS, ulp, None, (0,) if smooth else (), special=True)


def _number_op(
    name: str, floats: Callable[..., Any], integers: Callable[..., int], smooth: tuple[int, ...] = (0,)
) -> Contract:
    return Contract(name, unary(-4, 4), split(floats, integers), NUMBERS, smooth=smooth, special=True)


def _sign(x: int) -> int:
    return (x > 0) - (x < 0)


UNARY = (
    _number_op("neg", np.negative, lambda x: -x),
    _number_op("abs", np.abs, abs),
    _number_op("sign", np.sign, _sign),
    _number_op("square", np.square, lambda x: x * x),
    Contract(
        "relu",
        unary(-4, 4),
        split(lambda x: np.where(np.isnan(x), x, np.where(x > 0, x, 0)), lambda x: max(x, 0)),
        NUMBERS,
        smooth=(0,),
        special=True,
        zero_sign=False,
    ),
    _float_op("round", np.rint, ulp=0, smooth=False),
    _float_op("floor", np.floor, ulp=0, smooth=False),
    _float_op("ceil", np.ceil, ulp=0, smooth=False),
    _float_op("trunc", np.trunc, ulp=0, smooth=False),
    _float_op("reciprocal", lambda x: 1 / x, 0.5, 4, ulp=0.5),
    _float_op("sqrt", np.sqrt, 0.5, 9, ulp=0.51),
    _float_op("rsqrt", lambda x: 1 / np.sqrt(x), 0.5, 9, ulp=2),
    _float_op("exp", np.exp),
    _float_op("exp2", np.exp2),
    _float_op("expm1", np.expm1),
    _float_op("log", np.log, 0.1, 9),
    _float_op("log2", np.log2, 0.1, 9),
    _float_op("log10", np.log10, 0.1, 9),
    _float_op("log1p", np.log1p, -0.9, 9),
    _float_op("sin", np.sin),
    _float_op("cos", np.cos),
    _float_op("tan", np.tan, -1.2, 1.2),
    _float_op("asin", np.arcsin, -0.9, 0.9),
    _float_op("acos", np.arccos, -0.9, 0.9),
    _float_op("atan", np.arctan),
    _float_op("sinh", np.sinh),
    _float_op("cosh", np.cosh),
    _float_op("tanh", np.tanh),
    _float_op("asinh", np.arcsinh),
    _float_op("acosh", np.arccosh, 1.2, 9),
    _float_op("atanh", np.arctanh, -0.9, 0.9),
    _float_op("sigmoid", lambda x: 1 / (1 + np.exp(-x))),
    _float_op("softplus", lambda x: np.logaddexp(np.longdouble(0), x)),
    _float_op("erf", _erf, ulp=1),
    _float_op("erfc", _erfc, ulp=3),
    Contract("isnan", unary(-4, 4), np.isnan, FLOATS, special=True),
    Contract("isinf", unary(-4, 4), np.isinf, FLOATS, special=True),
    Contract("isfinite", unary(-4, 4), np.isfinite, FLOATS, special=True),
    Contract("logical_not", unary(0, 0), lambda x: x ^ True, BOOL, special=True),
)


def _compare(name: str, function: Callable[..., Any]) -> Contract:
    return Contract(name, binary(), lambda a, b: np.asarray(function(a, b)).astype(bool), DTYPES, special=True)


def _with_ties(dtype: str, rng: Rng) -> Iterator[Case]:
    yield from binary()(dtype, rng)
    for a, b in ((5, 5), (1031, 1)):
        yield Case((sample(dtype, (a,), rng).round(), sample(dtype, (b,), rng).round()))


BINARY = (
    Contract("add", binary(), split(np.add, lambda a, b: a + b), NUMBERS, smooth=(0, 1), special=True),
    Contract("sub", binary(), split(np.subtract, lambda a, b: a - b), NUMBERS, smooth=(0, 1), special=True),
    Contract("mul", binary(), split(np.multiply, lambda a, b: a * b), NUMBERS, smooth=(0, 1), special=True),
    Contract("div", binary((-4, 4), (0.5, 4)), np.true_divide, FLOATS, smooth=(0, 1), special=True),
    Contract(
        "floordiv",
        binary((-40, 40), (0.5, 4)),
        split(np.floor_divide, lambda a, b: a // b if b else 0),
        NUMBERS,
        ulp=1,
        special=True,
    ),
    # The smooth part lies between the jumps at multiples of the divisor.
    Contract(
        "mod",
        binary((0.1, 0.9), (1.1, 1.9)),
        split(np.remainder, lambda a, b: a % b if b else 0),
        NUMBERS,
        ulp=1,
        smooth=(0, 1),
        special=True,
    ),
    Contract(
        "pow", binary((0.5, 4), (-3, 3)), split(np.power, _integer_pow), NUMBERS, NUMPY_ULP, smooth=(0, 1), special=True
    ),
    Contract("atan2", binary((0.5, 4), (-4, -0.5)), np.arctan2, FLOATS, NUMPY_ULP, smooth=(0, 1), special=True),
    Contract(
        "maximum",
        binary(),
        split(lambda a, b: np.where(np.isnan(a) | (a > b), a, b), max, np.logical_or),
        DTYPES,
        smooth=(0, 1),
        special=True,
        zero_sign=False,
    ),
    Contract(
        "minimum",
        binary(),
        split(lambda a, b: np.where(np.isnan(a) | (a < b), a, b), min, np.logical_and),
        DTYPES,
        smooth=(0, 1),
        special=True,
        zero_sign=False,
    ),
    _compare("equal", lambda a, b: a == b),
    _compare("not_equal", lambda a, b: a != b),
    _compare("less", lambda a, b: a < b),
    _compare("less_equal", lambda a, b: a <= b),
    _compare("greater", lambda a, b: a > b),
    _compare("greater_equal", lambda a, b: a >= b),
    Contract("logical_and", binary(), lambda a, b: a & b, BOOL, special=True),
    Contract("logical_or", binary(), lambda a, b: a | b, BOOL, special=True),
    Contract("logical_xor", binary(), lambda a, b: a ^ b, BOOL, special=True),
)


def _select_cases(dtype: str, rng: Rng) -> Iterator[Case]:
    for a, b in PAIRS:
        operands = sample(dtype, a, rng), sample(dtype, b, rng)
        yield Case((sample("bool", np.broadcast_shapes(a, b), rng), *operands))
        yield Case((sample("bool", a, rng), *operands))
    yield Case((sample("bool", (), rng), sample(dtype, (3,), rng), sample(dtype, (3,), rng)))
    yield Case((sample("bool", (4, 1), rng), sample(dtype, (), rng), sample(dtype, (), rng)))


def _select(condition: Array, a: Array, b: Array) -> Array:
    """Built element by element, from what is picked alone."""
    condition, a, b = np.broadcast_arrays(condition, a, b)
    out = np.empty(condition.shape, a.dtype)
    for index in np.ndindex(condition.shape):
        out[index] = a[index] if condition[index] else b[index]
    return out


def _cast_cases(dtype: str, rng: Rng) -> Iterator[Case]:
    for target in DTYPES:
        for shape in ((), (0,), (3, 5), (257,)):
            low = 0 if target.startswith("u") else -120
            values = sample(dtype, shape, rng, low, 120)
            if dtype in INTEGERS and target == "float16":
                values = np.asarray(values % np.asarray(100, dtype))
            yield Case((values,), {"dtype": target})


def _cast(x: Array, dtype: str) -> Array:
    if dtype == "bool":
        return np.asarray(x != 0).astype(bool)
    if dtype in FLOATS:
        return np.asarray([int(v) for v in x.flat], np.longdouble).reshape(x.shape) if x.dtype == object else x
    return each(int)(x)


def _same(dtype: str, rng: Rng) -> Iterator[Case]:
    for shape in UNARY_SHAPES:
        yield Case((sample(dtype, shape, rng),))


OTHER = (
    Contract("select", _select_cases, _select, DTYPES, smooth=(1, 2)),
    Contract("cast", _cast_cases, _cast, DTYPES, smooth=(0,)),
    Contract("stop_gradient", _same, lambda x: x, DTYPES),
)

ELEMENTWISE = (*UNARY, *BINARY, *OTHER)
