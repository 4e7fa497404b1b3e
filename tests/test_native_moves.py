"""Tests of native data movement: reads at computed positions, running sums, transposes and joins, all in one plan."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import graphkb
from graphkb import backend as K
from graphkb.backend import Tensor
from graphkb.ops import index
from graphkb.runtime.options import options

pytest.importorskip("llvmlite")
Array = np.ndarray[Any, Any]
TARGETS = ["x86-64-v2", "x86-64-v3", "host"]
DTYPES = ["float16", "float32", "float64", "bool", "int8", "uint16", "int32", "uint64"]


def values(dims: Sequence[int], dtype: str, seed: int = 0) -> Array:
    return (np.random.default_rng(seed).integers(0, 100, dims) % (2 if dtype == "bool" else 100)).astype(dtype)


def native(inputs: Sequence[Tensor], outputs: Sequence[Tensor], feeds: Sequence[Array], target: str) -> list[Array]:
    """The outputs of a function that is native from end to end."""
    with options(target=target, mode="native"):
        function = K.function(list(inputs), list(outputs))
        results = function(list(feeds))
        assert function.report().interpreted == 0
    return list(results)


def like(array: Array) -> Tensor:
    return K.placeholder(array.shape, dtype=array.dtype.name)


# ---------------------------------------------------------------------------------------------- transposes
SHAPES = [(33, 35), (16, 16), (64, 3), (3, 64), (100, 7), (1, 40), (40, 1), (0, 5), (5, 0), (20, 2), (17, 50), (4, 4)]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_transposes(dtype: str, target: str) -> None:
    arrays = [values(s, dtype, i) for i, s in enumerate(SHAPES)]
    inputs = [like(a) for a in arrays]
    for array, result in zip(arrays, native(inputs, [K.transpose(x) for x in inputs], arrays, target)):
        np.testing.assert_array_equal(result, array.T)


@pytest.mark.parametrize("target", TARGETS)
def test_squares_are_stored_in_vectors(target: str) -> None:
    x = K.placeholder((64, 64))
    with options(target=target, mode="native"):
        code = K.function([x], [K.transpose(x)]).dump(stage="llvm")
    assert "x float>" in code
    assert "store float " not in code


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dims", [(2, 5, 7, 33), (3, 9, 20, 3), (2, 17, 16, 18), (1, 2, 65, 4)])
def test_transposes_of_any_axes_with_work_on_top(dims: tuple[int, ...], target: str) -> None:
    orders = [(0, 3, 1, 2), (0, 2, 3, 1), (3, 2, 1, 0), (0, 2, 1, 3), (1, 0, 3, 2), (2, 3, 0, 1)]
    x, a = K.placeholder(dims), values(dims, "float32")
    rows = [values([dims[o[-1]]], "float32", 1) for o in orders]
    outputs = [K.permute_dimensions(x, o) * 2 + K.constant(r) for o, r in zip(orders, rows)]
    for order, row, result in zip(orders, rows, native([x], outputs, [a], target)):
        np.testing.assert_array_equal(result, a.transpose(order) * 2 + row)


def test_a_sum_of_a_matrix_and_its_transpose_and_of_a_comparison() -> None:
    a = values((37, 37), "float32")
    x = like(a)
    both = native([x], [x + K.transpose(x), K.cast(K.transpose(x) > x, "int8"), K.transpose(x) > 50], [a], "host")
    np.testing.assert_array_equal(both[0], a + a.T)
    np.testing.assert_array_equal(both[1], (a < a.T).astype("int8"))
    np.testing.assert_array_equal(both[2], a.T > 50)


def test_transposes_of_unknown_sizes_ahead_of_time(tmp_path: Path) -> None:
    x = K.placeholder((None, None), name="x")
    net = compiled(K.function([x], [K.transpose(x) * 3]), tmp_path)
    for dims in [(40, 50), (16, 32), (3, 70), (1, 1), (0, 4)]:
        a = values(dims, "float32")
        np.testing.assert_array_equal(net([a])[0], a.T * 3)


# ---------------------------------------------------------------------------------------------- joins
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_joined_columns_are_interleaved(dtype: str, target: str) -> None:
    arrays = [values((19, 21), dtype, i) for i in range(4)]
    inputs = [like(a) for a in arrays]
    stacks = [K.stack(inputs[:n], -1) for n in (2, 3, 4)]
    wide = K.concatenate([K.expand_dims(inputs[0], -1), K.stack(inputs[1:3], -1)], -1)
    results = native(inputs, [*stacks, wide], arrays, target)
    for n, result in zip((2, 3, 4), results):
        np.testing.assert_array_equal(result, np.stack(arrays[:n], -1))
    np.testing.assert_array_equal(results[-1], np.stack(arrays[:3], -1))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_nth_element(dtype: str, target: str) -> None:
    a = values((2000,), dtype)
    x = like(a)
    cuts = [slice(s, e, n) for n, s in ((2, 0), (3, 2), (4, 1), (5, 4), (6, 0), (9, 1), (13, 0)) for e in (2000, 150)]
    cuts += [slice(s, None, -n) for n, s in ((1, 1999), (1, 151), (2, 1997), (3, 1999), (6, 1990), (13, 1999))]
    for cut, result in zip(cuts, native([x], [x[c] for c in cuts], [a], target)):
        np.testing.assert_array_equal(result, a[cut])


def test_repeats_and_tiles() -> None:
    a = values((6, 35), "float32")
    x = like(a)
    outputs = [K.tile(x, (3, 2)), K.repeat_elements(x, 3, 1), K.repeat_elements(x, 3, 0)]
    outputs.append(K.one_hot(K.cast(x, "int32"), 9))
    results = native([x], outputs, [a], "host")
    expected = [np.tile(a, (3, 2)), np.repeat(a, 3, 1), np.repeat(a, 3, 0), (a[..., None] == np.arange(9)) * 1.0]
    for result, wanted in zip(results, expected):
        np.testing.assert_array_equal(result, wanted)


# ---------------------------------------------------------------------------------------------- gather, scatter_add
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_gathers_along_any_axis(dtype: str, target: str) -> None:
    a, i = values((7, 6, 33), dtype), values((4, 5), "int64", 1) % 6
    x, j = like(a), K.placeholder(i.shape, dtype="int64")
    along = [Tensor(index.gather(x.node, j.node, axis)) for axis in range(3)]
    single = Tensor(index.gather(x.node, K.constant(3, "int32").node, 1))
    results = native([x, j], [*along, single], [a, i], target)
    for axis, result in enumerate(results[:3]):
        np.testing.assert_array_equal(result, np.take(a, i, axis))
    np.testing.assert_array_equal(results[3], a[:, 3])


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dtype", ["int8", "uint8", "uint16", "int64", "uint64"])
def test_indices_of_any_dtype(dtype: str, target: str) -> None:
    a, i = values((300, 5), "float32"), (values((70,), "int32", 2)).astype(dtype)
    x, j = like(a), like(i)
    product = K.dot(K.gather(x, j), K.transpose(x[:4]))
    rows, scalars, dots = native([x, j], [K.exp(K.gather(x, j) / 50), K.gather(x[:, 0], j), product], [a, i], target)
    np.testing.assert_allclose(rows, np.exp(a[i] / 50), rtol=1e-6)
    np.testing.assert_array_equal(scalars, a[i, 0])
    np.testing.assert_array_equal(dots, a[i] @ a[:4].T)


@pytest.mark.parametrize("target", TARGETS)
def test_gathers_inside_reductions_and_products(target: str) -> None:
    a, w, i = values((20, 48), "float32"), values((48, 32), "float32", 1), values((3, 7), "int32", 2) % 20
    x, v, j = like(a), like(w), K.placeholder(i.shape, dtype="int32")
    embedded = K.gather(x, j)
    outputs = [K.sum(embedded, axis=1), K.softmax(embedded / 10), K.dot(embedded, v) + K.gather(x, j)[:, :, :32]]
    bag, soft, dense = native([x, v, j], outputs, [a, w, i], target)
    np.testing.assert_array_equal(bag, a[i].sum(1))
    shifted = np.exp(a[i] / 10 - (a[i] / 10).max(-1, keepdims=True))
    np.testing.assert_allclose(soft, shifted / shifted.sum(-1, keepdims=True), rtol=1e-5)
    np.testing.assert_array_equal(dense, a[i] @ w + a[i][:, :, :32])


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int8", "int32", "uint64"])
def test_scatter_add_adds_in_order(dtype: str, target: str) -> None:
    i = np.random.default_rng(3).integers(0, 5, (40,)).astype("int32")
    j = K.placeholder(i.shape, dtype="int32")
    dims = [((40, 9), (5, 9), 0), ((3, 40), (3, 5), 1), ((2, 40, 34), (2, 5, 34), 1), ((40,), (5,), 0)]
    arrays = [np.random.default_rng(k).normal(size=s).astype(dtype) for k, (s, _, _) in enumerate(dims)]
    inputs = [like(a) for a in arrays]
    outputs = [Tensor(index.scatter_add(x.node, j.node, axis, to)) for x, (_, to, axis) in zip(inputs, dims)]
    results = native([*inputs, j], outputs, [*arrays, i], target)
    for a, (_, to, axis), result in zip(arrays, dims, results):
        wide = np.zeros(to, "float32" if dtype == "float16" else dtype)
        np.add.at(np.moveaxis(wide, axis, 0), i, np.moveaxis(a, axis, 0))
        np.testing.assert_array_equal(result, wide.astype(dtype))


def test_nothing_gathered_from_nothing() -> None:
    x, j = K.placeholder((0, 3)), K.placeholder((0,), dtype="int32")
    feeds = [np.zeros((0, 3), "float32"), np.zeros(0, "int32")]
    zeros = Tensor(index.scatter_add(x.node, j.node, 0, (4, 3)))
    rows, sums, running = native([x, j], [K.gather(x, j), zeros, K.cumsum(x, 0)], feeds, "host")
    assert rows.shape == (0, 3)
    np.testing.assert_array_equal(sums, np.zeros((4, 3)))
    assert running.shape == (0, 3)


# ---------------------------------------------------------------------------------------------- bad indices
def message(function: Any, feeds: Sequence[Array]) -> str:
    with pytest.raises(IndexError) as caught:
        function(list(feeds))
    return str(caught.value)


@pytest.mark.parametrize("bad", [5, -1, 1 << 30, -(1 << 31)])
def test_a_bad_index_is_an_error_of_the_same_text(bad: int) -> None:
    x, i = K.placeholder((5, 3)), K.placeholder((4,), dtype="int32")
    feeds = [values((5, 3), "float32"), np.array([0, 4, bad, 1], "int32")]
    texts = []
    for mode in ("native", "interpret"):
        with options(mode=mode):
            function = K.function([x, i], [K.gather(x, i) * 2])
            texts += [message(function, feeds), message(function, feeds)]
            function([feeds[0], np.zeros(4, "int32")])
            texts.append(message(function, feeds))
    assert len(set(texts)) == 1
    assert texts[0].startswith(f"gather: index {bad} is out of range for an axis of 5\n  while executing ")
    assert f"built at {Path(__file__).name}:" in texts[0]


def test_a_bad_index_leaves_every_variable_as_it_was() -> None:
    table, count = K.variable(values((6, 8), "float32")), K.variable(np.zeros(3))
    i, j = K.placeholder((3,), dtype="int32"), K.placeholder((3,), dtype="int32")
    rows = K.gather(table, i)
    later = K.gather(table, K.gather(K.constant([0, 5, 7], "int32"), j))
    gradient = K.gradients(K.sum(rows * rows), [table])[0]
    updates = [(count, count + 1), (table, table - 0.1 * gradient)]
    function = K.function([i, j], [K.sum(later)], updates=updates)
    good = [np.array([0, 5, 5], "int32"), np.array([1, 0, 1], "int32")]
    function(good)
    before = K.get_value(table)
    for bad in ([good[0] + 1, good[1]], [good[0], good[1] + 1], [good[0], good[1] + 2]):
        message(function, bad)
        np.testing.assert_array_equal(K.get_value(table), before)
        np.testing.assert_array_equal(K.get_value(count), np.ones(3))
    function(good)
    assert function.report().interpreted == 0
    np.testing.assert_array_equal(K.get_value(count), np.full(3, 2.0))


def test_a_bad_index_beside_what_is_interpreted() -> None:
    x, i = K.placeholder((5, 3)), K.placeholder((2,), dtype="int32")
    shown = Tensor(index.gather(K.print_tensor(x, "").node, i.node))
    function = K.function([x, i], [shown + 1])
    a = values((5, 3), "float32")
    np.testing.assert_array_equal(function([a, np.array([4, 0], "int32")])[0], a[[4, 0]] + 1)
    assert message(function, [a, np.array([4, 9], "int32")]).startswith("gather: index 9 is out of range")


def test_indices_that_are_computed() -> None:
    x, s = K.placeholder((6, 4)), K.placeholder((6, 4))
    function = K.function([x, s], [K.gather(x, K.argmax(s, axis=-1)), K.gather(x, K.cast(s[:, 0], "int32"))])
    a, b = values((6, 4), "float32"), values((6, 4), "float32", 1) % 6
    best, picked = function([a, b])
    np.testing.assert_array_equal(best, a[b.argmax(-1)])
    np.testing.assert_array_equal(picked, a[b[:, 0].astype(int)])
    assert message(function, [a, b + 6]).startswith("gather: index ")


# ---------------------------------------------------------------------------------------------- running sums
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int8", "uint32", "int64"])
def test_running_sums_are_those_of_numpy(dtype: str, target: str) -> None:
    rng = np.random.default_rng(0)
    shapes = [(7, 5, 40), (1, 3), (3, 1), (0, 4), (4, 0), (50,), (1,), (0,)]
    arrays = [rng.normal(size=s).astype(dtype) * 3 for s in shapes]
    inputs = [like(a) for a in arrays]
    wanted: list[Array] = []
    outputs: list[Tensor] = []
    for x, a in zip(inputs, arrays):
        for axis in range(a.ndim):
            outputs += [K.cumsum(x, axis), K.cumprod(x + 1, axis)]
            wide = "float32" if dtype == "float16" else dtype
            one = (a + np.ones((), dtype)).astype(dtype)
            with np.errstate(over="ignore"):
                wanted += [np.cumsum(a, axis, wide).astype(dtype), np.cumprod(one, axis, wide).astype(dtype)]
    for result, expected in zip(native(inputs, outputs, arrays, target), wanted):
        np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize("exclusive", [False, True])
@pytest.mark.parametrize("backward", [False, True])
def test_running_sums_of_unknown_length_ahead_of_time(exclusive: bool, backward: bool, tmp_path: Path) -> None:
    from graphkb.ops import reduce

    x = K.placeholder((None, None), name="x")
    outputs = [Tensor(reduce.cumsum(x.node, axis, exclusive, backward)) for axis in (0, 1)]
    net = compiled(K.function([x], outputs), tmp_path)
    for dims in [(5, 40), (1, 3), (3, 1), (0, 3), (3, 0)]:
        a = values(dims, "float32")
        for axis, result in enumerate(net([a])):
            turned = np.flip(a, axis) if backward else a
            sums = np.cumsum(turned, axis) - (turned if exclusive else 0)
            np.testing.assert_array_equal(result, np.flip(sums, axis) if backward else sums)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize(("exclusive", "backward"), [(False, False), (True, True)])
@pytest.mark.parametrize("dims", [(9, 40), (5, 3, 1300), (1537,), (6, 1), (4, 0)])
def test_running_sums_of_what_is_computed_ahead(
    dims: tuple[int, ...], exclusive: bool, backward: bool, dtype: str
) -> None:
    from graphkb.ops import reduce

    a = values(dims, dtype)
    x = K.placeholder(dims, dtype=dtype)
    costly = K.tanh(x) * K.exp(x)
    (taken,) = native([x], [costly], [a], "host")
    turned = np.flip(taken, -1) if backward else taken
    sums = np.cumsum(turned, -1, "float32" if dtype == "float16" else dtype)
    if exclusive:
        sums = np.concatenate([np.zeros_like(sums[..., :1]), sums[..., :-1]], -1)
    wanted = (np.flip(sums, -1) if backward else sums).astype(dtype)
    output = Tensor(reduce.cumsum(costly.node, len(dims) - 1, exclusive, backward))
    np.testing.assert_array_equal(native([x], [output], [a], "host")[0], wanted)


# ---------------------------------------------------------------------------------------------- ahead of time
def compiled(function: Any, tmp_path: Path) -> Any:
    files = graphkb.compile(function, tmp_path / "net")
    assert files.library is not None
    return graphkb.load(files.library)


@pytest.mark.skipif(sys.platform == "win32", reason="needs a linker")
def test_embeddings_ahead_of_time(tmp_path: Path) -> None:
    table = K.variable(values((9, 20), "float32"))
    i = K.placeholder((None, None), dtype="int32", name="i")
    loss = K.sum(K.gather(table, i) * 2)
    update = table - K.gradients(loss, [table])[0]
    net = compiled(K.function([i], [K.gather(table, i), loss], updates=[(table, update)]), tmp_path)
    state = K.get_value(table)
    for dims in [(2, 3), (4, 1), (0, 3), (1, 1)]:
        picked = values(dims, "int32") % 9
        rows, total = net([picked])
        np.testing.assert_array_equal(rows, state[picked])
        np.testing.assert_allclose(total, 2 * state[picked].sum(), rtol=1e-6)
        np.subtract.at(state, picked, np.float32(2))
        (held,) = net.state.values()
        np.testing.assert_array_equal(held, state)
    with pytest.raises(IndexError, match="an index inside an input is out of range; nothing was updated"):
        net([np.array([[0, 9]], "int32")])
    np.testing.assert_array_equal(held, state)
    assert "BAD_INDEX_VALUE = 5" in (tmp_path / "net.h").read_text()


def test_gathers_from_tables_of_unknown_length_ahead_of_time(tmp_path: Path) -> None:
    x = K.placeholder((None, 3), name="x")
    i = K.placeholder((None,), dtype="int64", name="i")
    net = compiled(K.function([x, i], [K.gather(x, i)]), tmp_path)
    a = values((4, 3), "float32")
    np.testing.assert_array_equal(net([a, np.array([3, 0])])[0], a[[3, 0]])
    for bad in (4, -1):
        with pytest.raises(IndexError):
            net([a, np.array([0, bad])])
    np.testing.assert_array_equal(net([values((90, 3), "float32"), np.array([89])])[0], values((90, 3), "float32")[89:])


def test_the_loops_say_what_they_do() -> None:
    x, i = K.placeholder((8, 64), name="x"), K.placeholder((3,), dtype="int32", name="i")
    outputs = [K.gather(x, i), K.transpose(x), K.cumsum(x, 1), K.stack([x, x], -1)]
    text = graphkb.dump(K.function([x, i], outputs), stage="loops")
    assert "out[64*i0 + i1] = in2[64*int64(in0[i0]) + i1]" in text
    assert "for i0 < 64, i1 < 8 transposed " in text
    assert "acc1 <- in0[256*i0 + i1 + 64]" in text
    assert "out[2*i0] = in0[i0]\n    out[2*i0 + 1] = in0[i0]" in text
