"""erf and erfc.

erfc(x) = e^(-x²) g(t) where g is a polynomial in t = (x - k) / (x + k), which maps all x >= 0 into [-1, 1)
(J. L. Schonfelder, Mathematics of Computation 32, 1978). In float64, g is divided by 1 + 2 x, which leaves a polynomial
so flat that the rounding of t does not matter (M. M. Shepherd and J. G. Laframboise, same journal 36, 1981), and
e^(-x²) takes x² in two parts.
"""

from graphkb.codegen.vecmath.avx512 import piecewise
from graphkb.codegen.vecmath.coefficients import COEFFICIENTS
from graphkb.codegen.vecmath.exponential import exp, reduce_exp, scale
from graphkb.codegen.vecmath.expression import Expr, horner, two_product

_CENTER = {"float32": 3.0, "float64": 4.0}
_LAST = {"float32": 10.3, "float64": 27.5}


def _erfc_positive(size: Expr) -> Expr:
    """erfc of a float64 x >= 0"""
    size = size.at_most(_LAST["float64"])
    t = (size - _CENTER["float64"]) / (size + _CENTER["float64"])
    square, error = two_product(size, size)
    n, count, r = reduce_exp(-square)
    power = horner(r - error, COEFFICIENTS["exp", "float64"])
    flat = horner(t, COEFFICIENTS["erfc", "float64"])
    return scale(power * flat / size.fma(2.0, 1.0), n, count)


def _erfc_widened(size: Expr) -> Expr:
    """erfc of a float32 x >= 0, computed in float64 to the precision of float32"""
    wide = size.at_most(_LAST["float32"]).cast("float64")
    t = (wide - _CENTER["float32"]) / (wide + _CENTER["float32"])
    n, count, r = reduce_exp(-(wide * wide))
    power = horner(r, COEFFICIENTS["exp", "float32"])
    return scale(power * horner(t, COEFFICIENTS["erfc", "float32"]), n, count).cast("float32")


def erfc(x: Expr) -> Expr:
    """1 - erf(x), accurate to the last digits of its range"""
    size = abs(x)
    # In float32 the rounding of t alone would cost two units in the last place.
    right = _erfc_positive(size) if x.dtype == "float64" else _erfc_widened(size)
    away = (x < 0.0).where(2.0 - right, right)
    return ((x < 0.45) & (x > -1.0)).where(1.0 - _erf_near(x, size), away)


def _erf_near(x: Expr, size: Expr) -> Expr:
    square = size * size
    return x.fma(horner(square, COEFFICIENTS["erf", x.dtype]), x)


def erf(x: Expr) -> Expr:
    """The error function: an odd polynomial up to 1, then 1 - erfc(|x|); on AVX-512 by table in float32"""
    if x.dtype == "float32" and x.b.target.is_avx512:
        return piecewise(x, "erf", 3.9999998)
    size = abs(x)
    if x.dtype == "float64":
        far = 1.0 - _erfc_positive(size)
    else:
        far = 1.0 - exp(horner(size.at_most(3.93) - 1.0, COEFFICIENTS["erf_far", "float32"]))
    return (size < 1.0).where(_erf_near(x, size), far.copysign(x))
