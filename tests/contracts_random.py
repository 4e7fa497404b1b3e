"""The contracts of the random ops: Philox in Python's integers, and the bits of a fraction one by one."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

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


def _bits(position: int, seed: int, call: int) -> int:
    low, high, *_ = philox((*_halves(position), *_halves(call)), _halves(seed))
    return high * 2**32 + low


def _draws(dtype: str, rng: Rng) -> Iterator[Case]:
    for shapes in (((7,), (), ()), ((0,), (), ()), ((), (), ()), ((3, 5), (5,), (3, 1)), ((127,), (), ())):
        yield Case(tuple(sample(dtype, shape, rng) for shape in shapes))


def _positions(dtype: str, rng: Rng) -> Iterator[Case]:
    for shape in ((), (0,), (7,), (3, 5), (2, 0, 3), (1, 4, 1, 2)):
        yield Case((), {"shape": shape})


def _fractions(dtype: str, rng: Rng) -> Iterator[Case]:
    for target in FLOATS:
        for shape in ((), (0,), (3, 5), (257,)):
            yield Case((sample(dtype, shape, rng),), {"dtype": target})


def _fraction(bits: Array, dtype: str) -> Any:
    count = {"float16": 11, "float32": 24, "float64": 53}[dtype]
    return np.asarray(each(lambda b: math.ldexp(int(b) // 2 ** (64 - count), -count))(bits), np.longdouble)


RANDOM = (
    Contract("positions", _positions, lambda shape: np.arange(math.prod(shape)).reshape(shape), ("uint64",)),
    Contract("random_bits", _draws, each(_bits), ("uint64",), special=True),
    Contract("fraction", _fractions, _fraction, ("uint64",), ulp=0),
)
