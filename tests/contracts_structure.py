"""The contracts of the other ops: leaves, reductions, running sums, views, moves, indexing and the dot product."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from contracts import Array, Case, Contract, Rng, sample

from graphkb.ir.leaves import Constant, VariableCell
from graphkb.ir.types import BOOL, DTYPES, NUMBERS

Axes = tuple[int, ...]
# Sums are held against the sum of absolute values: rows that NumPy adds up one after the other drift by some units.
SUM_ULP = 16.0


# ---------------------------------------------------------------------------------------------- leaves
def _constants(dtype: str, rng: Rng) -> Iterator[Case]:
    for shape in ((), (0,), (3, 5), (2, 31)):
        yield Case((), {"value": Constant(sample(dtype, shape, rng))})


def _variables(dtype: str, rng: Rng) -> Iterator[Case]:
    for shape in ((), (0,), (3, 5)):
        yield Case((), {"cell": VariableCell(sample(dtype, shape, rng), "v")})


def _iotas(dtype: str, rng: Rng) -> Iterator[Case]:
    for size in (0, 1, 7, 127):
        yield Case((), {"size": size, "dtype": dtype})


def _sizes(dtype: str, rng: Rng) -> Iterator[Case]:
    for dim in (0, 1, 7, 127):
        yield Case((), {"dim": dim, "dtype": dtype})


LEAVES = (
    Contract("constant", _constants, lambda value: value.array, DTYPES),
    Contract("variable", _variables, lambda cell: cell.array, DTYPES),
    Contract("iota", _iotas, lambda size, dtype: np.asarray(list(range(size)), np.longdouble), NUMBERS),
    Contract("size", _sizes, lambda dim, dtype: np.longdouble(dim), NUMBERS),
)


# ---------------------------------------------------------------------------------------------- reductions
def _subsets(ndim: int) -> Iterator[Axes]:
    for count in range(1, ndim + 1):
        yield from itertools.combinations(range(ndim), count)


def _reductions(low: float, high: float, empty: bool) -> Callable[[str, Rng], Iterator[Case]]:
    def cases(dtype: str, rng: Rng) -> Iterator[Case]:
        shapes: tuple[tuple[int, ...], ...] = ((1,), (7,), (1031,), (3, 5), (1, 4), (2, 3, 5), (0, 3))
        for shape in shapes + (((0,), (2, 0, 3)) if empty else ()):
            for axes in _subsets(len(shape)):
                if not empty and any(shape[a] == 0 for a in axes):
                    continue
                for keepdims in (False, True):
                    yield Case((sample(dtype, shape, rng, low, high),), {"axes": axes, "keepdims": keepdims})
        yield Case((sample(dtype, (6, 5), rng, low, high).T[::-1, ::2],), {"axes": (0,), "keepdims": False})

    return cases


def _reduce(function: Callable[..., Any]) -> Callable[..., Array]:
    return lambda x, axes, keepdims: np.asarray(function(x, axis=axes, keepdims=keepdims))


def _absolute_sum(x: Array, axes: Axes, keepdims: bool) -> Array:
    return np.asarray(np.sum(np.abs(x), axis=axes, keepdims=keepdims))


def _squares(x: Array, axes: Axes, keepdims: bool) -> Array:
    return np.asarray(np.sum(x * x, axis=axes, keepdims=keepdims))


def _first(better: Callable[[Any, Any], bool]) -> Callable[..., Array]:
    """The first best position along an axis, NaN being better than all else."""

    def search(x: Array, axis: int) -> Array:
        rows = np.moveaxis(x, axis, -1)
        out = np.zeros(rows.shape[:-1], object)
        for index in np.ndindex(out.shape):
            best = 0
            for i, value in enumerate(rows[index]):
                held = rows[index][best]
                if held == held and (value != value or better(value, held)):
                    best = i
            out[index] = best
        return out

    return search


def _positions(dtype: str, rng: Rng) -> Iterator[Case]:
    for shape in ((1,), (7,), (517,), (3, 5), (5, 3), (2, 3, 4), (0, 3)):
        for axis, n in enumerate(shape):
            if n:
                yield Case((sample(dtype, shape, rng),), {"axis": axis})
                yield Case((np.ones(shape, dtype),), {"axis": axis})
    if np.dtype(dtype).kind == "f":
        x = sample(dtype, (4, 6), rng)
        x[1, 2] = x[1, 4] = x[3, 0] = np.nan
        x[2] = -np.inf
        yield Case((x,), {"axis": 1})


REDUCTIONS = (
    Contract("sum", _reductions(-4, 4, True), _reduce(np.sum), NUMBERS, SUM_ULP, _absolute_sum, smooth=(0,)),
    Contract("prod", _reductions(0.9, 1.1, True), _reduce(np.prod), NUMBERS, 2000, smooth=(0,)),
    Contract("max", _reductions(-4, 4, False), _reduce(np.max), DTYPES, smooth=(0,)),
    Contract("min", _reductions(-4, 4, False), _reduce(np.min), DTYPES, smooth=(0,)),
    Contract(
        "variance", _reductions(-4, 4, False), _reduce(np.var), ("float32", "float64"), SUM_ULP, _squares, smooth=(0,)
    ),
    Contract("any", _reductions(0, 0, True), _reduce(np.any), BOOL),
    Contract("all", _reductions(0, 0, True), _reduce(np.all), BOOL),
    Contract("argmax", _positions, _first(lambda a, b: a > b), DTYPES),
    Contract("argmin", _positions, _first(lambda a, b: a < b), DTYPES),
)


# ---------------------------------------------------------------------------------------------- running sums
def _running(low: float, high: float) -> Callable[[str, Rng], Iterator[Case]]:
    def cases(dtype: str, rng: Rng) -> Iterator[Case]:
        for shape in ((0,), (1,), (7,), (3, 5), (2, 3, 4), (3, 0)):
            for axis in range(len(shape)):
                for exclusive, reverse in itertools.product((False, True), repeat=2):
                    attrs = {"axis": axis, "exclusive": exclusive, "reverse": reverse}
                    yield Case((sample(dtype, shape, rng, low, high),), attrs)

    return cases


def _run(reduction: Callable[..., Any], identity: int) -> Callable[..., Array]:
    def evaluate(x: Array, axis: int, exclusive: bool, reverse: bool) -> Array:
        rows = np.moveaxis(x, axis, -1)
        out = np.empty_like(rows)
        n = rows.shape[-1]
        for i in range(n):
            part = rows[..., i + exclusive :] if reverse else rows[..., : i + 1 - exclusive]
            out[..., i] = reduction(part, axis=-1) if part.shape[-1] else identity
        return np.moveaxis(out, -1, axis)

    return evaluate


RUNNING = (
    Contract(
        "cumsum",
        _running(-4, 4),
        _run(np.sum, 0),
        NUMBERS,
        SUM_ULP,
        lambda x, **attrs: _run(np.sum, 0)(np.abs(x), **attrs),
        smooth=(0,),
    ),
    Contract("cumprod", _running(0.5, 2), _run(np.prod, 1), NUMBERS, 8, smooth=(0,)),
)


# ---------------------------------------------------------------------------------------------- views and moves
def _reshapes(dtype: str, rng: Rng) -> Iterator[Case]:
    for old, new in (((), (1, 1)), ((6,), (2, 3)), ((2, 3, 4), (4, 6)), ((0, 3), (5, 0)), ((7, 1), (7,))):
        yield Case((sample(dtype, old, rng),), {"shape": new})
    yield Case((sample(dtype, (3, 4), rng).T,), {"shape": (2, 6)})


def _transposes(dtype: str, rng: Rng) -> Iterator[Case]:
    for axes in ((), (0,), (1, 0), (2, 0, 1), (1, 2, 0), (0, 2, 1), (3, 1, 0, 2)):
        yield Case((sample(dtype, (2, 3, 5, 4)[: len(axes)], rng),), {"axes": axes})
    yield Case((sample(dtype, (0, 3), rng),), {"axes": (1, 0)})


def _transpose(x: Array, axes: Axes) -> Array:
    out = np.empty([x.shape[a] for a in axes], x.dtype)
    for index in np.ndindex(out.shape):
        out[index] = x[tuple(index[axes.index(a)] for a in range(x.ndim))]
    return out


def _broadcasts(dtype: str, rng: Rng) -> Iterator[Case]:
    for old, new in (((), ()), ((), (2, 3)), ((1,), (0,)), ((3, 1), (2, 3, 5)), ((5,), (3, 5)), ((1, 1), (4, 1))):
        yield Case((sample(dtype, old, rng),), {"shape": new})


def _repeat(x: Array, shape: Axes) -> Array:
    out = np.empty(shape, x.dtype)
    out[...] = x
    return out


def _likes(dtype: str, rng: Rng) -> Iterator[Case]:
    for old, like in (((), (2, 3)), ((1,), (0,)), ((3, 1), (2, 3, 5)), ((5,), (3, 5)), ((3, 5), (5,))):
        yield Case((sample(dtype, old, rng), sample(dtype, like, rng)))


def _unlikes(dtype: str, rng: Rng) -> Iterator[Case]:
    for old, like in (((2, 3), ()), ((0,), (1,)), ((2, 3, 5), (3, 1)), ((3, 5), (5,)), ((3, 5), (1, 1)), ((7,), (7,))):
        yield Case((sample(dtype, old, rng), sample(dtype, like, rng)))


def _unbroadcast(g: Array, x: Array) -> Array:
    """Each element of `g` is added where broadcasting reads the element of `x` from."""
    source = np.broadcast_to(np.arange(x.size).reshape(x.shape), g.shape)
    out = np.zeros(x.size, g.dtype)
    np.add.at(out, source.ravel(), g.ravel())
    return out.reshape(x.shape)


# Along each axis: the operand's size, then start, size and step.
SLICES = (
    ((7, 0, 7, 1),),
    ((7, 6, 7, -1),),
    ((7, 1, 3, 2),),
    ((7, 6, 3, -3),),
    ((7, 3, 0, 1),),
    ((0, 0, 0, 1),),
    ((0, 0, 0, -1),),
    ((5, 4, 1, -7),),
    ((3, 2, 2, -1), (5, 0, 3, 2)),
    ((3, 1, 1, 1), (4, 3, 4, -1), (5, 1, 2, 3)),
    (),
)


def _slices(dtype: str, rng: Rng) -> Iterator[Case]:
    for rows in SLICES:
        attrs = {"starts": tuple(r[1] for r in rows), "sizes": tuple(r[2] for r in rows)}
        yield Case((sample(dtype, tuple(r[0] for r in rows), rng),), {**attrs, "steps": tuple(r[3] for r in rows)})


def _slice(x: Array, starts: Axes, sizes: Axes, steps: Axes) -> Array:
    out = np.empty(sizes, x.dtype)
    for index in np.ndindex(sizes):
        out[index] = x[tuple(s + i * step for s, i, step in zip(starts, index, steps))]
    return out


def _pads(dtype: str, rng: Rng) -> Iterator[Case]:
    for rows in SLICES:
        attrs = {"starts": tuple(r[1] for r in rows), "steps": tuple(r[3] for r in rows)}
        yield Case((sample(dtype, tuple(r[2] for r in rows), rng),), {**attrs, "shape": tuple(r[0] for r in rows)})


def _pad(x: Array, starts: Axes, steps: Axes, shape: Axes) -> Array:
    out = np.full(shape, False if x.dtype == bool else 0, x.dtype)
    for index in np.ndindex(x.shape):
        out[tuple(s + i * step for s, i, step in zip(starts, index, steps))] = x[index]
    return out


def _joins(dtype: str, rng: Rng) -> Iterator[Case]:
    for shapes, axis in (
        (((3,), (4,)), 0),
        (((0,), (4,), (1,)), 0),
        (((2, 3), (2, 5)), 1),
        (((2, 3), (1, 3), (4, 3)), 0),
        (((2, 3, 4), (2, 1, 4)), 1),
        (((0, 3), (0, 2)), 1),
    ):
        yield Case(tuple(sample(dtype, s, rng) for s in shapes), {"axis": axis})
    x = sample(dtype, (2, 3), rng)
    yield Case((x, x, x), {"axis": 1})


def _join(*arrays: Array, axis: int) -> Array:
    rows = [row for a in arrays for row in np.moveaxis(a, axis, 0)]
    return np.moveaxis(np.asarray(rows, arrays[0].dtype).reshape(len(rows), *np.delete(arrays[0].shape, axis)), 0, axis)


def _turns(dtype: str, rng: Rng) -> Iterator[Case]:
    """Two operands or more, some of them perhaps empty."""
    for dims, steps in (
        ((7,), (2,)),
        ((2,), (2,)),
        ((1, 3), (2, 1)),
        ((0, 3), (1, 2)),
        ((5, 4), (2, 2)),
        ((2, 5, 17), (1, 3, 1)),
        ((3, 4, 5, 2), (1, 2, 3, 1)),
    ):
        phases = itertools.product(*map(range, steps))
        parts = [tuple(len(range(r, n, s)) for r, n, s in zip(phase, dims, steps)) for phase in phases]
        yield Case(tuple(sample(dtype, part, rng) for part in parts), {"steps": steps, "shape": dims})


def _take_turns(*parts: Array, steps: Axes, shape: Axes) -> Array:
    out = np.zeros(shape, parts[0].dtype)
    for place in np.ndindex(shape):
        phase = np.ravel_multi_index([i % s for i, s in zip(place, steps)], steps)
        out[place] = parts[phase][tuple(i // s for i, s in zip(place, steps))]
    return out


VIEWS = (
    Contract(
        "reshape", _reshapes, lambda x, shape: np.asarray(list(x.flat), x.dtype).reshape(shape), DTYPES, 0, smooth=(0,)
    ),
    Contract("transpose", _transposes, _transpose, DTYPES, 0, smooth=(0,)),
    Contract("broadcast_to", _broadcasts, _repeat, DTYPES, 0, smooth=(0,)),
    Contract(
        "broadcast_like",
        _likes,
        lambda x, like: _repeat(x, np.broadcast_shapes(x.shape, like.shape)),
        DTYPES,
        0,
        smooth=(0,),
    ),
    Contract("slice", _slices, _slice, DTYPES, 0, smooth=(0,)),
    Contract("pad", _pads, _pad, DTYPES, 0, smooth=(0,)),
    Contract("concatenate", _joins, _join, DTYPES, 0, smooth=(0, 1, 2)),
    Contract("interleave", _turns, _take_turns, DTYPES, 0, smooth=tuple(range(6))),
    Contract(
        "unbroadcast", _unlikes, _unbroadcast, NUMBERS, SUM_ULP, lambda g, x: _unbroadcast(np.abs(g), x), smooth=(0,)
    ),
)


# ---------------------------------------------------------------------------------------------- indexing
GATHERS = (
    ((5,), (), 0),
    ((5,), (0,), 0),
    ((5, 3), (4,), 0),
    ((5, 3), (2, 3), 1),
    ((2, 4, 3), (7,), 1),
    ((2, 0), (3,), 0),
)
INDEX_DTYPES = ("int8", "int32", "int64", "uint16")


def _gathers(dtype: str, rng: Rng) -> Iterator[Case]:
    for number, (shape, positions, axis) in enumerate(GATHERS):
        indices = rng.integers(0, shape[axis], positions).astype(INDEX_DTYPES[number % 4])
        yield Case((sample(dtype, shape, rng), indices), {"axis": axis})


def _gather(x: Array, indices: Array, axis: int) -> Array:
    out = np.empty((*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]), x.dtype)
    for index in np.ndindex(out.shape):
        inner = index[axis : axis + indices.ndim]
        out[index] = x[(*index[:axis], int(indices[inner]), *index[axis + indices.ndim :])]
    return out


def _scatters(dtype: str, rng: Rng) -> Iterator[Case]:
    for number, (shape, positions, axis) in enumerate(GATHERS):
        indices = rng.integers(0, shape[axis], positions).astype(INDEX_DTYPES[number % 4])
        updates = sample(dtype, (*shape[:axis], *positions, *shape[axis + 1 :]), rng)
        yield Case((updates, indices), {"axis": axis, "shape": shape})


def _scatter(updates: Array, indices: Array, axis: int, shape: Axes) -> Array:
    out = np.zeros(shape, updates.dtype)
    for index in np.ndindex(updates.shape):
        inner = index[axis : axis + indices.ndim]
        out[(*index[:axis], int(indices[inner]), *index[axis + indices.ndim :])] += updates[index]
    return out


INDEXING = (
    Contract("gather", _gathers, _gather, DTYPES, 0, smooth=(0,)),
    Contract(
        "scatter_add",
        _scatters,
        _scatter,
        NUMBERS,
        SUM_ULP,
        lambda u, i, **attrs: _scatter(np.abs(u), i, **attrs),
        smooth=(0,),
    ),
)


# ---------------------------------------------------------------------------------------------- the dot product
def _dots(dtype: str, rng: Rng) -> Iterator[Case]:
    for x, y, batch_x, batch_y, contract_x, contract_y in (
        ((3, 5), (5, 4), (), (), (1,), (0,)),
        ((7,), (7,), (), (), (0,), (0,)),
        ((), (), (), (), (), ()),
        ((3,), (2,), (), (), (), ()),
        ((2, 3, 5), (2, 5, 4), (0,), (0,), (2,), (1,)),
        ((5, 2, 3), (3, 4, 2), (1,), (2,), (2,), (0,)),
        ((2, 3, 4), (4, 3, 5), (), (), (1, 2), (1, 0)),
        ((2, 3, 2), (3, 2, 2), (0, 1), (1, 0), (), ()),
        ((3, 0), (0, 4), (), (), (1,), (0,)),
        ((0, 5), (5, 4), (), (), (1,), (0,)),
        ((17, 33), (33, 65), (), (), (1,), (0,)),
        ((1, 67), (67, 1), (), (), (1,), (0,)),
    ):
        attrs = {"batch_x": batch_x, "batch_y": batch_y, "contract_x": contract_x, "contract_y": contract_y}
        yield Case((sample(dtype, x, rng), sample(dtype, y, rng)), attrs)


def _dot(x: Array, y: Array, batch_x: Axes, batch_y: Axes, contract_x: Axes, contract_y: Axes) -> Array:
    left = list(range(x.ndim))
    right = [x.ndim + i for i in range(y.ndim)]
    for a, b in (*zip(batch_x, batch_y), *zip(contract_x, contract_y)):
        right[b] = left[a]
    batch = [left[a] for a in batch_x]
    used = {*batch, *[left[a] for a in contract_x]}
    out = batch + [i for i in left if i not in used] + [i for i in right if i not in used]
    return np.asarray(np.einsum(x, left, y, right, out))


DOTS = (
    Contract(
        "dot",
        _dots,
        _dot,
        NUMBERS,
        SUM_ULP,
        lambda x, y, **attrs: _dot(np.abs(x), np.abs(y), **attrs),
        smooth=(0, 1),
    ),
)

STRUCTURE = (*LEAVES, *REDUCTIONS, *RUNNING, *VIEWS, *INDEXING, *DOTS)
