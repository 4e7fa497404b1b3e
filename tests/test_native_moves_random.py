"""Random moves and reductions: native code gives what NumPy gives, for awkward sizes, layouts and numbers.

`GRAPHKB_EXAMPLES=2000 python -m pytest tests/test_native_moves_random.py` looks further.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from itertools import permutations
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from graphkb import backend as K
from graphkb.backend import Tensor
from graphkb.ops import index
from graphkb.runtime.options import options

pytest.importorskip("llvmlite")
Array = np.ndarray[Any, Any]
EXAMPLES = int(os.environ.get("GRAPHKB_EXAMPLES", "30"))
RANDOM = settings(
    max_examples=EXAMPLES,
    derandomize="GRAPHKB_EXAMPLES" not in os.environ,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
DTYPES = ("float32", "float64", "float16", "int8", "uint8", "int32", "int64", "uint64", "bool")
SIZES = (0, 1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33, 63, 64, 65, 127, 130)


@st.composite
def arrays(draw: st.DrawFn, dtypes: tuple[str, ...] = DTYPES, least: int = 0, least_rank: int = 1) -> Array:
    """An array of any strides, misaligned or read-only; floats with NaN, infinities and zeros of both signs."""
    dtype = draw(st.sampled_from(dtypes))
    rank = draw(st.integers(least_rank, 3))
    dims = [draw(st.sampled_from([n for n in SIZES if n >= least])) for _ in range(rank)]
    while np.prod(dims) > 40000:
        dims[int(np.argmax(dims))] //= 4
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    array = np.asarray(rng.integers(-9, 10, dims)).astype(dtype)
    if dtype.startswith("float") and draw(st.booleans()):
        special = rng.choice(np.array([np.nan, np.inf, -np.inf, -0.0, 1e-40, 60000.0]), dims)
        array = np.where(rng.random(dims) < 0.1, special, array).astype(dtype)
    match draw(st.sampled_from(("plain", "transposed", "strided", "reversed", "misaligned", "frozen"))):
        case "transposed":
            array = np.ascontiguousarray(array.T).T
        case "strided":
            wide = np.zeros([2 * n for n in dims], dtype)
            view = wide[tuple(slice(None, None, 2) for _ in dims)]
            view[...] = array
            array = view
        case "reversed":
            array = np.flip(np.flip(array).copy())
        case "misaligned":
            raw = np.zeros(array.nbytes + 1, "uint8")[1:]
            view = raw.view(dtype).reshape(dims)
            view[...] = array
            array = view
        case "frozen":
            array.flags.writeable = False
    return array


def check(build: Callable[..., Tensor], wanted: Callable[..., Array], *inputs: Array) -> None:
    """Native equals NumPy, bit for bit but for the payload of NaN."""
    with options(mode="native"):
        places = [K.placeholder(a.shape, dtype=a.dtype.name) for a in inputs]
        function = K.function(places, [build(*places)])
        (result,) = function(list(inputs))
        assert function.report().interpreted == 0
    with np.errstate(all="ignore"):
        expected = wanted(*inputs)
    assert result.dtype == expected.dtype
    np.testing.assert_array_equal(result, expected)
    if result.dtype.kind == "f":
        number = ~np.isnan(expected)
        np.testing.assert_array_equal(np.signbit(result)[number], np.signbit(expected)[number])


@RANDOM
@given(x=arrays(), data=st.data())
def test_views_and_copies(x: Array, data: st.DataObject) -> None:
    order = data.draw(st.sampled_from(list(permutations(range(x.ndim)))))
    cuts = []
    for n in x.shape:
        start, stop = sorted((data.draw(st.integers(0, n)), data.draw(st.integers(0, n))))
        step = data.draw(st.sampled_from((1, 1, 2, 3, 5, -1, -2)))
        cuts.append(slice(start, stop, step) if step > 0 else slice(None, None, step))
    cut = tuple(cuts)
    check(lambda t: K.permute_dimensions(t[cut], order), lambda a: a[cut].transpose(order), x)
    check(lambda t: K.permute_dimensions(t, order)[..., ::-1], lambda a: a.transpose(order)[..., ::-1], x)
    repeats = tuple(data.draw(st.integers(1, 3)) for _ in x.shape)
    axis = data.draw(st.integers(0, x.ndim - 1))
    check(lambda t: K.tile(t, repeats), lambda a: np.tile(a, repeats), x)
    check(lambda t: K.repeat_elements(t, 3, axis), lambda a: np.repeat(a, 3, axis), x)


@RANDOM
@given(x=arrays(), data=st.data())
def test_joins(x: Array, data: st.DataObject) -> None:
    axis = data.draw(st.integers(0, x.ndim - 1))
    cut = (slice(None),) * axis + (slice(0, data.draw(st.integers(0, x.shape[axis]))),)
    parts = [x, x[cut], x]
    check(lambda *t: K.concatenate(list(t), axis), lambda *a: np.concatenate(a, axis), *parts)
    place = data.draw(st.integers(0, x.ndim))
    count = data.draw(st.integers(2, 9))
    check(lambda t: K.stack([t] * count, place), lambda a: np.stack([a] * count, place), x)


@RANDOM
@given(x=arrays(least=1), data=st.data())
def test_gathers_and_one_hots(x: Array, data: st.DataObject) -> None:
    axis = data.draw(st.integers(0, x.ndim - 1))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    i = rng.integers(0, x.shape[axis], data.draw(st.sampled_from(SIZES))).astype(
        data.draw(st.sampled_from(DTYPES[3:7]))
    )
    i = np.clip(i, 0, None)
    check(
        lambda t, j: Tensor(index.gather(t.node, j.node, axis)),
        lambda a, j: np.take(a, j.astype("int64"), axis),
        x,
        i,
    )
    check(lambda j: K.one_hot(j, 13), lambda j: (j[:, None] == np.arange(13)).astype("float32"), i)


@RANDOM
@given(x=arrays(least=1), data=st.data())
def test_extrema_and_their_positions(x: Array, data: st.DataObject) -> None:
    axis = data.draw(st.integers(0, x.ndim - 1))
    check(lambda t: K.argmax(t, axis), lambda a: a.argmax(axis), x)
    check(lambda t: K.argmin(t, axis), lambda a: a.argmin(axis), x)
    # Which of two zeros is the larger one is nobody's promise.
    check(lambda t: K.max(t, axis), lambda a: a.max(axis), x[...] if x.dtype == bool else np.abs(x))
    check(lambda t: K.min(t, axis), lambda a: a.min(axis), x[...] if x.dtype == bool else -np.abs(x) - x.dtype.type(1))


@RANDOM
@given(x=arrays(dtypes=("int8", "uint8", "int32", "int64", "uint64", "bool")), data=st.data())
def test_sums_and_products_of_integers_wrap(x: Array, data: st.DataObject) -> None:
    axes = tuple(a for a in range(x.ndim) if data.draw(st.booleans())) or (0,)
    if x.dtype == bool:
        check(lambda t: K.any(t, axes), lambda a: a.any(axes), x)
        check(lambda t: K.all(t, axes), lambda a: a.all(axes), x)
        return
    check(lambda t: K.sum(t, axes), lambda a: a.sum(axes, dtype=a.dtype), x)
    check(lambda t: K.prod(t, axes), lambda a: a.prod(axes, dtype=a.dtype), x)
    check(lambda t: K.cumsum(t, axes[0]), lambda a: np.cumsum(a, axes[0], dtype=a.dtype), x)
    check(lambda t: K.cumprod(t, axes[0]), lambda a: np.cumprod(a, axes[0], dtype=a.dtype), x)


@RANDOM
@given(x=arrays(dtypes=("float16", "float32", "float64")), data=st.data())
def test_running_sums_of_floats_go_in_order(x: Array, data: st.DataObject) -> None:
    axis = data.draw(st.integers(0, x.ndim - 1))
    wide = "float32" if x.dtype == np.float16 else x.dtype
    check(lambda t: K.cumsum(t, axis), lambda a: np.cumsum(a, axis, dtype=wide).astype(a.dtype), x)


@RANDOM
@given(x=arrays(dtypes=("float16", "float32", "float64")), data=st.data())
def test_sums_of_floats_are_as_accurate_as_pairwise_ones(x: Array, data: st.DataObject) -> None:
    axes = tuple(a for a in range(x.ndim) if data.draw(st.booleans())) or (0,)
    place = K.placeholder(x.shape, dtype=x.dtype.name)
    with options(mode="native"):
        (result,) = K.function([place], [K.sum(place, axes)])([x])
    with np.errstate(all="ignore"):
        exact, size = (np.asarray(a.sum(axes)) for a in (x.astype(np.longdouble), np.abs(x).astype(np.longdouble)))
        largest = np.finfo(x.dtype).max
        finite = np.isfinite(exact) & (size < largest)
        count = max(2, x.size // max(1, result.size))
        unit = 2.0**-24 * np.log2(count) if x.dtype != np.float64 else 2.0**-53 * np.log2(count)
        allowed = 4 * unit * size + np.spacing(np.abs(exact).astype(x.dtype)).astype(np.longdouble)
    same = np.isnan(result) & np.isnan(exact) | (result == exact) | (size >= largest) & ~np.isnan(exact)
    with np.errstate(invalid="ignore"):
        near = np.abs(result.astype(np.longdouble) - exact) <= allowed
    assert np.all(np.where(finite, near, same))


@RANDOM
@given(x=arrays(), to=st.sampled_from(DTYPES))
def test_casts_comparisons_and_choices(x: Array, to: str) -> None:
    whole = np.nan_to_num(x, nan=1, posinf=2, neginf=3) if x.dtype.kind == "f" else x
    # What an integer makes of a number that it can not hold is the machine's choice.
    safe = np.where(np.abs(whole.astype("float64")) < 100, whole, 5).astype(x.dtype) if x.dtype != bool else x
    if np.dtype(to).kind == "u" and x.dtype.kind == "f":
        safe = np.abs(safe)
    check(lambda t: K.cast(t, to), lambda a: a.astype(to), safe)
    check(lambda t: K.equal(t, t[..., ::-1]), lambda a: a == a[..., ::-1], x)
    check(lambda t: K.less(t, t[..., ::-1]), lambda a: a < a[..., ::-1], x)
    check(
        lambda t: K.switch(t > t[..., ::-1], t, t[..., ::-1]), lambda a: np.where(a > a[..., ::-1], a, a[..., ::-1]), x
    )
