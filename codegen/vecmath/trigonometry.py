"""sin, cos and tan.

x = n pi / 2 + r with |r| <= pi / 4: up to a limit by subtracting n times a pi / 2 of three parts (W. J. Cody and
W. Waite, 1980), beyond it as `huge_angles` does.
"""

from graphkb.codegen.builder import Value
from graphkb.codegen.vecmath.coefficients import COEFFICIENTS
from graphkb.codegen.vecmath.exponential import whole
from graphkb.codegen.vecmath.expression import Expr, horner, two_product
from graphkb.codegen.vecmath.huge_angles import HALF_PI, HALF_PI_LOW, reduce_huge
from graphkb.ir.record import record

TWO_OVER_PI = 0.63661977236758138


@record
class Reduction:
    """The parts of pi / 2 and the largest |x| for which they suffice."""

    parts: tuple[float, ...]
    limit: float


# With a fused multiply-add each part fills a float; without, the products with n must be exact.
_FUSED = {
    "float32": Reduction((1.5707963705062866, -4.371138828673793e-08, -1.7151244803885e-15), 2.0**17),
    "float64": Reduction((HALF_PI, HALF_PI_LOW, -1.4973849048591833e-33), 2.0**28),
}
_SPLIT = {
    "float32": Reduction((1.5703125, 0.0004837512969970703, 7.549533620476723e-08, 2.5633440682570896e-12), 2.0**12),
    "float64": Reduction((1.5707963267341256, 6.077100506303966e-11, 2.0222662487959506e-21), 2.0**19),
}


def _reduce_small(x: Expr, n: Expr, parts: tuple[float, ...]) -> tuple[Expr, Expr]:
    """x - n pi / 2 as a sum of two for moderate x, to the last bit even where almost everything cancels."""
    rest = n.fma(-parts[0], x)
    for part in parts[1:-2]:
        rest = n.fma(-part, rest)
    if x.b.target.has_fma:
        product, error = two_product(n, parts[-2])
        high = rest - product
        return high, n.fma(-parts[-1], ((rest - high) - product) - error)
    product = n * parts[-2]  # exact
    high = rest - product
    return high, n.fma(-parts[-1], (rest - high) - product)


def reduce(x: Expr) -> tuple[Expr, Expr, Expr]:
    """n as an integer, of which the low two bits count, and r in two parts."""
    b = x.b
    choice = (_FUSED if b.target.has_fma else _SPLIT)[x.dtype]
    n, count = whole(x, TWO_OVER_PI)
    high, low = _reduce_small(x, n, choice.parts)
    large = ~(abs(x) <= choice.limit)

    kept = count, high, low

    def slow() -> list[Value]:
        return [part.value for part in reduce_huge(x, large, kept)]

    picked = b.branch(large.any(), slow, lambda: [part.value for part in kept], likely=False, hint="large")
    return Expr(b, picked[0]), Expr(b, picked[1]), Expr(b, picked[2])


def _sin_part(high: Expr, low: Expr, square: Expr) -> Expr:
    tail = horner(square, COEFFICIENTS["sin", high.dtype][1:])
    return high + (high * square).fma(tail, low)


def _cos_part(high: Expr, low: Expr, square: Expr) -> Expr:
    """1 - z / 2 + …, with what the subtraction of z / 2 loses put back."""
    tail = horner(square, COEFFICIENTS["cos", high.dtype][2:])
    half = square * 0.5
    near = 1.0 - half
    return near + (((1.0 - near) - half) + (square * square).fma(tail, -(high * low)))


def _parts(x: Expr) -> tuple[Expr, Expr, Expr]:
    count, high, low = reduce(x)
    square = high * high
    return count, _sin_part(high, low, square), _cos_part(high, low, square)


def sin_near(x: Expr) -> Expr:
    """The sine of |x| <= pi / 4"""
    square = x * x
    return (x * square).fma(horner(square, COEFFICIENTS["sin", x.dtype][1:]), x)


def cos_near(x: Expr) -> Expr:
    """The cosine of |x| <= pi / 4"""
    square = x * x
    return (square * square).fma(horner(square, COEFFICIENTS["cos", x.dtype][2:]), square.fma(-0.5, 1.0))


def turned(count: Expr, even: Expr, odd: Expr) -> Expr:
    """One of two values by the quadrant's low bit, its sign by the other one."""
    bits = 30 if count.dtype == "int32" else 62
    picked = (count & 1).ne(0).where(odd, even)
    return (picked.bits() ^ ((count & 2) << bits)).as_float()


def sin(x: Expr) -> Expr:
    """The sine of x radians; NaN of infinities"""
    count, sine, cosine = _parts(x)
    return x.eq(0.0).where(x, turned(count, sine, cosine))


def cos(x: Expr) -> Expr:
    """The cosine of x radians; NaN of infinities"""
    count, sine, cosine = _parts(x)
    return turned(count + 1, sine, cosine)


def tan(x: Expr) -> Expr:
    """The tangent of x radians, as an odd polynomial t or as -1 / t; NaN of infinities"""
    count, high, low = reduce(x)
    square = high * high
    tail = horner(square, COEFFICIENTS["tan", x.dtype][1:])
    t = high + (high * square).fma(tail, low.fma(square, low))
    odd = (count & 1).ne(0)
    return x.eq(0.0).where(x, odd.where(-1.0, t) / odd.where(t, 1.0))
