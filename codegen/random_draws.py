"""Random draws in instructions: element by element, and for neighbors, which share blocks of random words.

A Philox block has four words of 32 bits, one for each of four neighbors (or two double words for two). Runs of
neighbors therefore compute a quarter (half) as many blocks as elements. The words lie in registers of their own then,
and squares of four are transposed inside every 128 bits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from graphkb.codegen.builder import Builder, Value
from graphkb.codegen.shuffles import join
from graphkb.codegen.target import Target
from graphkb.codegen.vecmath.expression import Expr
from graphkb.codegen.vecmath.logarithm import log_of, split
from graphkb.codegen.vecmath.trigonometry import cos_near, sin_near, turned
from graphkb.ops.random import FRACTION_BITS, MULTIPLIERS, ROUNDS, WEYL

_WIDE = ("uint64", "float64")


def neighbors(dtype: str) -> int:
    """How many elements share a block: a run begins best at a multiple of it."""
    return 2 if dtype in _WIDE else 4


def run_length(target: Target, dtype: str) -> int:
    """The elements that full registers of blocks give: one word, or one double word, for each."""
    return target.lanes("uint32") * (1 if dtype in _WIDE else 4) if target.vector_bits else 1


# ---------------------------------------------------------------------------------------------- blocks
def _blocks(b: Builder, number: Value, seed: Value, call: Value) -> list[Value]:
    """The four words of Philox4x32-10 blocks in 64-bit lanes, where a product of two words is one multiplication."""

    def low(x: Value) -> Value:
        return b.and_(x, b.const_like(0xFFFFFFFF, x))

    seed, call = (b.splat(x, number.lanes) for x in (seed, call))
    words = [low(number), b.lshr(number, 32), low(call), b.lshr(call, 32)]
    keys = [low(seed), b.lshr(seed, 32)]
    for _ in range(ROUNDS):
        first, second = (b.imul(low(w), b.const_like(m, w)) for w, m in zip(words[::2], MULTIPLIERS))
        left = b.xor(b.xor(b.lshr(second, 32), words[1]), keys[0])
        right = b.xor(b.xor(b.lshr(first, 32), words[3]), keys[1])
        words = [left, low(second), right, low(first)]
        keys = [low(b.iadd(key, b.const_like(step, key))) for key, step in zip(keys, WEYL)]
    return words


def _doubles(b: Builder, words: Sequence[Value]) -> list[Value]:
    """Two double words of four words, the first word of each below."""
    return [b.or_(low, b.shl(high, 32)) for low, high in zip(words[::2], words[1::2])]


# ---------------------------------------------------------------------------------------------- single elements
def draw(b: Builder, op: str, dtype: str, position: Value, seed: Value, call: Value) -> Value:
    """The elements at any positions; every one computes a whole block."""

    def odd(bit: int) -> Value:
        one = b.const_like(1 << bit, position)
        return b.icmp("ne", b.and_(position, one), b.const_like(0, position))

    share = neighbors(dtype).bit_length() - 1
    words = _blocks(b, b.lshr(position, share), seed, call)
    pairs = [words[i] if share == 1 else b.select(odd(1), words[i + 2], words[i]) for i in range(2)]
    if share == 1:
        pairs = _doubles(b, words)
    if op == "random_bits":
        return b.cast(b.select(odd(0), pairs[1], pairs[0]), dtype)
    if dtype == "float32":
        pairs = [b.cast(word, "uint32") for word in pairs]
    cosine, sine = _normal_pair(b, *pairs)
    return b.select(odd(0), sine, cosine)


# ---------------------------------------------------------------------------------------------- runs
def draw_run(
    b: Builder, op: str, dtype: str, first: Value, lanes: int, aligned: bool, seed: Value, call: Value
) -> Value:
    """`lanes` neighbors from the position `first` on, which is a multiple of `neighbors(dtype)` if `aligned`."""
    group, share = run_length(b.target, dtype), neighbors(dtype)
    shift = share.bit_length() - 1
    block = b.lshr(b.bitcast(first, "uint64"), shift)

    def made(elements: int) -> list[Value]:
        """Whole groups that hold that many elements, from the beginning of the first block on."""
        count = -(-elements // group)
        return [_group(b, op, dtype, _ahead(b, block, i * (group >> shift)), seed, call) for i in range(count)]

    if aligned:
        whole = join(b, made(lanes))
        return whole if whole.lanes == lanes else b.shuffle(whole, None, range(lanes))
    # A first element inside a block: through memory, where vectors may begin anywhere.
    groups = made(lanes + share - 1)
    room = b.alloca(dtype, group * len(groups))
    for i, part in enumerate(groups):
        b.store(part, b.gep(room, i * group, dtype))
    inside = b.and_(first, b.const_like(share - 1, first))
    return b.load(b.gep(room, inside, dtype), dtype, lanes)


def _ahead(b: Builder, block: Value, count: int) -> Value:
    return b.iadd(block, b.const_like(count, block)) if count else block


def _group(b: Builder, op: str, dtype: str, block: Value, seed: Value, call: Value) -> Value:
    """As many neighbors as full registers give, from a block on."""
    if dtype in _WIDE:
        words = _doubles(b, _blocks(b, _numbers(b, block, 0), seed, call))
        x, y = words if op == "random_bits" else _normal_pair(b, *words)
        return join(b, [_unpack(b, x, y, 1, high) for high in (False, True)])
    halves = [_blocks(b, _numbers(b, block, i), seed, call) for i in range(2)]
    words = [_pack(b, x, y) for x, y in zip(*halves)]
    if op == "random_normal":
        words = [value for i in (0, 2) for value in _normal_pair(b, words[i], words[i + 1])]
    first, second = ([_unpack(b, words[i], words[i + 1], 1, high) for i in (0, 2)] for high in (False, True))
    # Of each row of a square, the first half lies in one of the pair and the second in the other.
    return join(b, [_unpack(b, x, y, 2, high) for x, y in (first, second) for high in (False, True)])


def _numbers(b: Builder, block: Value, half: int) -> Value:
    """Block numbers in the order that the transposition inside every 128 bits makes a row of."""
    lanes = b.target.lanes("uint64")
    chunks = lanes // 2
    offsets = [chunks * (i % 2 + 2 * half) + i // 2 for i in range(lanes)]
    return b.iadd(b.splat(block, lanes), b.const_vector(offsets, "uint64"))


def _pack(b: Builder, x: Value, y: Value) -> Value:
    """The lower halves of 64-bit lanes: inside every 128 bits first those of x, then those of y."""
    lanes = 2 * x.lanes
    kinds = f"<{x.lanes} x i64>", f"<{lanes} x i32>"
    x, y = (b.fresh(f"bitcast {kinds[0]} {v.name} to {kinds[1]}", "uint32", lanes) for v in (x, y))
    return b.shuffle(x, y, [c + at for c in range(0, lanes, 4) for at in (0, 2, lanes, lanes + 2)])


def _unpack(b: Builder, x: Value, y: Value, width: int, high: bool) -> Value:
    """Inside every 128 bits the lower or upper halves of x and y interleaved, `width` lanes at a time."""
    lanes = x.lanes
    chunk = 4 if x.dtype not in _WIDE else 2
    start = chunk // 2 if high else 0
    picks = []
    for c in range(0, lanes, chunk):
        for at in range(c + start, c + start + chunk // 2, width):
            picks += [*range(at, at + width), *range(lanes + at, lanes + at + width)]
    return b.shuffle(x, y, picks)


# ---------------------------------------------------------------------------------------------- normal numbers
def _normal_pair(b: Builder, first: Value, second: Value) -> list[Value]:
    """Two independent normal numbers of two words: radius times cosine and sine."""
    dtype = "float32" if first.dtype == "uint32" else "float64"
    count, whole = FRACTION_BITS[dtype], "int32" if dtype == "float32" else "int64"
    fastmath, b.fastmath = b.fastmath, False
    k, m = (Expr(b, b.bitcast(b.lshr(word, 8 if whole == "int32" else 11), whole)) for word in (first, second))
    # 1 - k / 2^count is in (0, 1] and exact: its logarithm is finite.
    fraction = (k.const(1 << count) - k).cast(dtype) * 2.0**-count
    exponent, mantissa = split(fraction)
    radius = (log_of(exponent, mantissa - 1.0) * -2.0).sqrt()
    quadrant = (m + (1 << (count - 3))) >> (count - 2)
    rest = (m - (quadrant << (count - 2))).cast(dtype) * (2.0**-count * 2 * math.pi)
    sine, cosine = sin_near(rest), cos_near(rest)
    pair = [(radius * turned(quadrant + quarter, sine, cosine)).value for quarter in (1, 0)]
    b.fastmath = fastmath
    return pair
