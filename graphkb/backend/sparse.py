"""Sparse tensors: matrices that are kept as their values with rows and columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from graphkb.backend.promotion import promote
from graphkb.backend.tensors import Tensor
from graphkb.ir import dims
from graphkb.ir.dims import Dim, Shape, show_shape
from graphkb.ir.errors import InputError, ShapeError
from graphkb.ir.leaves import Array
from graphkb.ir.node import Node
from graphkb.ir.types import NUMPY_DTYPE
from graphkb.ops import elementwise, leaf, shape
from graphkb.ops.elementwise import cast, select
from graphkb.ops.sparse import sparse_dense, sparse_dot

# Numbers of entries are rounded up, so that batches of one data set share a compiled function.
_LEAST_ENTRIES = 64


class SparseTensor(Tensor):
    """A matrix of which only some entries are kept. Functions that do not know of it see the dense matrix.

    Attributes:
        values: the entries, a vector of unknown length where it is a placeholder.
        rows: their rows; -1 for an entry that stands for nothing.
        columns: their columns.
        node: the dense matrix, which is computed only where it is asked for.
    """

    values: Node
    rows: Node
    columns: Node

    def __init__(self, values: Node, rows: Node, columns: Node, shape: Shape, name: str | None = None) -> None:
        super().__init__(sparse_dense(values, rows, columns, shape), name)
        self.values = values
        self.rows = rows
        self.columns = columns
        self._extent: Node | None = None

    @property
    def dense_shape(self) -> Shape:
        """The sizes of the matrix."""
        return self.node.shape

    def with_values(self, values: Node) -> SparseTensor:
        """A matrix with other values in the same places."""
        return SparseTensor(values, self.rows, self.columns, self.dense_shape)

    @property
    def is_input(self) -> bool:
        """Whether the matrix is handed in."""
        return self._extent is not None

    @property
    def input_nodes(self) -> tuple[Node, ...]:
        """The placeholders that take what `entries` gives."""
        if self._extent is None:
            raise TypeError(f"function: expected placeholders as sparse inputs, not {self!r}")
        return self.values, self.rows, self.columns, self._extent

    def entries(self, value: Any) -> list[Array]:
        """A SciPy matrix or an array as what `input_nodes` take.

        Raises:
            InputError: the value is no matrix, or of another shape.
        """
        label = self.name.removesuffix(":0")
        values, rows, columns, found = matrix_entries(value, label)
        wanted = self.dense_shape
        if any(isinstance(n, int) and n != m for n, m in zip(wanted, found)):
            raise InputError(f"{label}: expected shape {show_shape(wanted)}, got {found}")
        missing = _rounded(values.size) - values.size
        if missing:
            values = np.concatenate([values, np.zeros(missing, values.dtype)])
            rows, columns = (np.concatenate([a, np.full(missing, -1)]) for a in (rows, columns))
        # An array without elements costs nothing and tells the sizes.
        return [values, rows, columns, np.empty((*found, 0), np.bool_)]


def _rounded(count: int) -> int:
    return max(_LEAST_ENTRIES, 1 << (count - 1).bit_length()) if count else 0


def matrix_entries(value: Any, label: str) -> tuple[Array, Array, Array, tuple[int, int]]:
    """The values, rows, columns and the shape of a SciPy matrix, or of what is not 0 in an array."""
    if hasattr(value, "tocoo"):
        matrix = value.tocoo()
        if len(matrix.shape) == 2:
            rows, columns = (np.asarray(a, np.int64) for a in (matrix.row, matrix.col))
            return np.asarray(matrix.data), rows, columns, (int(matrix.shape[0]), int(matrix.shape[1]))
        found = matrix.shape
    else:
        array = np.asarray(value)
        if array.ndim == 2 and array.dtype.kind in "biuf":
            at = np.nonzero(array)
            return array[at], at[0].astype(np.int64), at[1].astype(np.int64), (array.shape[0], array.shape[1])
        found = array.shape
    raise InputError(f"{label}: expected a sparse matrix, or an array of rank 2, got {type(value).__name__} of {found}")


# ---------------------------------------------------------------------------------------------- making
def sparse_placeholder(sizes: Shape, dtype: str, name: str) -> SparseTensor:
    """A sparse matrix that is handed in at every call."""
    if len(sizes) != 2:
        raise ValueError(f"placeholder: expected two sizes of a sparse tensor, not {show_shape(sizes)}")
    count = (dims.symbol(f"{name}_entries"),)
    values = leaf.placeholder(count, dtype, f"{name}_values")
    rows = leaf.placeholder(count, "int64", f"{name}_rows")
    columns = leaf.placeholder(count, "int64", f"{name}_columns")
    x = SparseTensor(values, rows, columns, sizes, name)
    x._extent = leaf.placeholder((*sizes, 0), "bool", f"{name}_shape")
    return x


def sparse_constant(value: Any, dtype: str, name: str) -> SparseTensor:
    """A SciPy matrix as a tensor."""
    values, rows, columns, found = matrix_entries(value, "variable")
    with np.errstate(over="ignore", invalid="ignore"):
        values = values.astype(NUMPY_DTYPE[dtype])
    return SparseTensor(leaf.constant(values), leaf.constant(rows), leaf.constant(columns), found, name)


def masked_matrix(x: Node, mask: Node) -> SparseTensor:
    """The elements of a dense matrix where a mask of its shape is true; both are read row by row."""
    height, width = x.shape
    count = (height * width,)
    rows = shape.broadcast_to(shape.expand_dims(leaf.iota(height, "int64"), 1), x.shape)
    columns = shape.broadcast_to(leaf.iota(width, "int64"), x.shape)
    rows = shape.reshape(select(mask, rows, -1), count)
    return SparseTensor(shape.reshape(x, count), rows, shape.reshape(columns, count), x.shape)


# ---------------------------------------------------------------------------------------------- operations
def dot(x: Tensor, y: Tensor) -> Tensor:
    """The product of two operands one of which is sparse; of two sparse ones the second becomes dense."""
    dtype = promote(x.dtype, y.dtype)
    if isinstance(x, SparseTensor):
        return Tensor(_times(x.values, x.rows, x.columns, x.dense_shape, y.node, max(y.ndim - 2, 0), dtype))
    assert isinstance(y, SparseTensor)
    # x . y = (y^T . x^T)^T
    height, width = y.dense_shape
    product = _times(y.values, y.columns, y.rows, (width, height), x.node, x.ndim - 1, dtype)
    return Tensor(shape.transpose(product, (*range(1, x.ndim), 0)))


def _times(values: Node, rows: Node, columns: Node, sizes: Shape, dense: Node, axis: int, dtype: str) -> Node:
    """A sparse matrix times a dense operand, summed over an axis of that; its other axes follow the matrix's first."""
    inner = dense.shape[axis]
    if isinstance(inner, int) and isinstance(sizes[1], int) and inner != sizes[1]:
        raise ShapeError(f"dot: shapes {show_shape(sizes)} and {show_shape(dense.shape)} do not fit")
    rest = tuple(n for a, n in enumerate(dense.shape) if a != axis)
    first = shape.transpose(cast(dense, dtype), (axis, *[a for a in range(dense.ndim) if a != axis]))
    flat = shape.reshape(first, (sizes[1], dims.product(rest)))
    return shape.reshape(sparse_dot(cast(values, dtype), rows, columns, flat, sizes[0]), (sizes[0], *rest))


def concatenate(tensors: Sequence[SparseTensor], axis: int) -> SparseTensor:
    """Sparse matrices one after the other, without a look at what they leave out."""
    dtype = tensors[0].dtype
    for x in tensors[1:]:
        dtype = promote(dtype, x.dtype)
    other = 1 - axis
    sizes = [x.dense_shape for x in tensors]
    known = {n[other] for n in sizes if isinstance(n[other], int)}
    if len(known) > 1:
        raise ShapeError(f"concatenate: shapes {' and '.join(map(show_shape, sizes))} differ beside axis {axis}")
    moved: list[tuple[Node, Node]] = []
    total: Dim = 0
    for x in tensors:
        places = [x.rows, x.columns]
        offset = leaf.size(total, "int64")
        places[axis] = select(elementwise.less(x.rows, 0), places[axis], places[axis] + offset)
        moved.append((places[0], places[1]))
        total = total + x.dense_shape[axis]
    whole: list[Dim] = [total, total]
    whole[other] = known.pop() if known else sizes[0][other]
    values = shape.concatenate([cast(x.values, dtype) for x in tensors], 0)
    rows, columns = (shape.concatenate(list(part), 0) for part in zip(*moved))
    return SparseTensor(values, rows, columns, tuple(whole))
