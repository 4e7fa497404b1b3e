"""Tests of element-wise kernels that read joined operands in place: one nest for each box, no copy of the whole."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from graphkb import backend as K
from graphkb.runtime.options import options

pytest.importorskip("llvmlite")
Array = np.ndarray[Any, Any]


def roll(x: Any, step: int, axis: int) -> Any:
    """As NumPy's, with slices of a handle."""
    before = (slice(None),) * axis
    return K.concatenate([x[(*before, slice(-step, None))], x[(*before, slice(None, -step))]], axis)


def laplace(roll: Callable[..., Any], x: Any) -> Any:
    return sum(roll(x, step, axis) for axis in (0, 1) for step in (1, -1)) - 4 * x


def run(build: Callable[..., Any], *arrays: Array, mode: str = "native") -> tuple[Array, int]:
    """The result, and how many steps computed it."""
    places = [K.placeholder(a.shape, dtype=a.dtype.name) for a in arrays]
    with options(mode=mode):
        f = K.function(places, [build(*places)])
    result = f(list(arrays))[0]
    return result, len(f.report().steps)


@pytest.mark.parametrize("dims", [(128, 128), (3, 64), (2, 200), (65, 1000)])
@pytest.mark.parametrize("dtype", ["float32", "float64", "int32", "uint8"])
def test_a_stencil_on_a_torus_is_one_kernel(dims: tuple[int, int], dtype: str) -> None:
    x = (np.random.default_rng(0).normal(size=dims) * 9).astype(dtype)
    result, steps = run(lambda x: laplace(roll, x), x)
    np.testing.assert_array_equal(result, laplace(np.roll, x).astype(dtype))
    assert steps == 1


def test_operands_of_several_sizes_and_empty_ones() -> None:
    rng = np.random.default_rng(1)
    a, b, c, d = (rng.normal(size=(n, 70)).astype("float32") for n in (1, 0, 5, 6))
    place = K.placeholder((6, 70))
    parts = [K.placeholder(a.shape), K.placeholder(b.shape), K.placeholder((8, 70))]
    joined = K.concatenate([parts[0][:1], parts[1][:0], parts[2][2:7]], 0)
    with options(mode="native"):
        f = K.function([*parts, place], [K.exp(joined) - K.sin(joined) * place])
    whole = np.concatenate([a, b, c])
    wide = np.concatenate([d[:2], c, d[:1]])
    result = f([a, b, wide, d])[0]
    assert len(f.report().steps) == 1
    np.testing.assert_allclose(result, np.exp(whole) - np.sin(whole) * d, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("steps", [1, 7])
def test_loops_over_joined_states(steps: int) -> None:
    def move(roll: Callable[..., Any], a: Any, b: Any, stack: Callable[..., Any]) -> Any:
        b = b + 0.1 * laplace(roll, a)
        return stack([a + 0.1 * b, b], 0)

    x = np.random.default_rng(2).normal(size=(2, 64, 80)).astype("float32")
    result, count = run(lambda x: K.foldl(lambda s, _: move(roll, s[0], s[1], K.stack), K.arange(steps), x), x)
    expected = x
    for _ in range(steps):
        expected = move(lambda y, step, axis: np.roll(y, step, axis), expected[0], expected[1], np.stack)
    np.testing.assert_allclose(result, expected.astype("float32"), rtol=2e-6, atol=2e-6)
    assert count <= 6


def test_what_is_read_elsewhere_too_stays_one_copy() -> None:
    x = np.random.default_rng(3).normal(size=(40, 90)).astype("float32")

    def build(x: Any) -> Any:
        turned = roll(x, 1, 0)
        return K.relu(turned) + K.sum(turned, axis=1, keepdims=True) + K.max(K.dot(turned, K.transpose(turned)))

    result, _ = run(build, x)
    turned = np.roll(x, 1, 0).astype("float64")
    expected = np.maximum(turned, 0) + turned.sum(1, keepdims=True) + (turned @ turned.T).max()
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("wanted", ["sum", "softmax", "gather", "joined", "narrow", "transpose"])
def test_around_other_kernels_results_are_those_of_numpy(wanted: str) -> None:
    x = np.random.default_rng(4).normal(size=(30, 66)).astype("float32")
    rows = np.array([3, 0, 29, 7], dtype="int32")
    builds: dict[str, Callable[[Any], Any]] = {
        "sum": lambda x: K.sum(roll(x, 1, 0) * x, axis=1),
        "softmax": lambda x: K.softmax(roll(x, 2, 1) + x),
        "gather": lambda x: K.gather(roll(x, 1, 0) + x, K.constant(rows, dtype="int32")),
        "joined": lambda x: K.concatenate([K.tanh(roll(x, 1, 1)), K.dot(x, K.transpose(x))], 1),
        "narrow": lambda x: roll(x[:, :5], 1, 1) * x[:, :5],
        "transpose": lambda x: K.transpose(roll(x, 1, 0) + 1.0) * roll(K.transpose(x), 3, 0),
    }
    native, _ = run(builds[wanted], x)
    plain, _ = run(builds[wanted], x, mode="interpret")
    np.testing.assert_allclose(native, plain, rtol=2e-5, atol=2e-5)


def test_gradients_through_joins_in_place() -> None:
    x = np.random.default_rng(5).normal(size=(8, 70))

    def loss(x: Any) -> Any:
        return K.sum(K.square(laplace(roll, x)) * K.sin(x))

    place = K.placeholder(x.shape, dtype="float64")
    with options(mode="native"):
        f = K.function([place], [loss(place), *K.gradients(loss(place), [place])])
    _, slope = f([x])
    direction = np.random.default_rng(6).normal(size=x.shape)
    up, down = (f([x + s * 1e-5 * direction])[0] for s in (1, -1))
    assert (slope * direction).sum() == pytest.approx((up - down) / 2e-5, rel=1e-6)
