"""sin, cos and tan.

x = n pi / 2 + r with |r| <= pi / 4: up to a limit by subtracting n times a pi / 2 of three parts (W. J. Cody and
W. Waite, 1980), beyond it, lane by lane, with as many bits of 2 / pi as the exponent asks for (M. Payne and
R. Hanek, SIGNUM Newsletter 18, 1983).
"""

from dataclasses import dataclass

from graphkb.codegen.builder import Builder, Value
from graphkb.codegen.vecmath.coefficients import COEFFICIENTS
from graphkb.codegen.vecmath.exponential import whole
from graphkb.codegen.vecmath.expression import Expr, fast_two_sum, horner, two_product

TWO_OVER_PI = 0.63661977236758138
HALF_PI = 1.5707963267948966
HALF_PI_LOW = 6.123233995736766e-17

# 2 / pi as 32-bit words, most significant first, behind 64 zero bits.
_TWO_OVER_PI_WORDS = (
    0, 0,
    0xA2F9836E, 0x4E441529, 0xFC2757D1, 0xF534DDC0, 0xDB629599, 0x3C439041, 0xFE5163AB, 0xDEBBC561,
    0xB7246E3A, 0x424DD2E0, 0x06492EEA, 0x09D1921C, 0xFE1DEB1C, 0xB129A73E, 0xE88235F5, 0x2EBB4484,
    0xE99C7026, 0xB45F7E41, 0x3991D639, 0x835339F4, 0x9C845F8B, 0xBDF9283B, 0x1FF897FF, 0xDE05980F,
    0xEF2F118B, 0x5A0A6D1F, 0x6D367ECF, 0x27CB09B7, 0x4F463F66, 0x9E5FEA2D, 0x7527BAC7, 0xEBE5F17B,
    0x3D0739F7, 0x8A5292EA, 0x6BFB5FB1, 0x1F8D5D08, 0x56033046, 0xFC7B6BAB, 0xF0CFBC20, 0x9AF4361D,
)  # fmt: skip


_LIMB = 2**32 - 1


@dataclass(frozen=True)
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

    def slow() -> list[Value]:
        return _reduce_large(b, x, large, count, high, low)

    picked = b.branch(large.any(), slow, lambda: [count.value, high.value, low.value], likely=False, hint="large")
    return Expr(b, picked[0]), Expr(b, picked[1]), Expr(b, picked[2])


def _reduce_large(b: Builder, x: Expr, large: Expr, count: Expr, high: Expr, low: Expr) -> list[Value]:
    """Every lane through memory; the lanes that are not large keep what they have."""
    dtype, whole_type = x.dtype, count.dtype
    results = [(count, whole_type), (high, dtype), (low, dtype)]
    rooms = [b.alloca(kind, x.lanes) for kind in (dtype, whole_type, dtype, dtype)]
    b.store(x.value, rooms[0])

    def write(source: Value, counts: Value, highs: Value, lows: Value, lanes: Value) -> None:
        limbs = b.alloca("int64", 7)

        def lane(i: Value) -> None:
            element = Expr(b, b.load(b.gep(source, i, dtype), dtype))
            quadrant, first, second = _payne_hanek(element.cast("float64"), limbs)
            if dtype == "float32":
                near = first.cast("float32")
                first, second = near, (first - near.cast("float64")).cast("float32")
            b.store(quadrant.cast(whole_type).value, b.gep(counts, i, whole_type))
            b.store(first.value, b.gep(highs, i, dtype))
            b.store(second.value, b.gep(lows, i, dtype))

        b.loop(b.const(0, "int64"), lanes, 1, lane)

    params = [("x", "ptr"), ("count", "ptr"), ("high", "ptr"), ("low", "ptr"), ("lanes", "int64")]
    name = f"reduce_large_{dtype}.{b.target.name}"
    b.helper(name, params, write, [*rooms, b.const(x.lanes, "int64")])
    loaded = [Expr(b, b.load(room, kind, x.lanes)) for room, (_, kind) in zip(rooms[1:], results)]
    return [large.where(new, old).value for new, (old, _) in zip(loaded, results)]


def _payne_hanek(x: Expr, limbs: Value) -> tuple[Expr, Expr, Expr]:
    """n modulo 4 and r in two parts for one finite float64 of at least 2^12; NaN for infinities and NaN.

    With |x| = m 2^e, bits of 2 / pi above 2^(1 - e) only add multiples of 4 to the product, so m times the 224
    bits below gives the fraction of x / 2 pi. It is computed in limbs of 32 bits, from the last one up.
    """
    b = x.b
    table = b.constant_bytes(b"".join(word.to_bytes(4, "little") for word in _TWO_OVER_PI_WORDS), 4)
    bits = abs(x).bits()
    start = (bits >> 52) - (1075 - 62)
    start = (start > 0).where(start, 0)
    first, shift = start >> 5, start & 31
    mantissa = (bits & (2**52 - 1)) | 2**52

    def upper_half(limb: Expr) -> Expr:
        return Expr(b, b.lshr(limb.value, 32))

    def word_at(index: Expr) -> Expr:
        return Expr(b, b.cast(b.load(b.gep(table, (first + index).value, "uint32"), "uint32"), "int64"))

    def column(k: Value, *state: Value) -> list[Value]:
        index = 6 - Expr(b, k)
        following, below, carry, carry_high = (Expr(b, v) for v in state)
        word = word_at(index)
        part = upper_half(Expr(b, b.shl(((word << 32) | following).value, shift.value)))
        low = (mantissa & _LIMB) * part + carry
        high = upper_half(mantissa) * below + (low & _LIMB) + carry_high
        b.store((high & _LIMB).value, b.gep(limbs, index.value, "int64"))
        return [word.value, part.value, upper_half(low).value, upper_half(high).value]

    zero = b.const(0, "int64")
    last = word_at(bits.const(7))
    b.loop(zero, b.const(7, "int64"), 1, column, [last.value, zero, zero, zero])
    four = [Expr(b, b.load(b.gep(limbs, i, "int64"), "int64")) for i in range(4)]
    return _quadrant(x, (four[0] << 32) | four[1], (four[2] << 32) | four[3])


def _quadrant(x: Expr, top: Expr, rest: Expr) -> tuple[Expr, Expr, Expr]:
    """n and r from x / 2 pi modulo 1, given as 128 bits of binary fraction, and the sign of x."""
    b = x.b
    count = Expr(b, b.lshr((top + 2**61).value, 62))
    turn = top - (count << 62)  # quarter turns times 2^62, rounded to nearest: signed
    lead = turn.cast("float64")
    tail = (turn - lead.cast("int64")).cast("float64")
    tail = Expr(b, b.lshr(rest.value, 11)).cast("float64").fma(2.0**-53, tail)
    lead, tail = fast_two_sum(lead * 2.0**-62, tail * 2.0**-62)
    high, low = two_product(lead, HALF_PI)
    low = tail.fma(HALF_PI, lead.fma(HALF_PI_LOW, low))
    high, low = fast_two_sum(high, low)
    negative = x < 0.0
    nan = x - x  # zero, or NaN where x is not finite
    return negative.where(-count, count), negative.where(-high, high) + nan, negative.where(-low, low)


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
