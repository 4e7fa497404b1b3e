"""Shape functions of K: questions about shapes, views, joining, repeating, padding and slicing."""

from __future__ import annotations

from typing import Any

import numpy as np

from graphkb.backend.promotion import as_node, items
from graphkb.backend.reductions import normalize_axes, normalize_axis
from graphkb.backend.sizes import shape_node, to_dims
from graphkb.backend.tensors import Tensor
from graphkb.ir.dims import Dim, Shape, floordiv, product, show_shape
from graphkb.ir.errors import ShapeError
from graphkb.ir.node import Node
from graphkb.ops import leaf
from graphkb.ops import shape as shape_ops


# ------------------------------------------------------------------------------------------------ questions
def shape(x: Any) -> Tensor:
    """The shape as a tensor, whose elements other functions accept where they take sizes.

    Args:
        x: a tensor of any shape.

    Returns:
        An int32 vector.

    >>> from graphkb import backend as K
    >>> x = K.placeholder((None, 4))
    >>> K.reshape(x, (K.shape(x)[0] * 2, 2)).shape
    (None, 2)
    """
    return Tensor(shape_node(as_node(x).shape))


def int_shape(x: Any) -> tuple[int | None, ...] | None:
    """The shape as a tuple: `x._keras_shape` where that is set, otherwise the shape of the tensor.

    Args:
        x: a tensor or an array.

    Returns:
        Integers, None for each size that is not known.

    >>> from graphkb import backend as K
    >>> K.int_shape(K.placeholder((None, 4)))
    (None, 4)
    """
    if hasattr(x, "_keras_shape"):
        known: tuple[int | None, ...] | None = x._keras_shape
        return known
    return tuple(x.shape) if hasattr(x, "shape") else Tensor(as_node(x)).shape


def get_variable_shape(x: Any) -> tuple[int | None, ...] | None:
    """The same as `int_shape`.

    Args:
        x: a tensor or an array.

    >>> from graphkb import backend as K
    >>> K.get_variable_shape(K.variable([1, 2]))
    (2,)
    """
    return int_shape(x)


def ndim(x: Any) -> int:
    """The number of axes.

    Args:
        x: a tensor or an array.

    >>> from graphkb import backend as K
    >>> K.ndim(K.placeholder((None, 4)))
    2
    """
    return as_node(x).ndim


def size(x: Any, name: str | None = None) -> Tensor:
    """The number of elements as a tensor.

    Args:
        x: a tensor of any shape.
        name: for people.

    Returns:
        An int32 scalar.

    >>> from graphkb import backend as K
    >>> K.eval(K.size(K.variable([[1, 2, 3]]))).tolist()
    3
    """
    return Tensor(leaf.size(as_node(x).type.size), name)


def count_params(x: Any) -> int:
    """The number of elements of a variable.

    Args:
        x: a tensor all of whose sizes are known.

    Returns:
        An int.

    Raises:
        ValueError: a size is not known.

    >>> from graphkb import backend as K
    >>> K.count_params(K.variable([[1, 2, 3], [4, 5, 6]]))
    6
    """
    sizes = int_shape(x)
    if sizes is None or None in sizes:
        raise ValueError(f"count_params: the shape {sizes} of {x!r} is not known before the call")
    return int(np.prod([s for s in sizes if s is not None], dtype=np.int64))


# ---------------------------------------------------------------------------------------------------- views
def _resolve(total: Dim, sizes: Shape, x: Node) -> Shape:
    """A shape with its one -1 replaced by the size that is left."""
    free = [i for i, d in enumerate(sizes) if isinstance(d, int) and d < 0]
    if any(sizes[i] != -1 for i in free) or len(free) > 1:
        raise ShapeError(f"reshape: the shape {show_shape(sizes)} may have one -1 and no other negative size")
    if not free:
        return sizes
    rest = product([d for i, d in enumerate(sizes) if i != free[0]])
    if rest == 0 or (isinstance(total, int) and isinstance(rest, int) and total % rest):
        raise ShapeError(f"reshape: {show_shape(x.shape)} does not fit the shape {show_shape(sizes)}")
    return (*sizes[: free[0]], floordiv(total, rest), *sizes[free[0] + 1 :])


