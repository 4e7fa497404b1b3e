"""Reductions over any set of axes, and the cumulative sum and product."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from graphkb.ir.dims import Dim, Shape, product, show_shape
from graphkb.ir.errors import DTypeError, ShapeError
from graphkb.ir.leaves import Array
from graphkb.ir.node import Node, make
from graphkb.ir.op import Op, define, not_differentiable
from graphkb.ir.types import BOOL, DTYPES, NUMBERS, TensorType
from graphkb.ops import leaf, shape
from graphkb.ops.elementwise import accumulate, cast, const_like, equal, select, square

Axes = tuple[int, ...]


def reduced_shape(dims: Shape, axes: Axes, keepdims: bool) -> Shape:
    """The shape after reducing over non-negative axes."""
    if keepdims:
        return tuple([1 if i in axes else d for i, d in enumerate(dims)])
    return tuple([d for i, d in enumerate(dims) if i not in axes])


def _reduction(
    name: str, allowed: tuple[str, ...], needs_elements: bool = False
) -> Callable[[TensorType, Axes, bool], TensorType]:
    def infer(x: TensorType, axes: Axes, keepdims: bool) -> TensorType:
        if x.dtype not in allowed:
            raise DTypeError(f"{name}: {x.dtype} is not allowed, expected one of {', '.join(allowed)}")
        if any(not 0 <= a < x.ndim for a in axes) or len(set(axes)) != len(axes):
            raise ShapeError(f"{name}: axes {axes} do not fit the rank {x.ndim}")
        if needs_elements and any(x.shape[a] == 0 for a in axes):
            raise ShapeError(f"{name}: there is no {name} of zero elements: axes {axes} of {show_shape(x.shape)}")
        return TensorType(x.dtype, reduced_shape(x.shape, axes, keepdims))

    return infer


def _spread(g: Node, x: Node, axes: Axes) -> Node:
    """A reduced tensor with its axes put back and repeated to the operand's shape."""
    return shape.broadcast_to(shape.reshape(g, reduced_shape(x.shape, axes, True)), x.shape)


def _sum_vjp(g: Node, y: Node, x: Node, axes: Axes, keepdims: bool) -> tuple[Node]:
    return (_spread(g, x, axes),)


def _extremum_vjp(g: Node, y: Node, x: Node, axes: Axes, keepdims: bool) -> tuple[Node]:
    """Equal extrema share the gradient equally."""
    hit = equal(x, _spread(y, x, axes))
    count = reduce_sum(cast(hit, x.dtype), axes, True)
    return (select(hit, shape.broadcast_to(shape.reshape(g, count.shape) / count, x.shape), const_like(0, x)),)


def _prod_vjp(g: Node, y: Node, x: Node, axes: Axes, keepdims: bool) -> tuple[Node]:
    """The product of all other elements, from both sides: right where elements are 0, too."""
    if not axes:
        return (g,)
    rest = tuple(a for a in range(x.ndim) if a not in axes)
    order = (*rest, *axes)
    moved = shape.transpose(x, order)
    count: Dim = product([x.shape[a] for a in axes])
    flat = shape.reshape(moved, (*[x.shape[a] for a in rest], count))
    last = len(rest)
    others = cumprod(flat, last, True, False) * cumprod(flat, last, True, True)
    inverse = tuple(order.index(a) for a in range(x.ndim))
    return (_spread(g, x, axes) * shape.transpose(shape.reshape(others, moved.shape), inverse),)


def _numpy_sum(x: Array, axes: Axes, keepdims: bool) -> Array:
    return accumulate(np.sum, x, axis=axes, keepdims=keepdims)


def _numpy_prod(x: Array, axes: Axes, keepdims: bool) -> Array:
    return accumulate(np.prod, x, axis=axes, keepdims=keepdims)


def _reduce_op(name: str, numpy: Callable[..., Any], vjp: Any, allowed: tuple[str, ...], nonempty: bool = False) -> Op:
    return define(
        name,
        kind="reduce",
        params=("axes", "keepdims"),
        infer=_reduction(name, allowed, nonempty),
        numpy=numpy,
        vjp=vjp,
    )


