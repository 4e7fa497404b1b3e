"""Arrays of the same values in unusual memory: compiled functions must see what NumPy sees, and leave it alone."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import graphkb
from graphkb import backend as K

pytest.importorskip("llvmlite")

Array = np.ndarray[Any, Any]


def misaligned(a: Array) -> Array:
    room = np.empty(a.nbytes + 3, np.uint8)
    return room[3:].view(a.dtype).reshape(a.shape)


def field(a: Array) -> Array:
    return np.empty(a.shape, [("before", "u1"), ("value", a.dtype), ("after", "u1")])["value"]


# name: an array of the same shape and dtype whose elements may be set
MEMORY: dict[str, Callable[[Array], Array]] = {
    "misaligned": misaligned,
    "field": field,
    "backwards": lambda a: np.empty_like(a)[::-1, ::-1],
    "spread": lambda a: np.empty((2 * a.shape[0], 300 * a.shape[1]), a.dtype)[::2, ::300],
    "fortran": lambda a: np.empty(a.shape[::-1], a.dtype).T,
    "swapped": lambda a: np.empty(a.shape, a.dtype.newbyteorder()),
}


def sample(dims: tuple[int, ...], dtype: str) -> Array:
    rng = np.random.default_rng(5)
    a = (
        (rng.standard_normal(dims) * 20).astype(dtype)
        if dtype != "uint16"
        else rng.integers(0, 300, dims).astype(dtype)
    )
    if a.dtype.kind == "f" and a.size > 4:
        a.flat[:4] = [np.nan, np.inf, -np.inf, -0.0]
    return a


def results(mode: str, dims: tuple[int, ...], dtype: str) -> Callable[[list[Array]], list[Array]]:
    """A function compiled or interpreted, whose outputs are exact in both."""
    with graphkb.options(mode=mode):
        x, y = K.placeholder(dims, dtype=dtype), K.placeholder(dims, dtype=dtype)
        outputs = [x + y, K.maximum(x, y), K.greater(x, y), x[:, ::-3], y[:, ::2], K.transpose(x), K.stack([x, y], -1)]
        return K.function([x, y], [*outputs, K.cast(x, "float32"), K.switch(K.greater(x, y), x, y), K.reverse(y, 1)])


def check(dims: tuple[int, ...], dtype: str, pairs: list[tuple[Array, Array]]) -> None:
    native, interpreted = results("native", dims, dtype), results("interpret", dims, dtype)
    for x, y in pairs:
        before = x.copy(), y.copy()
        for got, expected in zip(native([x, y]), interpreted([x, y]), strict=True):
            assert got.dtype == expected.dtype
            np.testing.assert_array_equal(got, expected)
        np.testing.assert_array_equal(x, before[0])
        np.testing.assert_array_equal(y, before[1])


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "uint16", "int8"])
@pytest.mark.parametrize("dims", [(0, 3), (1, 1), (7, 65), (16, 33)])
def test_unusual_memory(dims: tuple[int, int], dtype: str) -> None:
    a, b = sample(dims, dtype), sample(dims, dtype)[::-1].copy()
    pairs = []
    for make in MEMORY.values():
        x = make(a)
        x[...] = a
        pairs += [(x, b), (b, x), (x, x)]
    still = a.copy()
    still.flags.writeable = False
    check(dims, dtype, [*pairs, (still, b), (np.broadcast_to(b[:1], dims), a), (a, np.broadcast_to(b[:, :1], dims))])


def test_overlapping_inputs() -> None:
    room = sample((500,), "float32")
    views = [room[i : i + 455].reshape(7, 65) for i in (0, 1, 16, 45)]
    check((7, 65), "float32", [(x, y) for x in views for y in views])
