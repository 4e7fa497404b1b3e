"""Sparse matrices as values with their rows and columns: products, and the way to and from dense matrices.

An entry whose row or column is -1 stands for nothing. Entries of one place add up.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from graphkb.ir.dims import Dim, Shape, show_shape
from graphkb.ir.errors import DTypeError, PositionError, ShapeError
from graphkb.ir.leaves import Array
from graphkb.ir.node import Node, make
from graphkb.ir.op import define
from graphkb.ir.types import NUMBERS, TensorType


def _check(what: str, numbers: TensorType, rows: TensorType, columns: TensorType, *others: TensorType) -> None:
    if numbers.dtype not in NUMBERS or any(other.dtype != numbers.dtype for other in others):
        found = " and ".join(type.dtype for type in (numbers, *others))
        raise DTypeError(f"{what}: expected numbers of one dtype, not {found}")
    if rows.dtype != "int64" or columns.dtype != "int64":
        raise DTypeError(f"{what}: expected int64 rows and columns, not {rows.dtype} and {columns.dtype}")
    if rows.ndim != 1 or columns.ndim != 1:
        raise ShapeError(f"{what}: expected vectors of rows and columns")


def _present(what: str, rows: Array, columns: Array, height: int, width: int) -> Array:
    """Which entries stand for something; PositionError when one lies outside of the matrix."""
    present: Array = (rows >= 0) & (columns >= 0)
    if ((rows >= height) | (columns >= width))[present].any():
        raise PositionError(f"{what}: an entry lies outside of the matrix of shape {(height, width)}")
    return present


def _wide(x: Array) -> Array:
    return x.astype(np.float32) if x.dtype == np.float16 else x


# ---------------------------------------------------------------------------------------------- products
def _infer_dot(values: TensorType, rows: TensorType, columns: TensorType, dense: TensorType, height: Dim) -> TensorType:
    _check("sparse_dot", values, rows, columns, dense)
    if values.ndim != 1 or dense.ndim != 2:
        raise ShapeError(
            f"sparse_dot: expected values of rank 1 and a matrix, not {show_shape(values.shape)} and "
            f"{show_shape(dense.shape)}"
        )
    return TensorType(values.dtype, (height, dense.shape[1]))


def _numpy_dot(values: Array, rows: Array, columns: Array, dense: Array, height: int) -> Array:
    present = _present("sparse_dot", rows, columns, height, dense.shape[0])
    values, rows, columns, wide = _wide(values[present]), rows[present], columns[present], _wide(dense)
    matrix = _matrix(values, rows, columns, (height, dense.shape[0]))
    if matrix is not None:
        return np.asarray(matrix @ wide).astype(dense.dtype, copy=False)
    out = np.zeros((height, dense.shape[1]), wide.dtype)
    np.add.at(out, rows, values[:, None] * wide[columns])
    return out.astype(dense.dtype, copy=False)


def _matrix(values: Array, rows: Array, columns: Array, shape: tuple[int, int]) -> Any:
    """SciPy's matrix, whose product is quick; None where SciPy is not installed."""
    try:
        from scipy.sparse import csr_array
    except ImportError:
        return None
    return csr_array((values, (rows, columns)), shape=shape)


SPARSE_DOT = define(
    "sparse_dot",
    params=("height",),
    infer=_infer_dot,
    numpy=_numpy_dot,
    vjp=lambda g, y, v, r, c, x, height: (
        sparse_sample(g, r, c, x),
        None,
        None,
        sparse_dot(v, c, r, g, x.shape[0]),
    ),
    doc="The product of a sparse matrix of `height` rows (values, rows, columns) and a dense matrix.",
)


def _infer_sample(left: TensorType, rows: TensorType, columns: TensorType, right: TensorType) -> TensorType:
    _check("sparse_sample", left, rows, columns, right)
    if left.ndim != 2 or right.ndim != 2:
        raise ShapeError(
            f"sparse_sample: expected matrices, not {show_shape(left.shape)} and {show_shape(right.shape)}"
        )
    return TensorType(left.dtype, rows.shape)


