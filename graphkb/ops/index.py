"""Indexing by computed positions: gather, its opposite scatter_add, and one_hot."""

from __future__ import annotations

import numpy as np

from graphkb.ir.dims import Dim, Shape, show_shape
from graphkb.ir.errors import DTypeError, PositionError, ShapeError
from graphkb.ir.leaves import Array
from graphkb.ir.node import Node, make
from graphkb.ir.op import define
from graphkb.ir.types import INTEGERS, TensorType
from graphkb.ops import leaf, shape
from graphkb.ops.elementwise import cast, equal


def _infer_gather(x: TensorType, indices: TensorType, axis: int) -> TensorType:
    if indices.dtype not in INTEGERS:
        raise DTypeError(f"gather: the indices must be integers, not {indices.dtype}")
    if not 0 <= axis < x.ndim:
        raise ShapeError(f"gather: axis {axis} does not fit the rank {x.ndim}")
    return TensorType(x.dtype, (*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]))


def _check_indices(name: str, indices: Array, n: int) -> None:
    if indices.size and (int(indices.min()) < 0 or int(indices.max()) >= n):
        bad = indices[(indices < 0) | (indices >= n)].flat[0]
        raise PositionError(f"{name}: index {int(bad)} is out of range for an axis of {n}")


def _numpy_gather(x: Array, indices: Array, axis: int) -> Array:
    _check_indices("gather", indices, x.shape[axis])
    return np.take(x, indices.astype(np.int64, copy=False), axis=axis)


GATHER = define(
    "gather",
    kind="index",
    params=("axis",),
    infer=_infer_gather,
    numpy=_numpy_gather,
    vjp=lambda g, y, x, i, axis: (scatter_add(g, i, axis, x.shape), None),
    doc="Slices of the first operand along an axis at the positions in the second; PositionError out of range.",
)


def _infer_scatter_add(updates: TensorType, indices: TensorType, axis: int, shape: Shape) -> TensorType:
    if indices.dtype not in INTEGERS:
        raise DTypeError(f"scatter_add: the indices must be integers, not {indices.dtype}")
    if not 0 <= axis < len(shape):
        raise ShapeError(f"scatter_add: axis {axis} does not fit the rank {len(shape)}")
    expected = (*shape[:axis], *indices.shape, *shape[axis + 1 :])
    if updates.ndim != len(expected) or any(
        isinstance(a, int) and isinstance(b, int) and a != b for a, b in zip(updates.shape, expected)
    ):
        raise ShapeError(f"scatter_add: updates of shape {show_shape(updates.shape)}, expected {show_shape(expected)}")
    return TensorType(updates.dtype, shape)


def _numpy_scatter_add(updates: Array, indices: Array, axis: int, shape: tuple[int, ...]) -> Array:
    _check_indices("scatter_add", indices, shape[axis])
    wide = np.dtype(np.float32) if updates.dtype == np.float16 else updates.dtype
    out = np.zeros((shape[axis], *shape[:axis], *shape[axis + 1 :]), wide)
    moved = np.moveaxis(updates, range(axis, axis + indices.ndim), range(indices.ndim))
    np.add.at(out, indices.astype(np.int64, copy=False), moved)
    return np.moveaxis(out.astype(updates.dtype, copy=False), 0, axis)


SCATTER_ADD = define(
    "scatter_add",
    kind="index",
    params=("axis", "shape"),
    infer=_infer_scatter_add,
    numpy=_numpy_scatter_add,
    vjp=lambda g, y, u, i, axis, shape: (gather(g, i, axis), None),
    doc="Zeros of a shape, with slices of the first operand added at the positions that the second holds.",
)


GUARD = define(
    "guard",
    kind="view",
    infer=lambda indices, bad: indices,
    numpy=lambda indices, bad: indices,
    vjp=lambda g, y, indices, bad: (None, None),
    doc="Indices of which the second operand tells whether one is out of range; kernels run only where it is False.",
)


def guard(indices: Node, bad: Node) -> Node:
    """`indices`, not to be used where the bool scalar `bad` holds."""
    return make(GUARD, (indices, bad))


def gather(x: Node, indices: Node, axis: int = 0) -> Node:
    """The slices of `x` at `indices` along a non-negative axis."""
    return make(GATHER, (x, indices), {"axis": axis})


def scatter_add(updates: Node, indices: Node, axis: int, dims: Shape) -> Node:
    """The opposite of gather: slices added up at their positions in zeros of shape `dims`."""
    return make(SCATTER_ADD, (updates, indices), {"axis": axis, "shape": dims})


def one_hot(indices: Node, classes: Dim, dtype: str) -> Node:
    """1 where the last, new axis counts to the index, else 0; an index out of range gives zeros."""
    if indices.dtype in ("int8", "uint8", "int16", "uint16"):
        indices = cast(indices, "int32")  # so that all classes have a number
    row = leaf.iota(classes, indices.dtype)
    return cast(equal(shape.expand_dims(indices, indices.ndim), row), dtype)
