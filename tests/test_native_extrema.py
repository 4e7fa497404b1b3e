"""Tests of native argmax, argmin, max and min: every schedule, ties, NaN, infinities, signed zeros, all targets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from test_native_moves import TARGETS, Array, compiled, like, native

import graphkb
from graphkb import backend as K
from graphkb.ir.node import make
from graphkb.ops.elementwise import isnan_

DTYPES = ["float16", "float32", "float64", "bool", "int8", "uint8", "int16", "uint32", "int64"]
# Rows of one vector and of several, short and long columns, blocks of columns with and without a rest, a middle axis.
DIMS = [(9, 3), (4, 40), (3, 65), (2, 300), (20, 130), (17, 1030), (3, 20, 140), (70, 65), (1, 1)]


def tied(dims: tuple[int, ...], dtype: str, seed: int) -> Array:
    """Few different numbers, so that extrema tie; floats with NaN, infinities and zeros of both signs in some rows."""
    rng = np.random.default_rng(seed)
    if dtype == "bool":
        return rng.random(dims) < 0.1
    array = rng.integers(0, 7, dims).astype(dtype)
    if dtype.startswith("float"):
        special = rng.choice([np.nan, np.inf, -np.inf, -0.0, 0.0, -3.0], dims).astype(dtype)
        array = np.where(rng.random(dims) < 2 / max(dims), special, array - np.asarray(3, dtype))
    return array


@pytest.mark.parametrize(
    ("dtype", "target"), [(d, "host") for d in DTYPES] + [(d, t) for d in DTYPES[:4] for t in TARGETS[:-1]]
)
def test_extrema_and_their_positions_are_those_of_numpy(dtype: str, target: str) -> None:
    arrays = [tied(dims, dtype, i) for i, dims in enumerate(DIMS[:: 1 if target == "host" else 2])]
    inputs = [like(a) for a in arrays]
    outputs, wanted = [], []
    for x, a in zip(inputs, arrays):
        for axis in range(a.ndim):
            outputs += [K.argmax(x, axis), K.argmin(x, axis), K.max(x, axis), K.min(x, axis)]
            wanted += [a.argmax(axis), a.argmin(axis), a.max(axis), a.min(axis)]
    for result, expected in zip(native(inputs, outputs, arrays, target), wanted):
        assert result.dtype == expected.dtype
        np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("n", [16, 17, 63, 65, 500])
def test_the_first_nan_counts_wherever_it_stands(n: int, target: str) -> None:
    a = np.random.default_rng(n).normal(size=(n, n)).astype("float32")
    a[np.arange(n), np.arange(n)] = np.nan  # one in each row and column
    a[:, -1] = a[-1] = np.inf
    a[:, 0] = -np.nan
    x = like(a)
    rows, columns, largest = native([x], [K.argmax(x, 1), K.argmin(x, 0), K.max(x, 1)], [a], target)
    np.testing.assert_array_equal(rows, np.argmax(a, 1))
    np.testing.assert_array_equal(columns, np.argmin(a, 0))
    np.testing.assert_array_equal(largest, a.max(1))


@pytest.mark.parametrize("target", TARGETS)
def test_positions_in_what_is_computed_and_in_transposes(target: str) -> None:
    a = np.random.default_rng(0).normal(size=(37, 150)).astype("float32")
    x = like(a)
    outputs = [K.argmax(x * x, 1), K.argmax(K.exp(K.sin(x)), 1), K.argmax(K.transpose(x), 1), K.argmin(x[:, ::-1], 1)]
    outputs += [K.gather(x, K.argmax(x, 0) % 3), K.cast(K.argmax(x, 0), "float32") * 2, K.argmax(x > 1, 0)]
    results = native([x], outputs, [a], target)
    wanted = [(a * a).argmax(1), np.exp(np.sin(a)).argmax(1), a.argmax(0), a[:, ::-1].argmin(1)]
    wanted += [a[a.argmax(0) % 3], a.argmax(0) * 2, (a > 1).argmax(0)]
    for result, expected in zip(results, wanted):
        np.testing.assert_array_equal(result, expected)


def test_a_position_beyond_narrow_integers() -> None:
    a = np.zeros((1000, 3), "uint8")
    a[700, 1] = a[999, 2] = 5
    x = like(a)
    columns, rows = native([x], [K.argmax(x, 0), K.argmax(K.transpose(x), 1)], [a], "host")
    np.testing.assert_array_equal(columns, [0, 700, 999])
    np.testing.assert_array_equal(rows, [0, 700, 999])


def test_positions_along_unknown_sizes_ahead_of_time(tmp_path: Path) -> None:
    x = K.placeholder((None, None), name="x")
    net = compiled(K.function([x], [K.argmax(x, 0), K.argmin(x, 1), K.max(x, 1)]), tmp_path)
    for dims in [(1, 1), (3, 70), (70, 3), (600, 33), (2, 16)]:
        a = tied(dims, "float32", dims[0])
        for result, expected in zip(net([a]), [a.argmax(0), a.argmin(1), a.max(1)]):
            np.testing.assert_array_equal(result, expected)


def test_the_loops_of_positions() -> None:
    x = K.placeholder((40, 600), name="x")
    text = graphkb.dump(K.function([x], [K.argmax(x, 1), K.argmax(x, 0)]), stage="loops")
    assert "acc_at: bool = first of" in text
    assert "local best: float32[512], at: int32[512]:" in text


def test_no_argmax_of_a_nan_is_lost_in_conversions() -> None:
    a = np.array([[1, np.nan, 3], [4, 5, 6]], "float16")
    x = like(a)
    found, flags = native([x], [K.argmax(x, 1), K.Tensor(make(isnan_, (K.max(x, 1).node,)))], [a], "host")
    np.testing.assert_array_equal(found, [1, 2])
    np.testing.assert_array_equal(flags, [True, False])
