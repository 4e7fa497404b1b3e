"""asin, acos, atan and atan2."""

import math

from graphkb.codegen.vecmath.coefficients import COEFFICIENTS
from graphkb.codegen.vecmath.expression import Expr, horner

# pi / 2, pi / 4 and pi in two parts.
_HALF_PI = {
    "float32": (1.5707963705062866, -4.371138828673793e-08),
    "float64": (math.pi / 2, 6.123233995736766e-17),
}
_TAN_EIGHTH = 0.41421356237309503
_TAN_THREE_EIGHTHS = 2.414213562373095


def _asin_parts(x: Expr) -> tuple[Expr, Expr, Expr, Expr]:
    """|x|, whether it is above 1/2, and asin of s as s + tail, where s is |x| or sqrt((1 - |x|) / 2)."""
    size = abs(x)
    far = size > 0.5
    square = far.where((1.0 - size) * 0.5, size * size)
    s = far.where(square.sqrt(), size)
    return size, far, s, s * square * horner(square, COEFFICIENTS["asin", x.dtype][1:])


def asin(x: Expr) -> Expr:
    """The arc sine: above 1/2, pi / 2 - 2 asin(sqrt((1 - x) / 2)); NaN beyond 1"""
    _, far, s, tail = _asin_parts(x)
    high, low = _HALF_PI[x.dtype]
    outer = (high - 2.0 * s) - (2.0 * tail - low)
    return far.where(outer, s + tail).copysign(x)


def acos(x: Expr) -> Expr:
    """The arc cosine: pi / 2 - asin(x), or 2 asin(sqrt((1 - |x|) / 2)) near the ends; NaN beyond 1"""
    _, far, s, tail = _asin_parts(x)
    high, low = _HALF_PI[x.dtype]
    signed, signed_tail = s.copysign(x), tail.copysign(x)
    middle = high - (signed + (signed_tail - low))
    near_one = 2.0 * (s + tail)
    near_minus_one = 2.0 * (high - (s + (tail - low)))
    outer = (x < 0.0).where(near_minus_one, near_one)
    return far.where(outer, middle)


def _atan_tail(t: Expr) -> Expr:
    """atan(t) - t for |t| <= tan(pi / 8)"""
    square = t * t
    return t * square * horner(square, COEFFICIENTS["atan", t.dtype][1:])


def atan(x: Expr) -> Expr:
    """The arc tangent: of x, of (x - 1) / (x + 1) plus pi / 4, or of -1 / x plus pi / 2"""
    size = abs(x)
    high, low = _HALF_PI[x.dtype]
    middle, far = size > _TAN_EIGHTH, size > _TAN_THREE_EIGHTHS
    top = far.where(-1.0, middle.where(size - 1.0, size))
    bottom = far.where(size, middle.where(size + 1.0, 1.0))
    t = top / bottom
    base = far.where(x.const(high), middle.where(x.const(high / 2), 0.0))
    base_low = far.where(x.const(low), middle.where(x.const(low / 2), 0.0))
    return (base + (t + (_atan_tail(t) + base_low))).copysign(x)


def atan2(y: Expr, x: Expr) -> Expr:
    """The angle of the point (x, y), in (-pi, pi], with NumPy's values for zeros and infinities"""
    high, low = _HALF_PI[x.dtype]
    size_y, size_x = abs(y), abs(x)
    steep = size_y > size_x
    most, least = steep.where(size_y, size_x), steep.where(size_x, size_y)
    # An infinite side counts as 1 and a finite one beside it as 0; two zeros as 0 / 1.
    endless = most.eq(math.inf)
    least = endless.where(least.eq(math.inf).where(x.const(1.0), 0.0), least)
    most = (endless | most.eq(0.0)).where(1.0, most)
    # Halving twice keeps least + most finite.
    huge = most > 2.0 ** (120 if x.dtype == "float32" else 1000)
    factor = huge.where(x.const(0.25), 1.0)
    most, least = most * factor, least * factor
    middle = least > most * _TAN_EIGHTH
    t = middle.where(least - most, least) / middle.where(least + most, most)
    tail = _atan_tail(t)
    # The angle is base + sign * (t + tail) with a base of 0 to 4 eighths of the full turn.
    left = x.bits() < 0
    negate = steep ^ left
    eighths = middle.where(x.const(1.0), 0.0)
    eighths = steep.where(2.0 - eighths, eighths)
    eighths = left.where(4.0 - eighths, eighths)
    base, base_low = eighths * (high / 2), eighths * (low / 2)
    t, tail = negate.where(-t, t), negate.where(-tail, tail)
    angle = (base + (t + (tail + base_low))).copysign(y)
    return (x.isnan() | y.isnan()).where(x + y, angle)
