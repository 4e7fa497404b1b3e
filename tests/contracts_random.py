"""The contracts of the random ops: Philox in Python's integers, and the bits of a fraction one by one."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import mpmath
import numpy as np
from contracts import Array, Case, Contract, Rng, each, sample

from graphkb.ir.types import FLOATS


def philox(counter: tuple[int, int, int, int], key: tuple[int, int]) -> tuple[int, ...]:
    """One block of Philox4x32-10, word by word."""
    for _ in range(10):
        left, right = counter[0] * 0xD2511F53, counter[2] * 0xCD9E8D57
        counter = (
            right // 2**32 ^ counter[1] ^ key[0],
            right % 2**32,
            left // 2**32 ^ counter[3] ^ key[1],
            left % 2**32,
        )
        key = ((key[0] + 0x9E3779B9) % 2**32, (key[1] + 0xBB67AE85) % 2**32)
    return counter


def _halves(value: int) -> tuple[int, int]:
    return int(value) % 2**32, int(value) // 2**32


def _word(position: int, seed: int, call: int, dtype: str) -> int:
    """The word, or double word, at a position: four, or two, neighbors share a block."""
    position, share = int(position), 4 if dtype == "uint32" else 2
    words = philox((*_halves(position // share), *_halves(call)), _halves(seed))
    if share == 4:
        return words[position % 4]
    at = position % 2 * 2
    return words[at + 1] * 2**32 + words[at]


def _bits(position: Array, seed: Array, call: Array, dtype: str) -> Array:
    return each(lambda *counter: _word(*counter, dtype))(position, seed, call)


def _normal(position: Array, seed: Array, call: Array, dtype: str) -> Array:
    """Box and Muller's method, with angles in eighths of a turn so that none is lost."""
    count, word = (24, "uint32") if dtype == "float32" else (53, "uint64")

    def number(position: int, seed: int, call: int) -> Any:
        first = int(position) // 2 * 2
        k, m = (_word(first + i, seed, call, word) >> ((32 if count == 24 else 64) - count) for i in range(2))
        turn = mpmath.mpf(m) / 2**count
        radius = mpmath.sqrt(-2 * mpmath.log(1 - mpmath.mpf(k) / 2**count))
        angle = mpmath.sinpi(2 * turn) if position % 2 else mpmath.cospi(2 * turn)
        return np.longdouble(mpmath.nstr(radius * angle, 25))

    return np.asarray(each(number)(position, seed, call), np.longdouble)


def _draws(*kinds: str) -> Callable[[str, Rng], Iterator[Case]]:
    def cases(dtype: str, rng: Rng) -> Iterator[Case]:
        shapes = (((7,), (), ()), ((0,), (), ()), ((), (), ()), ((3, 5), (5,), (3, 1)), ((127,), (), ()))
        for kind in kinds:
            for shape in shapes:
                yield Case(tuple(sample(dtype, s, rng) for s in shape), {"dtype": kind})
            row = np.array([0, 1, 2, 3, 2**32, 2**62, 2**64 - 2, 2**64 - 1], np.uint64)
            yield Case((row, row[::-1, None], row[1:2]), {"dtype": kind})

    return cases


def _positions(dtype: str, rng: Rng) -> Iterator[Case]:
    for shape in ((), (0,), (7,), (3, 5), (2, 0, 3), (1, 4, 1, 2)):
        yield Case((), {"shape": shape})


def _fractions(dtype: str, rng: Rng) -> Iterator[Case]:
    for target in FLOATS if dtype == "uint64" else FLOATS[:2]:
        for shape in ((), (0,), (3, 5), (257,)):
            yield Case((sample(dtype, shape, rng),), {"dtype": target})


def _fraction(bits: Array, dtype: str) -> Any:
    count = {"float16": 11, "float32": 24, "float64": 53}[dtype]
    width = 64 if any(b >= 2**32 for b in bits.ravel()) else 32  # whatever the dtype was, a sample has large numbers
    return np.asarray(each(lambda b: math.ldexp(int(b) // 2 ** (width - count), -count))(bits), np.longdouble)


RANDOM = (
    Contract("positions", _positions, lambda shape: np.arange(math.prod(shape)).reshape(shape), ("uint64",)),
    Contract("random_bits", _draws("uint32", "uint64"), _bits, ("uint64",)),
    Contract("random_normal", _draws("float32", "float64"), _normal, ("uint64",), ulp=4),
    Contract("fraction", _fractions, _fraction, ("uint32", "uint64"), ulp=0),
)
