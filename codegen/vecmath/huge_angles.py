"""Angles of any size modulo a quarter turn.

An angle is multiplied by those bits of 2 / pi that its exponent asks for: bits above them only add whole turns
(M. Payne and R. Hanek, SIGNUM Newsletter 18, 1983). 2 / pi is cut at whole bytes, so a window of it is read from
memory as it is, and the rest of the exponent stays in the angle.
"""

import struct

from graphkb.codegen.builder import Builder, Value
from graphkb.codegen.vecmath.avx512 import table_lookup
from graphkb.codegen.vecmath.exponential import whole
from graphkb.codegen.vecmath.expression import Expr, fast_two_sum, two_product, two_sum

HALF_PI = 1.5707963267948966
HALF_PI_LOW = 6.123233995736766e-17

# 2 / pi behind its binary point.
_TWO_OVER_PI = bytes.fromhex(
    "A2F9836E4E441529FC2757D1F534DDC0DB6295993C439041FE5163ABDEBBC561B7246E3A424DD2E006492EEA09D1921CFE1DEB1CB129A73E"
    "E88235F52EBB4484E99C7026B45F7E413991D639835339F49C845F8BBDF9283B1FF897FFDE05980FEF2F118B5A0A6D1F6D367ECF27CB09B7"
    "4F463F669E5FEA2D7527BAC7EBE5F17B3D0739F78A5292EA6BFB5FB11F8D5D0856033046FC7B6BABF0CFBC209AF4361D"
)
_BITS = 8 * len(_TWO_OVER_PI)