def _numpy_sample(left: Array, rows: Array, columns: Array, right: Array) -> Array:
    present = _present("sparse_sample", rows, columns, left.shape[0], right.shape[0])
    out = np.zeros(rows.shape, left.dtype)
    out[present] = np.einsum("en,en->e", _wide(left)[rows[present]], _wide(right)[columns[present]])
    return out


SPARSE_SAMPLE = define(
    "sparse_sample",
    infer=_infer_sample,
    numpy=_numpy_sample,
    vjp=lambda g, y, a, r, c, b: (
        sparse_dot(g, r, c, b, a.shape[0]),
        None,
        None,
        sparse_dot(g, c, r, a, b.shape[0]),
    ),
    doc="The elements at rows and columns of the product of one matrix and the transpose of another.",
)


# ---------------------------------------------------------------------------------------------- dense matrices
def _infer_dense(values: TensorType, rows: TensorType, columns: TensorType, shape: Shape) -> TensorType:
    _check("sparse_dense", values, rows, columns)
    if values.ndim != 1 or len(shape) != 2:
        raise ShapeError(f"sparse_dense: expected values of rank 1, not {show_shape(values.shape)}")
    return TensorType(values.dtype, shape)


def _numpy_dense(values: Array, rows: Array, columns: Array, shape: tuple[int, int]) -> Array:
    present = _present("sparse_dense", rows, columns, *shape)
    out = np.zeros(shape, _wide(values).dtype)
    np.add.at(out, (rows[present], columns[present]), _wide(values[present]))
    return out.astype(values.dtype, copy=False)


SPARSE_DENSE = define(
    "sparse_dense",
    params=("shape",),
    infer=_infer_dense,
    numpy=_numpy_dense,
    vjp=lambda g, y, v, r, c, shape: (sparse_pick(g, r, c), None, None),
    doc="The dense matrix of values at rows and columns.",
)


def _infer_pick(x: TensorType, rows: TensorType, columns: TensorType) -> TensorType:
    _check("sparse_pick", x, rows, columns)
    if x.ndim != 2:
        raise ShapeError(f"sparse_pick: expected a matrix, not {show_shape(x.shape)}")
    return TensorType(x.dtype, rows.shape)


def _numpy_pick(x: Array, rows: Array, columns: Array) -> Array:
    present = _present("sparse_pick", rows, columns, *x.shape)
    out = np.zeros(rows.shape, x.dtype)
    out[present] = x[rows[present], columns[present]]
    return out


SPARSE_PICK = define(
    "sparse_pick",
    infer=_infer_pick,
    numpy=_numpy_pick,
    vjp=lambda g, y, x, r, c: (sparse_dense(g, r, c, x.shape), None, None),
    doc="The elements of a dense matrix at rows and columns.",
)


# ---------------------------------------------------------------------------------------------- building
def sparse_dot(values: Node, rows: Node, columns: Node, dense: Node, height: Dim) -> Node:
    """A sparse matrix of `height` rows times a dense matrix."""
    return make(SPARSE_DOT, (values, rows, columns, dense), {"height": height})


def sparse_sample(left: Node, rows: Node, columns: Node, right: Node) -> Node:
    """left . right^T at rows and columns."""
    return make(SPARSE_SAMPLE, (left, rows, columns, right))


def sparse_dense(values: Node, rows: Node, columns: Node, shape: Shape) -> Node:
    """The dense matrix of sparse entries."""
    return make(SPARSE_DENSE, (values, rows, columns), {"shape": shape})


def sparse_pick(x: Node, rows: Node, columns: Node) -> Node:
    """The elements of a dense matrix at rows and columns."""
    return make(SPARSE_PICK, (x, rows, columns))