SUM = _reduce_op("sum", _numpy_sum, _sum_vjp, NUMBERS)
PROD = _reduce_op("prod", _numpy_prod, _prod_vjp, NUMBERS)
MAX = _reduce_op(
    "max",
    lambda x, axes, keepdims: np.asarray(x.max(axis=axes, keepdims=keepdims)),
    _extremum_vjp,
    DTYPES,
    True,
)
MIN = _reduce_op(
    "min",
    lambda x, axes, keepdims: np.asarray(x.min(axis=axes, keepdims=keepdims)),
    _extremum_vjp,
    DTYPES,
    True,
)
ANY = _reduce_op(
    "any", lambda x, axes, keepdims: np.asarray(x.any(axis=axes, keepdims=keepdims)), not_differentiable, BOOL
)
ALL = _reduce_op(
    "all", lambda x, axes, keepdims: np.asarray(x.all(axis=axes, keepdims=keepdims)), not_differentiable, BOOL
)


def _mean(x: Node, axes: Axes) -> Node:
    return reduce_sum(x, axes, True) / count(x, axes, x.dtype)


def _variance_vjp(g: Node, y: Node, x: Node, axes: Axes, keepdims: bool) -> tuple[Node]:
    """d variance = 2 (x - mean) / n: what the mean would add is zero, since distances from it add up to zero."""
    slope = shape.reshape(g, reduced_shape(x.shape, axes, True)) * (const_like(2, x) / count(x, axes, x.dtype))
    return ((x - _mean(x, axes)) * slope,)


def _numpy_variance(x: Array, axes: Axes, keepdims: bool) -> Array:
    n = x.dtype.type(math.prod([x.shape[a] for a in axes]))
    distance = x - accumulate(np.sum, x, axis=axes, keepdims=True) / n
    return np.asarray(accumulate(np.sum, distance * distance, axis=axes, keepdims=keepdims) / n)


VARIANCE = _reduce_op("variance", _numpy_variance, _variance_vjp, ("float32", "float64"))


def mean_squared_distance(x: Node, axes: Axes, keepdims: bool) -> Node:
    """The variance, spelled out."""
    return reduce_sum(square(x - _mean(x, axes)), axes, keepdims) / count(x, axes, x.dtype)


def _infer_arg(name: str) -> Callable[[TensorType, int], TensorType]:
    def infer(x: TensorType, axis: int) -> TensorType:
        if not 0 <= axis < x.ndim:
            raise ShapeError(f"{name}: axis {axis} does not fit the rank {x.ndim}")
        if x.shape[axis] == 0:
            raise ShapeError(f"{name}: there is no {name} of zero elements: axis {axis} of {show_shape(x.shape)}")
        return TensorType("int64", reduced_shape(x.shape, (axis,), False))

    return infer


ARGMAX = define(
    "argmax",
    kind="reduce",
    params=("axis",),
    infer=_infer_arg("argmax"),
    numpy=lambda x, axis: np.asarray(np.argmax(x, axis)),
    vjp=not_differentiable,
    doc="The position of the first largest element (of the first NaN, if there is one).",
)
ARGMIN = define(
    "argmin",
    kind="reduce",
    params=("axis",),
    infer=_infer_arg("argmin"),
    numpy=lambda x, axis: np.asarray(np.argmin(x, axis)),
    vjp=not_differentiable,
    doc="The position of the first smallest element (of the first NaN, if there is one).",
)