def reduce_huge(x: Expr, large: Expr, kept: tuple[Expr, Expr, Expr]) -> tuple[Expr, Expr, Expr]:
    """n as an integer and r in two parts with x = n pi / 2 + r, where the lanes are large; elsewhere what is kept.

    n counts modulo 4. Large lanes have at least 2^12; NaN and infinities among them give NaN.
    """
    b, dtype, step = x.b, x.dtype, x.b.target.lanes("float64")
    padded = -(-x.lanes // step) * step
    rooms = [b.alloca(kind, padded) for kind in (dtype, kept[0].dtype, dtype, dtype)]
    b.store(x.value, rooms[0])

    def write(source: Value, counts: Value, highs: Value, lows: Value, lanes: Value) -> None:
        def some(i: Value) -> None:
            part = Expr(b, b.load(b.gep(source, i, dtype), dtype, step))
            results = _reduce_wide(part) if dtype == "float64" else _reduce_narrow(part)
            for room, result in zip((counts, highs, lows), results):
                b.store(result.value, b.gep(room, i, result.dtype))

        b.loop(b.const(0, "int64"), lanes, step, some)

    params = [("x", "ptr"), ("count", "ptr"), ("high", "ptr"), ("low", "ptr"), ("lanes", "int64")]
    b.helper(f"reduce_huge_{dtype}.{b.target.name}", params, write, [*rooms, b.const(padded, "int64")])
    found = [Expr(b, b.load(room, old.dtype, x.lanes)) for room, old in zip(rooms[1:], kept)]
    count, high, low = (large.where(new, old) for new, old in zip(found, kept))
    return count, high, low


def _window(x: Expr, least: int) -> tuple[Expr, Expr]:
    """The byte of 2 / pi, behind a byte 0, from which on a float64 x needs it, and x without that power of 2^8.

    The exponent that stays is from `least` to `least` + 7, or less at byte 0.
    """
    exponent = ((x.bits() >> 52) & 0x7FF) - (1023 + least)
    byte = (exponent > 0).where(exponent, 0) >> 3
    return byte, x * (x.const(1.0).bits() - (byte << 55)).as_float()


# ------------------------------------------------------------------------------------------------- float32
_LEAST = 16
# Products of a float32 with 29 bits are exact in float64.
_PIECES = (29, 29, 53)


def _pieces() -> list[list[float]]:
    """Three parts of 2 / pi * 2^(8 byte) modulo 2^9, for each byte that a float32 may ask for."""
    value = int.from_bytes(_TWO_OVER_PI)
    rows: list[list[float]] = [[] for _ in _PIECES]
    for byte in range(16):
        rest = (value << 8 * byte) % (1 << (_BITS + 9))
        top = _BITS + 9
        for row, bits in zip(rows, _PIECES):
            top -= bits
            row.append((rest >> top) * 2.0 ** (top - _BITS))
            rest %= 1 << top
    return rows


def _reduce_narrow(x: Expr) -> tuple[Expr, Expr, Expr]:
    wide = x.cast("float64")
    byte, scaled = _window(wide, _LEAST)
    first, second, third = (_narrow_lookup(byte, row) for row in _pieces())
    turns = scaled * first
    turns = turns - whole(turns, 0.25)[0] * 4.0
    more = scaled * second
    n, count = whole(turns + more, 1.0)
    rest = scaled.fma(third, (turns - n) + more)
    angle = rest * HALF_PI
    high = angle.cast("float32")
    return count.cast("int32"), high, (angle - high.cast("float64")).cast("float32")


def _narrow_lookup(index: Expr, row: list[float]) -> Expr:
    b = index.b
    if b.target.is_avx512:
        return table_lookup(index, row, "float64")
    table = b.constant_bytes(_packed(row), 8)
    return Expr(b, b.gather(b.gep(table, index.value, "float64"), "float64"))


def _packed(row: list[float]) -> bytes:
    return struct.pack(f"<{len(row)}d", *row)


# ------------------------------------------------------------------------------------------------- float64
# Reversed, so that words of a little-endian machine begin with the most significant byte.
_REVERSED = (bytes(1) + _TWO_OVER_PI)[::-1]


def _words(b: Builder, byte: Expr) -> list[Expr]:
    """Three words of 64 bits, the most significant first."""
    table = b.constant_bytes(_REVERSED, 8)
    places = [(byte.const(len(_REVERSED) - 8 * i) - byte).value for i in (1, 2, 3)]
    return [Expr(b, b.gather(b.byte_offset(table, place), "int64", align=1)) for place in places]


def _reduce_wide(x: Expr) -> tuple[Expr, Expr, Expr]:
    """x / (pi / 2) to about 2^-120, its whole part modulo 4 taken off as it shows up.

    The bits of 2 / pi come in four parts of 48, the first of which begins at 2^7.
    """
    b = x.b
    byte, scaled = _window(x, 46)
    first, second, third = _words(b, byte)

    def upper(word: Expr, count: int) -> Expr:
        return Expr(b, b.lshr(word.value, count))

    def part(bits: Expr, last: int) -> Expr:
        """48 bits as a number whose lowest bit counts 2^last."""
        one = x.const(2.0 ** (52 + last))
        return (bits | one.bits()).as_float() - one

    parts = [
        part(upper(first, 16), -40),
        part((first & 0xFFFF) << 32 | upper(second, 32), -88),
        part((second & 0xFFFFFFFF) << 16 | upper(third, 48), -136),
        part(third & 0xFFFFFFFFFFFF, -184),
    ]
    turns, lost = (_without_turns(v) for v in two_product(scaled, parts[0]))
    turns, lost = two_sum(turns, lost)
    second_turns, second_lost = two_product(scaled, parts[1])
    turns, more = two_sum(turns, second_turns)
    n, count = whole(turns, 1.0)
    high = turns - n
    third_turns, third_lost = two_product(scaled, parts[2])
    low = scaled.fma(parts[3], third_lost)
    # n is off the sum, so what is left may cancel down to any of these; each is added without a loss.
    for term in (third_turns, second_lost, more, lost):
        high, error = two_sum(high, term)
        low = low + error
    high, low = two_sum(high, low)
    angle, error = two_product(high, HALF_PI)
    angle, error = fast_two_sum(angle, low.fma(HALF_PI, high.fma(HALF_PI_LOW, error)))
    return count, angle, error


def _without_turns(x: Expr) -> Expr:
    """x modulo 4, between -2 and 2"""
    return x - (x * 0.25).rint() * 4.0
