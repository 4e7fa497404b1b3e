"""exp, exp2, expm1, sigmoid, tanh, sinh and cosh.

The argument is split as n log(2) + r with a whole n and |r| <= log(2) / 2, e^r is a polynomial, and 2^n is put into
the exponent (W. J. Cody and W. Waite, Software Manual for the Elementary Functions, 1980).
"""

import math

from graphkb.codegen.vecmath.avx512 import piecewise, scalef
from graphkb.codegen.vecmath.coefficients import COEFFICIENTS
from graphkb.codegen.vecmath.expression import Expr, horner
from graphkb.ir.record import record


@record
class Format:
    """The constants of a float format: exponent bias, fraction bits and the parts of log(2).

    `ln2_high` has so few bits that its product with any exponent is exact.
    """

    bias: int
    fraction: int
    ln2_high: float
    ln2_low: float
    largest: float
    least: float


def _cut(x: float, bits: int) -> float:
    return math.floor(x * 2.0**bits) / 2.0**bits


# The low part of log(2) beyond float64, to 20 digits, so that high + low has more bits than float64.
_LN2_BEYOND = 2.3190468138462996e-17
_LN2 = math.log(2.0)
FORMATS = {
    "float32": Format(127, 23, _cut(_LN2, 15), _LN2 - _cut(_LN2, 15), 89.0, -104.5),
    "float64": Format(1023, 52, _cut(_LN2, 41), (_LN2 - _cut(_LN2, 41)) + _LN2_BEYOND, 710.0, -746.0),
}


def whole(x: Expr, factor: float) -> tuple[Expr, Expr]:
    """The whole number nearest to x * factor, as a float and, on the generic path, an integer."""
    fraction = FORMATS[x.dtype].fraction
    magic = 1.5 * 2.0**fraction
    moved = x.fma(factor, magic)
    return moved - magic, moved.bits() - x.const(magic).bits()


def reduce_exp(x: Expr) -> tuple[Expr, Expr, Expr]:
    """n as float and integer, and r, with x = n log(2) + r."""
    form = FORMATS[x.dtype]
    n, count = whole(x, 1.0 / _LN2)
    return n, count, n.fma(-form.ln2_low, n.fma(-form.ln2_high, x))


def power_of_two(count: Expr) -> Expr:
    """2^count of an integer for which it is a normal number."""
    form = FORMATS["float32" if count.dtype == "int32" else "float64"]
    return ((count + form.bias) << form.fraction).as_float()


def scale(x: Expr, n: Expr, count: Expr) -> Expr:
    """x * 2^n, rounded once, where n is up to twice the exponent range."""
    if x.b.target.is_avx512:
        return scalef(x, n)
    half = count >> 1
    return x * power_of_two(half) * power_of_two(count - half)


def clamp(x: Expr) -> Expr:
    """x within the arguments for which e^x is neither 0 nor infinite; NaN stays."""
    form = FORMATS[x.dtype]
    return x.at_most(form.largest).at_least(form.least)


def exp(x: Expr) -> Expr:
    """e^x"""
    n, count, r = reduce_exp(clamp(x))
    return scale(horner(r, COEFFICIENTS["exp", x.dtype]), n, count)


def exp2(x: Expr) -> Expr:
    """2^x"""
    form = FORMATS[x.dtype]
    x = x.at_most(form.bias + 2.0).at_least(-(form.bias + form.fraction + 2.0))
    n, count = whole(x, 1.0)
    return scale(horner(x - n, COEFFICIENTS["exp2", x.dtype]), n, count)


def expm1(x: Expr) -> Expr:
    """e^x - 1, accurate near 0"""
    form = FORMATS[x.dtype]
    within = x.at_most(form.largest).at_least(-(form.fraction + 4) * _LN2)
    _, count, r = reduce_exp(within)
    tail = horner(r, COEFFICIENTS["expm1", x.dtype][1:])
    near = (r * r).fma(tail, r)
    # Half the scale keeps 2^n finite at the upper end.
    half = power_of_two(count - 1)
    result = half.fma(near, half - 0.5) * 2.0
    return (abs(x) < 2.0 ** -(form.fraction + 2)).where(x, result)


def sigmoid(x: Expr) -> Expr:
    """1 / (1 + e^-x) as e^x / (1 + e^x), which keeps the relative accuracy at both ends"""
    form = FORMATS[x.dtype]
    n, count, r = reduce_exp(x.at_most(form.fraction * 1.0).at_least(form.least))
    power = scale(horner(r, COEFFICIENTS["exp", x.dtype]), n, count)
    return power / (power + 1.0)


def tanh(x: Expr) -> Expr:
    """The hyperbolic tangent: t / (t + 2) with t = e^(2 |x|) - 1, and 1 - 2 / (t + 2) away from 0

    On AVX-512, in float32, by table.
    """
    if x.dtype == "float32" and x.b.target.is_avx512:
        return piecewise(x, "tanh", 9.5)
    size = abs(x).at_most(9.02 if x.dtype == "float32" else 20.0)
    _, count, r = reduce_exp(size + size)
    tail = horner(r, COEFFICIENTS["expm1", x.dtype][1:])
    near = (r * r).fma(tail, r)
    power = power_of_two(count)
    more = power.fma(near, power - 1.0)
    far = size > 0.35
    ratio = far.where(-2.0, more) / (more + 2.0)
    return far.where(ratio + 1.0, ratio).copysign(x)


def _half_exp(size: Expr) -> Expr:
    """e^size / 2 without overflowing before the result does"""
    n, count, r = reduce_exp(size.at_most(FORMATS[size.dtype].largest + 1.0))
    return scale(horner(r, COEFFICIENTS["exp", size.dtype]), n - 1.0, count - 1)


def sinh(x: Expr) -> Expr:
    """(e^x - e^-x) / 2; an odd polynomial below 1"""
    size = abs(x)
    half = _half_exp(size)
    square = x * x
    near = (x * square).fma(horner(square, COEFFICIENTS["sinh", x.dtype][1:]), x)
    return (size < 1.0).where(near, (half - 0.25 / half).copysign(x))


def cosh(x: Expr) -> Expr:
    """(e^x + e^-x) / 2"""
    half = _half_exp(abs(x))
    return half + 0.25 / half