def _cumulative(ufunc: Any) -> Callable[..., Array]:
    def evaluate(x: Array, axis: int, exclusive: bool, reverse: bool) -> Array:
        y = np.flip(x, axis) if reverse else x
        out = accumulate(ufunc.accumulate, y, axis=axis)
        if exclusive and out.shape[axis]:
            shifted = np.empty_like(out)
            head = [slice(None)] * x.ndim
            tail, body = list(head), list(head)
            head[axis], tail[axis], body[axis] = slice(0, 1), slice(1, None), slice(0, -1)
            shifted[tuple(head)] = ufunc.identity
            shifted[tuple(tail)] = out[tuple(body)]
            out = shifted
        return np.flip(out, axis) if reverse else out

    return evaluate


def _infer_cumulative(x: TensorType, axis: int, exclusive: bool, reverse: bool) -> TensorType:
    if x.dtype not in NUMBERS:
        raise DTypeError(f"cumulative operations take numbers, not {x.dtype}")
    if not 0 <= axis < x.ndim:
        raise ShapeError(f"a cumulative operation over axis {axis} does not fit the rank {x.ndim}")
    return x


def _cumprod_vjp(g: Node, y: Node, x: Node, axis: int, exclusive: bool, reverse: bool) -> tuple[Node]:
    """The products before an element times a sum over those behind it; a loop, since nothing is divided by x.

    With p the products before element k and s[k] = g[k] + x[k+1] s[k+1] (of exclusive products
    s[k] = g[k+1] + x[k+1] s[k+1]), dx = p s: a polynomial, so that derivatives of every order are right where x is 0.
    """
    from graphkb.ops.control import loop

    order = (axis, *[a for a in range(x.ndim) if a != axis])
    moved, upstream = shape.transpose(x, order), shape.transpose(g, order)
    rest = moved.shape[1:]
    behind, now, element = [leaf.placeholder(rest, x.dtype, name) for name in ("behind", "g", "x")]
    total = behind if exclusive else now + behind
    carried = now + element * behind if exclusive else element * total
    start = shape.broadcast_to(const_like(0, x), rest)
    length = moved.shape[0]
    _, (sums,) = loop([behind, now, element], [carried], [total], [start], [upstream, moved], length, not reverse)
    back = tuple(order.index(a) for a in range(x.ndim))
    return (cumprod(x, axis, True, reverse) * shape.transpose(sums, back),)


CUMSUM = define(
    "cumsum",
    kind="move",
    params=("axis", "exclusive", "reverse"),
    infer=_infer_cumulative,
    numpy=_cumulative(np.add),
    vjp=lambda g, y, x, axis, exclusive, reverse: (cumsum(g, axis, exclusive, not reverse),),
    doc="Running sums along an axis; exclusive ones leave out the element itself.",
)
CUMPROD = define(
    "cumprod",
    kind="move",
    params=("axis", "exclusive", "reverse"),
    infer=_infer_cumulative,
    numpy=_cumulative(np.multiply),
    vjp=_cumprod_vjp,
    doc="Running products along an axis; exclusive ones leave out the element itself.",
)


# ---------------------------------------------------------------------------------------------- builders
def cumsum(x: Node, axis: int, exclusive: bool = False, reverse: bool = False) -> Node:
    """Running sums along a non-negative axis."""
    return make(CUMSUM, (x,), {"axis": axis, "exclusive": exclusive, "reverse": reverse})


def cumprod(x: Node, axis: int, exclusive: bool = False, reverse: bool = False) -> Node:
    """Running products along a non-negative axis."""
    return make(CUMPROD, (x,), {"axis": axis, "exclusive": exclusive, "reverse": reverse})


def reduce(op: Op, x: Node, axes: Axes, keepdims: bool = False) -> Node:
    """A reduction over non-negative axes; no axes give the operand back."""
    return make(op, (x,), {"axes": tuple(sorted(axes)), "keepdims": keepdims}) if axes else x


def reduce_sum(x: Node, axes: Axes, keepdims: bool = False) -> Node:
    """The sum over non-negative axes."""
    return reduce(SUM, x, axes, keepdims)


def count(x: Node, axes: Axes, dtype: str) -> Node:
    """The number of elements that a reduction over the axes sees, as a scalar."""
    return leaf.size(product([x.shape[a] for a in axes]), dtype)
