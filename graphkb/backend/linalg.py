"""Products of matrices and tensors, and one-hot encoding."""

from __future__ import annotations

from typing import Any

import numpy as np

from graphkb.backend import config, sparse
from graphkb.backend.promotion import as_node, items, pair
from graphkb.backend.sizes import to_dim
from graphkb.backend.sparse import SparseTensor
from graphkb.backend.tensors import Tensor
from graphkb.ir.dims import keras_shape, show_shape
from graphkb.ir.errors import DTypeError, ShapeError, shown
from graphkb.ir.types import INTEGERS, NUMPY_DTYPE
from graphkb.ops import index, linalg, shape
from graphkb.ops.elementwise import cast


def dot(x: Any, y: Any) -> Tensor:
    """The product of matrices; for other ranks the sum over the last axis of x and the last but one of y.

    Args:
        x: numbers of rank 1 or more; it may be sparse.
        y: numbers of rank 1 or more; a vector is summed over its only axis. It may be sparse; where both are, it is
            made dense.

    Returns:
        A tensor of shape `x.shape[:-1] + y.shape[:-2] + y.shape[-1:]`: (2, 3) with (4, 3, 5) gives (2, 4, 5).

    Raises:
        ShapeError: the sizes of the axes differ, or an operand is a scalar.

    >>> from graphkb import backend as K
    >>> K.dot(K.placeholder((None, 3)), K.placeholder((4, 3, 5))).shape
    (None, 4, 5)
    """
    a, b = pair(x, y)
    if not (a.ndim and b.ndim):
        raise ShapeError(
            f"dot: expected operands of rank 1 or more, not of shapes {show_shape(a.shape)} and {show_shape(b.shape)}"
        )
    if isinstance(x, SparseTensor):
        return sparse.dot(x, Tensor(b))
    if isinstance(y, SparseTensor):
        return sparse.dot(Tensor(a), y)
    return Tensor(linalg.dot(a, b, (), (), (a.ndim - 1,), (max(b.ndim - 2, 0),)))


def batch_dot(x: Any, y: Any, axes: Any = None) -> Tensor:
    """The product of each sample of x with the same sample of y.

    Args:
        x: numbers of shape (batch, …), rank 2 or more.
        y: numbers of shape (batch, …), rank 2 or more.
        axes: the axis of each to sum over: an int for both, or a pair. None takes the last axis of x and the last
            but one of y (the last one where y is a matrix), as in Keras 2.3.

    Returns:
        The batch axis, the other axes of x, the other axes of y; (batch, 1) where none is left.

    Raises:
        ValueError: a rank is below 2, the batch sizes or the sizes of the axes differ, an axis is 0, or there are
            several axes for one operand.

    >>> from graphkb import backend as K
    >>> K.batch_dot(K.placeholder((None, 20, 4)), K.placeholder((None, 4, 7))).shape
    (None, 20, 7)
    """
    a, b = pair(x, y)
    shapes = f"{show_shape(a.shape)} and {show_shape(b.shape)}"
    if a.ndim < 2 or b.ndim < 2:
        raise ValueError(f"batch_dot: expected operands of rank 2 or more, not of shapes {shapes}")
    m, n = keras_shape((a.shape[0], b.shape[0]))
    if m is not None and n is not None and m != n:
        raise ValueError(f"batch_dot: the batch sizes of the shapes {shapes} differ: {m} and {n}")
    if axes is None:
        pair_of_axes = [a.ndim - 1, b.ndim - (1 if b.ndim == 2 else 2)]
    elif isinstance(axes, int):
        pair_of_axes = [axes, axes]
    else:
        pair_of_axes = items("batch_dot", "None, an int or two ints as axes", axes)
    if len(pair_of_axes) != 2 or any(isinstance(axis, (list, tuple)) for axis in pair_of_axes):
        raise ValueError(f"batch_dot: several axes for one operand: expected None, an int or two ints, not {axes}")
    for i, operand in enumerate((a, b)):
        axis = pair_of_axes[i]
        if not isinstance(axis, (int, np.integer)):
            raise TypeError(f"batch_dot: expected an int as an axis, not {shown(axis)}")
        if not -operand.ndim <= axis < operand.ndim:
            raise ValueError(f"batch_dot: axis {axis} is out of range for a tensor of rank {operand.ndim}")
        pair_of_axes[i] = axis % operand.ndim
    if 0 in pair_of_axes:
        raise ValueError(
            "batch_dot: axis 0 counts the samples and can not be summed over; "
            "add a batch axis with K.expand_dims(x, 0) where there is none"
        )
    i, j = pair_of_axes
    p, q = keras_shape((a.shape[i], b.shape[j]))
    if p is not None and q is not None and p != q:
        raise ValueError(
            f"batch_dot: shapes {shapes} do not fit: axis {i} of the first has {p}, axis {j} of the second has {q}"
        )
    result = linalg.dot(a, b, (0,), (0,), (i,), (j,))
    return Tensor(shape.expand_dims(result, 1) if result.ndim == 1 else result)


def one_hot(indices: Any, num_classes: Any) -> Tensor:
    """A new last axis that is 1 at the index and 0 elsewhere.

    Args:
        indices: integers of any shape; one that is out of range gives zeros.
        num_classes: the size of the new axis: an int, or a scalar tensor computed from `K.shape`.

    Returns:
        A tensor of dtype `floatx()`.

    Raises:
        DTypeError: the indices are no integers.

    >>> from graphkb import backend as K
    >>> K.eval(K.one_hot([1, 0], 3)).tolist()
    [[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]]
    """
    node = as_node(indices)
    if node.dtype not in INTEGERS:
        raise DTypeError(f"one_hot: the indices must be integers, not {node.dtype}; use K.cast")
    if NUMPY_DTYPE[node.dtype].itemsize < 4:
        node = cast(node, "int32")  # so that it can count to any number of classes
    classes = to_dim(num_classes, "one_hot")
    if isinstance(classes, int) and classes < 0:
        raise ShapeError(f"one_hot: the number of classes {classes} is negative")
    return Tensor(index.one_hot(node, classes, config.floatx()))
