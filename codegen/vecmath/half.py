"""Functions of float16 in float32: polynomials of few terms, and none of the care that only more digits need.

What they give is rounded to float16, where it may be off by a hundredth of a unit more than the rounding. The
machine needs a fused multiply-add.
"""

import math
from collections.abc import Callable

from graphkb.codegen.vecmath.avx512 import scalef
from graphkb.codegen.vecmath.coefficients import COEFFICIENTS
from graphkb.codegen.vecmath.exponential import power_of_two, whole
from graphkb.codegen.vecmath.expression import Expr, horner
from graphkb.codegen.vecmath.logarithm import settle, split
from graphkb.codegen.vecmath.trigonometry import TWO_OVER_PI, turned

# Beyond this many octaves results are 0 or infinite.
_OCTAVES = 30.0
# pi / 2 in two parts of float32.
_HALF_PI = (1.5707963705062866, -4.371138828673793e-08)


def _scale(x: Expr, n: Expr, count: Expr) -> Expr:
    return scalef(x, n) if x.b.target.is_avx512 else x * power_of_two(count)


def exp(x: Expr) -> Expr:
    """e^x"""
    limit = _OCTAVES * math.log(2.0)
    x = x.at_most(limit).at_least(-limit)
    n, count = whole(x, 1.0 / math.log(2.0))
    return _scale(horner(n.fma(-math.log(2.0), x), COEFFICIENTS["exp", "float16"]), n, count)


def exp2(x: Expr) -> Expr:
    """2^x"""
    x = x.at_most(_OCTAVES).at_least(-_OCTAVES)
    n, count = whole(x, 1.0)
    return _scale(horner(x - n, COEFFICIENTS["exp2", "float16"]), n, count)


def _log_of(exponent: Expr, mantissa: Expr, name: str, octave: float) -> Expr:
    f = mantissa - 1.0
    return exponent.fma(octave, f * horner(f, COEFFICIENTS[name, "float16"]))


def log(x: Expr) -> Expr:
    """The natural logarithm"""
    return settle(x, _log_of(*split(x), "log", math.log(2.0)))


def log2(x: Expr) -> Expr:
    """The logarithm to base 2, exact for powers of two"""
    return settle(x, _log_of(*split(x), "log2", 1.0))


def log10(x: Expr) -> Expr:
    """The logarithm to base 10"""
    return settle(x, _log_of(*split(x), "log10", math.log10(2.0)))


def atanh(x: Expr) -> Expr:
    """log((1 + x) / (1 - x)) / 2; an odd polynomial near 0; infinite at ±1, NaN beyond"""
    size = abs(x)
    square = size * size
    near = (size * square).fma(horner(square, COEFFICIENTS["atanh", "float16"][1:]), size)
    ratio = (size + 1.0) / (1.0 - size)
    far = settle(ratio, _log_of(*split(ratio), "log", math.log(2.0))) * 0.5
    return (size < 0.25).where(near, far).copysign(x)


def _parts(x: Expr) -> tuple[Expr, Expr, Expr]:
    """The quadrant of an angle, and the sine and the cosine of what is left."""
    n, count = whole(x, TWO_OVER_PI)
    rest = n.fma(-_HALF_PI[1], n.fma(-_HALF_PI[0], x))
    square = rest * rest
    sine = (rest * square).fma(horner(square, COEFFICIENTS["sin", "float16"][1:]), rest)
    return count, sine, horner(square, COEFFICIENTS["cos", "float16"])


def sin(x: Expr) -> Expr:
    """The sine of x radians; NaN of infinities"""
    return x.eq(0.0).where(x, turned(*_parts(x)))


def cos(x: Expr) -> Expr:
    """The cosine of x radians; NaN of infinities"""
    count, sine, cosine = _parts(x)
    return turned(count + 1, sine, cosine)


HALF: dict[str, Callable[[Expr], Expr]] = {f.__name__: f for f in (exp, exp2, log, log2, log10, atanh, sin, cos)}
