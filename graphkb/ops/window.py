"""Reductions over windows that slide along the axes: sum, maximum and the position of the maximum."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from math import prod

import numpy as np

from graphkb.ir.dims import Dim, Shape, show_shape
from graphkb.ir.errors import DTypeError, ShapeError
from graphkb.ir.leaves import Array
from graphkb.ir.node import Node, make
from graphkb.ir.op import Op, define, not_differentiable
from graphkb.ir.types import DTYPES, FLOATS, NUMBERS, TensorType
from graphkb.ops import leaf, shape
from graphkb.ops.elementwise import const_like, equal, select

Sizes = tuple[int, ...]
# From so many terms on, the gradient of a maximum goes axis by axis: the sum of the counts instead of their product.
_MOST_TERMS = 16


def window_count(what: str, size: Dim, reach: Dim, stride: int) -> Dim:
    """How many windows fit along an axis: (size - reach) // stride + 1.

    Args:
        what: the operation, for the error.
        size: of the axis.
        reach: from the first to the last element of a window, both counted.
        stride: from window to window.

    Raises:
        ShapeError: a known axis is too short for the count to make sense.
    """
    count = (size - reach) // stride + 1
    if isinstance(count, int) and count < 0:
        raise ShapeError(f"{what}: a window that reaches over {reach} elements does not fit into an axis of {size}")
    return count


def check_sizes(what: str, name: str, values: Sequence[int]) -> None:
    """ShapeError unless all values are positive integers."""
    if not all(isinstance(v, int) and v > 0 for v in values):
        raise ShapeError(f"{what}: {name} must be positive integers, not {tuple(values)}")


def _infer(name: str, dtypes: tuple[str, ...], dtype: str | None = None) -> Callable[..., TensorType]:
    def infer(x: TensorType, window: Sizes, strides: Sizes) -> TensorType:
        if x.dtype not in dtypes:
            raise DTypeError(f"{name}: {x.dtype} is not allowed, expected one of {', '.join(dtypes)}")
        if not len(window) == len(strides) == x.ndim:
            raise ShapeError(f"{name}: windows {window} and strides {strides} for the shape {show_shape(x.shape)}")
        check_sizes(name, "windows", window)
        check_sizes(name, "strides", strides)
        counts = [window_count(name, n, w, s) for n, w, s in zip(x.shape, window, strides)]
        return TensorType(dtype or x.dtype, tuple(counts))

    return infer


def _cells(x: Array, window: Sizes, strides: Sizes) -> Iterator[Array]:
    """For each cell of the windows, in row-major order, its element of every window."""
    counts = [max((n - w) // s + 1, 0) for n, w, s in zip(x.shape, window, strides)]
    for cell in itertools.product(*map(range, window)):
        yield x[tuple(slice(c, c + (n - 1) * s + 1 if n else c, s) for c, n, s in zip(cell, counts, strides))]


def _by_axis(combine: np.ufunc, x: Array, window: Sizes, strides: Sizes) -> Array:
    """A reduction that may run over one axis after the other."""
    for axis, (length, stride) in enumerate(zip(window, strides)):
        if length == stride == 1:
            continue
        one = (1,) * axis, (1,) * (x.ndim - axis - 1)
        cells = _cells(x, (*one[0], length, *one[1]), (*one[0], stride, *one[1]))
        total = next(cells).copy()
        for cell in cells:
            combine(total, cell, out=total)
        x = total
    return x


def _numpy_sum(x: Array, window: Sizes, strides: Sizes) -> Array:
    wide = x.astype(np.float32) if x.dtype == np.float16 else x
    return _by_axis(np.add, wide, window, strides).astype(x.dtype, copy=False)


def _numpy_argmax(x: Array, window: Sizes, strides: Sizes) -> Array:
    cells = _cells(x, window, strides)
    best = next(cells).copy()
    where = np.zeros(best.shape, np.int32)
    for position, cell in enumerate(cells, 1):
        better = (cell > best) | ((cell != cell) & (best == best))
        best[better], where[better] = cell[better], position
    return where


def _sum_vjp(g: Node, y: Node, x: Node, window: Sizes, strides: Sizes) -> tuple[Node]:
    """Each element belongs to the windows that end in it or after it: a sum over windows of the spread gradient."""
    before = tuple([w - 1 for w in window])
    spread = shape.pad(g, before, strides, tuple([n + w - 1 for n, w in zip(x.shape, window)]))
    return (window_sum(spread, window, (1,) * x.ndim),)


def _max_vjp(g: Node, y: Node, x: Node, window: Sizes, strides: Sizes) -> tuple[Node]:
    """The gradient goes to the first maximum of each window."""
    # Where there is one window, its stride does not matter; as long as the window it makes the least terms.
    steps = tuple([max(w, s) if n == 1 else s for n, w, s in zip(y.shape, window, strides)])
    overlaps = [-(-w // s) for w, s in zip(window, steps)]
    wide = [axis for axis, w in enumerate(window) if w > 1]
    if prod(overlaps) <= _MOST_TERMS or len(wide) == 1:
        return (_to_first(g, x, window, steps),)
    # The first maximum in row-major order: the first among the rows' first maxima.
    last = wide[-1]
    row = tuple([w if axis == last else 1 for axis, w in enumerate(window)])
    row_strides = tuple([s if axis == last else 1 for axis, s in enumerate(strides)])
    rest = tuple([1 if axis == last else w for axis, w in enumerate(window)])
    rest_strides = tuple([1 if axis == last else s for axis, s in enumerate(strides)])
    rows = window_max(x, row, row_strides)
    (inner,) = _max_vjp(g, y, rows, rest, rest_strides)
    return _max_vjp(inner, rows, x, row, row_strides)


def _to_first(g: Node, x: Node, window: Sizes, strides: Sizes) -> Node:
    """Each window's gradient at its first maximum, added up.

    Along each axis element q * stride + r is cell r + j * stride of window q - j: one term for each j, in which q and
    r are axes of their own, so that all indices stay affine.
    """
    first = make(WINDOW_ARGMAX, (x,), {"window": window, "strides": strides})
    overlaps = [-(-w // s) for w, s in zip(window, strides)]
    rounds = [(n + s - 1) // s for n, s in zip(x.shape, strides)]
    before = tuple([j - 1 for j in overlaps])
    around = tuple([q + j - 1 for q, j in zip(rounds, overlaps)])
    ones = (1,) * x.ndim
    first, g = shape.pad(first, before, ones, around), shape.pad(g, before, ones, around)
    steps = [s for pair in zip(ones, strides) for s in pair]
    split: Shape = tuple([d for q in rounds for d in (q, 1)])
    cell = np.arange(prod(window), dtype=np.int32).reshape(window)
    total: Node | None = None
    for shift in itertools.product(*map(range, overlaps)):
        starts = tuple([j - 1 - s for j, s in zip(overlaps, shift)])
        at, grad = (shape.reshape(shape.slice_(n, starts, tuple(rounds)), split) for n in (first, g))
        here = np.full(strides, -1, np.int32)
        part = cell[tuple(slice(s * step, (s + 1) * step) for s, step in zip(shift, strides))]
        here[tuple(map(slice, part.shape))] = part
        term = select(equal(at, leaf.constant(here.reshape(steps))), grad, const_like(0, grad))
        total = term if total is None else total + term
    assert total is not None
    whole = shape.reshape(total, tuple([q * s for q, s in zip(rounds, strides)]))
    return shape.slice_(whole, (0,) * x.ndim, x.shape)


def _window_op(name: str, infer: Callable[..., TensorType], **facets: object) -> Op:
    return define(name, kind="reduce", params=("window", "strides"), infer=infer, **facets)


WINDOW_SUM = _window_op(
    "window_sum",
    _infer("window_sum", NUMBERS),
    numpy=_numpy_sum,
    vjp=_sum_vjp,
    doc="The sum over each window; windows have a length and a stride along every axis.",
)
WINDOW_MAX = _window_op(
    "window_max",
    _infer("window_max", DTYPES),
    numpy=lambda x, window, strides: _by_axis(np.maximum, x, window, strides),
    vjp=_max_vjp,
    doc="The maximum over each window, NaN where one is in it; the gradient goes to the first maximum.",
)
WINDOW_ARGMAX = _window_op(
    "window_argmax",
    _infer("window_argmax", DTYPES, "int32"),
    numpy=_numpy_argmax,
    vjp=not_differentiable,
    doc="The position of the first maximum (of the first NaN, if there is one) in each window, in row-major order.",
)


def window_sum(x: Node, window: Sizes, strides: Sizes) -> Node:
    """The sums over windows of `x`."""
    return make(WINDOW_SUM, (x,), {"window": window, "strides": strides})


def window_max(x: Node, window: Sizes, strides: Sizes) -> Node:
    """The maxima over windows of `x`."""
    return make(WINDOW_MAX, (x,), {"window": window, "strides": strides})


# ---------------------------------------------------------------------------------------------- padding
def lowest(dtype: str) -> float | int | bool:
    """The number of a dtype that no other is below."""
    if dtype == "bool":
        return False
    return -np.inf if dtype in FLOATS else int(np.iinfo(dtype).min)


def _numpy_pad_value(x: Array, starts: Sizes, shape: Sizes, value: float) -> Array:
    out = np.full(shape, value, x.dtype)
    out[tuple(slice(s, s + n) for s, n in zip(starts, x.shape))] = x
    return out


def _infer_pad_value(x: TensorType, starts: Shape, shape: Shape, value: float) -> TensorType:
    if not len(starts) == len(shape) == x.ndim:
        raise ShapeError(f"pad_value: {len(shape)} axes for the operand's {x.ndim}, {show_shape(x.shape)}")
    for n, start, total in zip(x.shape, starts, shape):
        if isinstance(n, int) and isinstance(start, int) and isinstance(total, int) and not 0 <= start <= total - n:
            raise ShapeError(f"pad_value: {show_shape(x.shape)} does not fit into {show_shape(shape)}")
    return TensorType(x.dtype, shape)


PAD_VALUE = define(
    "pad_value",
    kind="move",
    params=("starts", "shape", "value"),
    infer=_infer_pad_value,
    numpy=_numpy_pad_value,
    vjp=lambda g, y, x, starts, shape, value: (_inside(g, starts, x.shape),),
    doc="A number everywhere, with the operand placed among it.",
)


def _inside(g: Node, starts: Shape, sizes: Shape) -> Node:
    return shape.slice_(g, starts, sizes)


def pad_lowest(x: Node, starts: Shape, dims: Shape) -> Node:
    """`x` placed among the lowest number of its dtype, which no maximum takes."""
    if dims == x.shape:
        return x
    return make(PAD_VALUE, (x,), {"starts": starts, "shape": dims, "value": lowest(x.dtype)})