def reshape(x: Any, shape: Any) -> Tensor:
    """The same elements in the same order under another shape.

    Args:
        x: a tensor of any shape.
        shape: integers and scalar tensors computed from `K.shape`, at most one -1; or an integer vector.

    Returns:
        A tensor of that shape and the dtype of `x`.

    Raises:
        ShapeError: the number of elements differs, or a size depends on values.

    >>> from graphkb import backend as K
    >>> K.reshape(K.placeholder((None, 2, 3)), (-1, 6)).shape
    (None, 6)
    """
    node = as_node(x)
    if isinstance(shape, (int, np.integer)):
        shape = (shape,)
    if isinstance(shape, (list, tuple)) and any(d is None for d in shape):
        raise TypeError("reshape: None is no size; use -1 for one size, K.shape(x)[i] for others")
    sizes = _resolve(node.type.size, to_dims(shape, "reshape"), node)
    return Tensor(shape_ops.reshape(node, sizes))


def flatten(x: Any) -> Tensor:
    """All elements as a vector.

    Args:
        x: a tensor of any shape.

    >>> from graphkb import backend as K
    >>> K.flatten(K.placeholder((2, 3))).shape
    (6,)
    """
    node = as_node(x)
    return Tensor(shape_ops.reshape(node, (node.type.size,)))


def batch_flatten(x: Any) -> Tensor:
    """A matrix: the first axis stays, all others become one.

    Args:
        x: a tensor of rank 1 or more.

    >>> from graphkb import backend as K
    >>> K.batch_flatten(K.placeholder((None, 2, 3))).shape
    (None, 6)
    """
    node = as_node(x)
    if not node.ndim:
        raise ShapeError("batch_flatten: expected a tensor of rank 1 or more, not a scalar")
    return Tensor(shape_ops.reshape(node, (node.shape[0], product(node.shape[1:]))))


def expand_dims(x: Any, axis: int = -1) -> Tensor:
    """The tensor with a new axis of size 1.

    Args:
        x: a tensor of any shape.
        axis: where the new axis stands in the result; negative ones count from the end.

    Raises:
        ShapeError: there is no such axis.

    >>> from graphkb import backend as K
    >>> K.expand_dims(K.placeholder((2, 3)), 1).shape
    (2, 1, 3)
    """
    node = as_node(x)
    return Tensor(shape_ops.expand_dims(node, normalize_axis("expand_dims", axis, node.ndim + 1)))


def squeeze(x: Any, axis: int) -> Tensor:
    """The tensor without an axis of size 1.

    Args:
        x: a tensor of rank 1 or more.
        axis: the axis; a size that is not known is taken to be 1, and checked at the call.

    Raises:
        ShapeError: the axis has another size, or there is no such axis.

    >>> from graphkb import backend as K
    >>> K.squeeze(K.placeholder((2, 1, 3)), 1).shape
    (2, 3)
    """
    node = as_node(x)
    if isinstance(axis, (list, tuple)):
        axes = normalize_axes("squeeze", axis, node.ndim)
    else:
        axes = (normalize_axis("squeeze", axis, node.ndim),)
    for a in axes:
        if isinstance(node.shape[a], int) and node.shape[a] != 1:
            raise ShapeError(f"squeeze: axis {a} of {show_shape(node.shape)} has the size {node.shape[a]}, not 1")
    return Tensor(shape_ops.reshape(node, tuple([d for i, d in enumerate(node.shape) if i not in axes])))


def permute_dimensions(x: Any, pattern: Any) -> Tensor:
    """The tensor with its axes in another order.

    Args:
        x: a tensor of any shape.
        pattern: axis i of the result is axis pattern[i] of `x`.

    Raises:
        ShapeError: the pattern is no permutation.

    >>> from graphkb import backend as K
    >>> K.permute_dimensions(K.placeholder((2, 3, 4)), (2, 0, 1)).shape
    (4, 2, 3)
    """
    node = as_node(x)
    axes = tuple(
        [
            normalize_axis("permute_dimensions", a, node.ndim)
            for a in items("permute_dimensions", "a sequence of axes", pattern)
        ]
    )
    return Tensor(shape_ops.transpose(node, axes))


def transpose(x: Any) -> Tensor:
    """The tensor with the order of its axes reversed.

    Args:
        x: a tensor of any shape.

    >>> from graphkb import backend as K
    >>> K.transpose(K.placeholder((2, 3, 4))).shape
    (4, 3, 2)
    """
    node = as_node(x)
    return Tensor(shape_ops.transpose(node, tuple(reversed(range(node.ndim)))))


def reverse(x: Any, axes: Any) -> Tensor:
    """The tensor with the order along some axes turned round.

    Args:
        x: a tensor of any shape.
        axes: an int, or a list or tuple of ints.

    Raises:
        ShapeError: there is no such axis.

    >>> from graphkb import backend as K
    >>> K.eval(K.reverse(K.variable([1, 2, 3]), 0)).tolist()
    [3.0, 2.0, 1.0]
    """
    node = as_node(x)
    return Tensor(shape_ops.reverse(node, normalize_axes("reverse", axes, node.ndim)))
