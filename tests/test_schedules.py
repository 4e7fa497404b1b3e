"""Tests of how reductions are scheduled: every order of loops gives NumPy's answer, long sums are accurate."""

from __future__ import annotations

import numpy as np
import pytest

from graphkb import backend as K
from graphkb.backend import Tensor
from graphkb.ops.reduce import cumsum
from graphkb.runtime.options import options

pytest.importorskip("llvmlite")
SHAPES = [(16, 1024), (17, 1025), (3, 40, 2048), (8, 1030), (2000, 3), (40, 1024, 5), (1, 5000), (2500, 1)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", ["float32", "float64", "int32", "uint8"])
@pytest.mark.parametrize("target", ["host", "x86-64-v2"])
def test_reductions_over_any_axis(shape: tuple[int, ...], dtype: str, target: str) -> None:
    rng = np.random.default_rng(0)
    values = (rng.normal(size=shape) * 3).astype(dtype)
    x = K.placeholder(shape, dtype=dtype)
    axes = [*range(len(shape)), list(range(len(shape)))]
    outputs = [f(x, axis=a) for a in axes for f in (K.sum, K.max, K.min)] + [K.sum(x, axis=0) * 2 + 1]
    with options(target=target, mode="native"):
        results = K.function([x], outputs)([values])
    wide = "float64" if dtype.startswith("float") else dtype
    expected = [
        getattr(values.astype(wide), name)(axis=None if isinstance(a, list) else a)
        for a in axes
        for name in ("sum", "max", "min")
    ]
    expected = [np.asarray(e).astype(wide) for e in expected] + [values.astype(wide).sum(0, dtype=wide) * 2 + 1]
    for result, wanted in zip(results, expected):
        if dtype.startswith("float"):
            bound = 3e-6 if dtype == "float32" else 1e-13
            assert np.abs(result - wanted).max() <= bound * np.abs(values.astype("float64")).sum() / result.size + bound
        else:
            np.testing.assert_array_equal(result, wanted.astype(dtype))


@pytest.mark.parametrize("shape", [(16, 1024), (19, 1100)])
def test_sweeps_keep_nan_and_bools(shape: tuple[int, int]) -> None:
    values = np.random.default_rng(1).normal(size=shape).astype("float32")
    values[5, 7] = np.nan
    x = K.placeholder(shape)
    largest, anywhere, everywhere = K.function([x], [K.max(x, axis=0), K.any(x > 3, axis=0), K.all(x > -2, axis=0)])(
        [values]
    )
    np.testing.assert_array_equal(largest, values.max(axis=0))
    np.testing.assert_array_equal(anywhere, (values > 3).any(axis=0))
    np.testing.assert_array_equal(everywhere, (values > -2).all(axis=0))


def test_long_sums_are_as_accurate_as_numpys() -> None:
    values = np.random.default_rng(2).normal(size=(1500, 1200)).astype("float32")
    x = K.placeholder(values.shape)
    exact = values.sum(dtype="float64")
    result = K.function([x], [K.sum(x)])([values])[0]
    assert abs(float(result) - exact) <= np.spacing(np.float32(abs(exact)))


@pytest.mark.parametrize("shape", [(16, 1024, 16), (4, 8, 1024, 16), (3, 5000, 64), (7, 3, 2000, 33)])
def test_long_sums_over_several_axes_do_not_drift(shape: tuple[int, ...]) -> None:
    """Rounding equal terms always goes the same way, so one running float32 sum would be wrong by 1e-4."""
    x = K.placeholder(shape)
    weights = K.placeholder((shape[0], *[1] * (len(shape) - 2), shape[-1]))
    axes = tuple(range(len(shape) - 1))
    values = np.full(shape, 0.123456, np.float32), np.full(weights.shape, 0.123456, np.float32)
    product, cube, stored = [values[0] * values[1] * factor for factor in (1, values[0], 2)]
    with options(mode="native"):
        f = K.function([x, weights], [K.sum(x * weights, axes), K.sum(x * weights * x, axes), x * weights * 2])
    first, second, third = f([*values])
    np.testing.assert_allclose(first, product.sum(axes, dtype=np.float64), rtol=1e-5)
    np.testing.assert_allclose(second, cube.sum(axes, dtype=np.float64), rtol=1e-5)
    np.testing.assert_array_equal(third, stored)


def test_long_sums_of_float16_are_rounded_once() -> None:
    values = np.random.default_rng(3).random((7, 9001)).astype("float16")
    x = K.placeholder(values.shape, dtype="float16")
    result = K.function([x], [K.sum(x, axis=1)])([values])[0]
    np.testing.assert_array_equal(result, values.sum(axis=1, dtype="float64").astype("float16"))


def test_sums_over_an_unknown_number_of_rows() -> None:
    x = K.placeholder((None, 1500))
    f = K.function([x], [K.sum(x, axis=0), K.mean(x)])
    for rows in (1, 15, 16, 33):
        values = np.random.default_rng(rows).normal(size=(rows, 1500)).astype("float32")
        columns, mean = f([values])
        np.testing.assert_allclose(columns, values.sum(0, dtype="float64"), rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(mean, values.mean(dtype="float64"), rtol=1e-5, atol=1e-7)


# ---------------------------------------------------------------------------------------------- the order of memory
@pytest.mark.parametrize(
    ("shape", "axes"),
    [
        ((5001, 64), (0,)),  # rows short of a page, one after the other
        ((131, 2048), (0,)),  # a few rows at a time, and a rest
        ((3, 300, 520), (1,)),
        ((9, 70, 33, 40), (0, 2)),
        ((70001, 3), (0,)),  # few columns: neighboring rows share a vector
        ((2, 9001, 5), (1,)),
        ((12, 50, 400), (0, 2)),  # runs of memory that lie apart
        ((5, 130, 40, 17), (0, 2, 3)),
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "float64", "int8"])
@pytest.mark.parametrize("target", ["host", "x86-64-v2"])
def test_large_reductions_across_memory(shape: tuple[int, ...], axes: tuple[int, ...], dtype: str, target: str) -> None:
    values = (np.random.default_rng(4).normal(size=shape) * 9).astype(dtype)
    x = K.placeholder(shape, dtype=dtype)
    outputs = [K.sum(x, axis=axes), K.max(x, axis=axes, keepdims=True), K.sum(x, axis=axes) * 3 - K.min(x, axis=axes)]
    wide = values.astype("float64" if dtype.startswith("float") else dtype)
    total = wide.sum(axis=axes, dtype=wide.dtype)
    expected = [total, wide.max(axis=axes, keepdims=True), (total * 3 - wide.min(axis=axes)).astype(wide.dtype)]
    with options(target=target, mode="native"):
        alone = [K.function([x], [y])([values])[0] for y in outputs]
        together = K.function([x], outputs)([values])
    for results in (alone, together):
        for result, wanted in zip(results, expected):
            if dtype.startswith("float"):
                bound = 2e-7 if dtype == "float32" else 1e-15
                magnitude = np.abs(wide).sum(axis=axes).max()
                np.testing.assert_allclose(result, wanted, rtol=1e-6, atol=bound * magnitude)
            else:
                np.testing.assert_array_equal(result, wanted)


def test_rows_are_summed_in_the_order_of_memory() -> None:
    x = K.placeholder((300, 1024))
    f = K.function([x], [K.sum(x, axis=0)])
    f([np.ones((300, 1024), "float32")])
    text = f.dump(stage="loops")
    assert "scratch blocks: float32[5120]" in text  # of 64 rows, the last of fewer
    assert text.count("prefetch in0[") == 4 * 2


def test_runs_that_lie_apart_may_be_none() -> None:
    x = K.placeholder((7, 0, 90))
    (total,) = K.function([x], [K.sum(x, axis=(0, 2))])([np.zeros((7, 0, 90), "float32")])
    assert total.shape == (0,)


def test_sweeps_add_negative_zeros_up_to_zero() -> None:
    x = K.placeholder((600, 512))
    (total,) = K.function([x], [K.sum(x, axis=0)])([np.full((600, 512), -0.0, "float32")])
    assert not np.signbit(total).any()


@pytest.mark.parametrize("shape", [(200, 1500), (3, 90, 1024), (130, 2051)])
@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
@pytest.mark.parametrize("exclusive", [False, True])
def test_large_running_sums_across_memory(shape: tuple[int, ...], dtype: str, exclusive: bool) -> None:
    values = np.random.default_rng(6).integers(-3, 4, shape).astype(dtype)
    values[..., 0, 0] = -0.0
    x = K.placeholder(shape, dtype=dtype)
    with options(mode="native"):
        (result,) = K.function([x], [Tensor(cumsum(x.node, len(shape) - 2, exclusive, reverse=True))])([values])
    expected = np.flip(np.cumsum(np.flip(values, -2), axis=-2, dtype=dtype), -2)
    if exclusive:
        expected = np.concatenate([expected[..., 1:, :], np.zeros_like(expected[..., :1, :])], -2)
    np.testing.assert_array_equal(result, expected)


# ---------------------------------------------------------------------------------------------- groups of neighbors
GROUPED = [
    ((4, 500, 8, 8), (1, 3)),
    ((2, 9, 40, 4, 7), (1, 2, 4)),
    ((40, 100, 6, 20), (1, 3)),
    ((6, 50, 4, 9), (0, 1, 3)),
]


@pytest.mark.parametrize(("shape", "axes"), GROUPED)
@pytest.mark.parametrize("dtype", ["float32", "float64", "uint8"])
def test_reductions_and_maps_of_groups(shape: tuple[int, ...], axes: tuple[int, ...], dtype: str) -> None:
    values = (np.random.default_rng(7).random(shape) * 9).astype(dtype)
    x = K.placeholder(shape, dtype=dtype)
    largest = K.max(x, axis=axes, keepdims=True)
    with options(mode="native"):
        results = K.function([x], [K.sum(x, axis=axes), largest - x, K.sum(K.square(largest - x), axis=axes)])([values])
    wide = values.astype("float64" if dtype.startswith("float") else dtype)
    distance = wide.max(axis=axes, keepdims=True) - wide
    squares = (distance**2).sum(axis=axes, dtype=wide.dtype)
    for result, wanted in zip(results, [wide.sum(axis=axes, dtype=wide.dtype), distance, squares]):
        if dtype.startswith("float"):
            np.testing.assert_allclose(result, wanted, rtol=2e-6 if dtype == "float32" else 1e-14, atol=1e-6)
        else:
            np.testing.assert_array_equal(result, wanted)


def test_what_changes_with_groups_only_is_spread() -> None:
    x, scale = K.placeholder((2, 300, 4, 8)), K.placeholder((2, 1, 4, 1))
    f = K.function([x, scale], [x * scale])
    values = np.random.default_rng(8).random((2, 300, 4, 8)).astype("float32")
    factors = np.random.default_rng(9).random((2, 1, 4, 1)).astype("float32")
    np.testing.assert_array_equal(f([values, factors])[0], values * factors)
    assert "scratch spread0: float32[64]" in f.dump(stage="loops")


@pytest.mark.parametrize("shape", [(0, 300, 4, 8), (2, 0, 4, 8), (2, 300, 0, 8), (2, 300, 4, 0)])
def test_nothing_is_spread_over_nothing(shape: tuple[int, ...]) -> None:
    x, scale = K.placeholder(shape), K.placeholder((shape[0], 1, shape[2], 1))
    with options(mode="native"):
        f = K.function([x, scale], [x * scale, K.sum(x * scale, axis=(1, 3))])
        results = f([np.ones(shape, "float32"), np.ones((shape[0], 1, shape[2], 1), "float32")])
    assert [r.shape for r in results] == [shape, (shape[0], shape[2])]
    assert not results[1].any()
