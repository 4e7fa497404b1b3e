"""Reductions of K over one axis, several axes or all of them, and the running sum and product."""

from __future__ import annotations

from typing import Any

import numpy as np

from graphkb.backend.promotion import as_node, to_float
from graphkb.backend.tensors import Tensor
from graphkb.ir.errors import ShapeError, shown
from graphkb.ir.node import Node, make
from graphkb.ir.op import Op
from graphkb.ops import elementwise, leaf, reduce, shape

Axis = Any  # None, an int, or a sequence of ints


def normalize_axis(name: str, axis: Any, ndim: int) -> int:
    """An axis as a non-negative int; ShapeError when the tensor has no such axis."""
    try:
        index: int = axis.__index__()
    except (AttributeError, TypeError):
        raise TypeError(f"{name}: expected an int as an axis, not {shown(axis)}") from None
    if not -ndim <= index < ndim:
        raise ShapeError(f"{name}: axis {index} is out of range for a tensor of rank {ndim}")
    return index % ndim


def normalize_axes(name: str, axis: Axis, ndim: int) -> tuple[int, ...]:
    """Axes as sorted non-negative ints; None stands for all."""
    if axis is None:
        return tuple(range(ndim))
    if isinstance(axis, (list, tuple, np.ndarray, range)) and not (isinstance(axis, np.ndarray) and axis.ndim == 0):
        axes = [normalize_axis(name, a, ndim) for a in axis]
        if len(set(axes)) != len(axes):
            raise ShapeError(f"{name}: an axis stands twice in {tuple(axis)}")
        return tuple(sorted(axes))
    return (normalize_axis(name, axis, ndim),)


def _reduced(name: str, op: Op, x: Node, axis: Axis, keepdims: bool) -> Tensor:
    return Tensor(reduce.reduce(op, x, normalize_axes(name, axis, x.ndim), bool(keepdims)))


def _number(x: Any) -> Node:
    """A node of numbers; bools count as int64, as in NumPy."""
    node = as_node(x)
    return elementwise.cast(node, "int64") if node.dtype == "bool" else node


def sum(x: Any, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """The sum over axes.

    Args:
        x: numbers of any shape, or a list of scalar tensors. Bools count as int64.
        axis: an int, a list or tuple of ints, negative ones counted from the end; None for all axes.
        keepdims: keep the axes with size 1.

    Returns:
        A tensor of the dtype of `x`; 0 over no elements.

    Raises:
        ShapeError: there is no such axis, or one stands twice.

    >>> from graphkb import backend as K
    >>> K.eval(K.sum(K.variable([[1, 2], [3, 4]]), axis=-1)).tolist()
    [3.0, 7.0]
    """
    return _reduced("sum", reduce.SUM, _number(x), axis, keepdims)


def prod(x: Any, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """The product over axes.

    Args:
        x: numbers of any shape, or a list of scalar tensors. Bools count as int64.
        axis: an int, a list or tuple of ints, negative ones counted from the end; None for all axes.
        keepdims: keep the axes with size 1.

    Returns:
        A tensor of the dtype of `x`; 1 over no elements.

    Raises:
        ShapeError: there is no such axis, or one stands twice.

    >>> from graphkb import backend as K
    >>> K.eval(K.prod(K.variable([[1, 2], [3, 4]]), axis=0)).tolist()
    [3.0, 8.0]
    """
    return _reduced("prod", reduce.PROD, _number(x), axis, keepdims)


def max(x: Any, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """The largest element over axes; NaN where there is one.

    Args:
        x: a tensor of any shape and dtype.
        axis: an int, a list or tuple of ints, negative ones counted from the end; None for all axes.
        keepdims: keep the axes with size 1.

    Returns:
        A tensor of the dtype of `x`. Equal largest elements share the gradient.

    Raises:
        ShapeError: there is no such axis, one stands twice, or there are no elements.

    >>> from graphkb import backend as K
    >>> K.eval(K.max(K.variable([[1, 2], [3, 4]]))).tolist()
    4.0
    """
    return _reduced("max", reduce.MAX, as_node(x), axis, keepdims)


def min(x: Any, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """The smallest element over axes; NaN where there is one.

    Args:
        x: a tensor of any shape and dtype.
        axis: an int, a list or tuple of ints, negative ones counted from the end; None for all axes.
        keepdims: keep the axes with size 1.

    Returns:
        A tensor of the dtype of `x`. Equal smallest elements share the gradient.

    Raises:
        ShapeError: there is no such axis, one stands twice, or there are no elements.

    >>> from graphkb import backend as K
    >>> K.eval(K.min(K.variable([[1, 2], [3, 4]]), axis=0, keepdims=True)).tolist()
    [[1.0, 2.0]]
    """
    return _reduced("min", reduce.MIN, as_node(x), axis, keepdims)


def mean_node(x: Node, axes: tuple[int, ...], keepdims: bool) -> Node:
    """The mean of a float node; that of float16 is computed in float32, as NumPy does it."""
    if x.dtype == "float16":
        return elementwise.cast(mean_node(elementwise.cast(x, "float32"), axes, keepdims), "float16")
    if not axes:
        return x
    return reduce.reduce_sum(x, axes, keepdims) / reduce.count(x, axes, x.dtype)


def var_node(x: Node, axes: tuple[int, ...], keepdims: bool) -> Node:
    """The mean squared distance from the mean of a float node."""
    if x.dtype == "float16":
        return elementwise.cast(var_node(elementwise.cast(x, "float32"), axes, keepdims), "float16")
    if not axes:
        return elementwise.square(x - x)
    return reduce.reduce(reduce.VARIANCE, x, axes, keepdims)


def mean(x: Any, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """The mean over axes.

    Args:
        x: numbers of any shape; integers and bools become `floatx()`.
        axis: an int, a list or tuple of ints, negative ones counted from the end; None for all axes.
        keepdims: keep the axes with size 1.

    Returns:
        A float tensor; NaN over no elements.

    Raises:
        ShapeError: there is no such axis, or one stands twice.

    >>> from graphkb import backend as K
    >>> K.eval(K.mean(K.variable([[1, 2], [3, 4]]), axis=[0, 1])).tolist()
    2.5
    """
    node = to_float(as_node(x))
    return Tensor(mean_node(node, normalize_axes("mean", axis, node.ndim), bool(keepdims)))


def var(x: Any, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """The variance over axes: the mean squared distance from the mean.

    Args:
        x: numbers of any shape; integers and bools become `floatx()`.
        axis: an int, a list or tuple of ints, negative ones counted from the end; None for all axes.
        keepdims: keep the axes with size 1.

    Returns:
        A float tensor; NaN over no elements.

    Raises:
        ShapeError: there is no such axis, or one stands twice.

    >>> from graphkb import backend as K
    >>> K.eval(K.var(K.variable([1, 2, 3, 4]))).tolist()
    1.25
    """
    node = to_float(as_node(x))
    return Tensor(var_node(node, normalize_axes("var", axis, node.ndim), bool(keepdims)))


def std(x: Any, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """The standard deviation over axes: the square root of the variance.

    Args:
        x: numbers of any shape; integers and bools become `floatx()`.
        axis: an int, a list or tuple of ints, negative ones counted from the end; None for all axes.
        keepdims: keep the axes with size 1.

    Returns:
        A float tensor; NaN over no elements.

    Raises:
        ShapeError: there is no such axis, or one stands twice.

    >>> from graphkb import backend as K
    >>> K.eval(K.std(K.variable([1, 3]))).tolist()
    1.0
    """
    node = to_float(as_node(x))
    return Tensor(elementwise.sqrt(var_node(node, normalize_axes("std", axis, node.ndim), bool(keepdims))))


def any(x: Any, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """Whether any element over axes is not 0.

    Args:
        x: a tensor of any shape and dtype; numbers count as true when they are not 0.
        axis: an int, a list or tuple of ints, negative ones counted from the end; None for all axes.
        keepdims: keep the axes with size 1.

    Returns:
        A bool tensor; False over no elements.

    Raises:
        ShapeError: there is no such axis, or one stands twice.

    >>> from graphkb import backend as K
    >>> K.eval(K.any(K.variable([[0, 1], [0, 0]]), axis=1)).tolist()
    [True, False]
    """
    return _reduced("any", reduce.ANY, elementwise.cast(as_node(x), "bool"), axis, keepdims)


def all(x: Any, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """Whether all elements over axes are not 0.

    Args:
        x: a tensor of any shape and dtype; numbers count as true when they are not 0.
        axis: an int, a list or tuple of ints, negative ones counted from the end; None for all axes.
        keepdims: keep the axes with size 1.

    Returns:
        A bool tensor; True over no elements.

    Raises:
        ShapeError: there is no such axis, or one stands twice.

    >>> from graphkb import backend as K
    >>> K.eval(K.all(K.variable([[1, 1], [0, 1]]), axis=1)).tolist()
    [True, False]
    """
    return _reduced("all", reduce.ALL, elementwise.cast(as_node(x), "bool"), axis, keepdims)


def _position(name: str, op: Op, x: Any, axis: int) -> Tensor:
    node = as_node(x)
    return Tensor(make(op, (node,), {"axis": normalize_axis(name, axis, node.ndim)}))


def argmax(x: Any, axis: int = -1) -> Tensor:
    """The position of the largest element along an axis, the first of equal ones.

    Args:
        x: a tensor of rank 1 or more.
        axis: an int.

    Returns:
        An int64 tensor without that axis. It has no gradient.

    Raises:
        ShapeError: there is no such axis, or it has no elements.

    >>> from graphkb import backend as K
    >>> K.eval(K.argmax(K.variable([[1, 3, 3], [5, 4, 0]]))).tolist()
    [1, 0]
    """
    return _position("argmax", reduce.ARGMAX, x, axis)


def argmin(x: Any, axis: int = -1) -> Tensor:
    """The position of the smallest element along an axis, the first of equal ones.

    Args:
        x: a tensor of rank 1 or more.
        axis: an int.

    Returns:
        An int64 tensor without that axis. It has no gradient.

    Raises:
        ShapeError: there is no such axis, or it has no elements.

    >>> from graphkb import backend as K
    >>> K.eval(K.argmin(K.variable([[1, 3, 3], [5, 4, 0]]))).tolist()
    [0, 2]
    """
    return _position("argmin", reduce.ARGMIN, x, axis)


def cumsum(x: Any, axis: int = 0) -> Tensor:
    """Running sums along an axis.

    Args:
        x: numbers of rank 1 or more. Bools count as int64.
        axis: an int.

    Returns:
        A tensor of the same shape and dtype.

    Raises:
        ShapeError: there is no such axis.

    >>> from graphkb import backend as K
    >>> K.eval(K.cumsum(K.variable([1, 2, 3]))).tolist()
    [1.0, 3.0, 6.0]
    """
    node = _number(x)
    return Tensor(reduce.cumsum(node, normalize_axis("cumsum", axis, node.ndim)))


def cumprod(x: Any, axis: int = 0) -> Tensor:
    """Running products along an axis.

    Args:
        x: numbers of rank 1 or more. Bools count as int64.
        axis: an int.

    Returns:
        A tensor of the same shape and dtype.

    Raises:
        ShapeError: there is no such axis.

    >>> from graphkb import backend as K
    >>> K.eval(K.cumprod(K.variable([1, 2, 3]))).tolist()
    [1.0, 2.0, 6.0]
    """
    node = _number(x)
    return Tensor(reduce.cumprod(node, normalize_axis("cumprod", axis, node.ndim)))


def shift_of(x: Node, axes: tuple[int, ...]) -> Node:
    """What to subtract before `exp`: the largest element, 0 where that is infinite, constant for gradients."""
    if 0 in [x.shape[a] for a in axes]:
        return leaf.constant(0, x.dtype)
    largest = elementwise.stop_gradient(reduce.reduce(reduce.MAX, x, axes, True))
    finite = make(elementwise.isfinite_, (largest,))
    return elementwise.select(finite, largest, 0)


def logsumexp(x: Any, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """log(sum(exp(x))) over axes, without overflow or underflow.

    Args:
        x: numbers of any shape; integers and bools become `floatx()`.
        axis: an int, a list or tuple of ints, negative ones counted from the end; None for all axes.
        keepdims: keep the axes with size 1.

    Returns:
        A float tensor; -inf over no elements.

    Raises:
        ShapeError: there is no such axis, or one stands twice.

    >>> from graphkb import backend as K
    >>> K.eval(K.logsumexp(K.variable([1000.0, 0.0]))).tolist()
    1000.0
    """
    node = to_float(as_node(x))
    axes = normalize_axes("logsumexp", axis, node.ndim)
    if not axes:
        return Tensor(node)
    shift = shift_of(node, axes)
    total = elementwise.log(reduce.reduce_sum(elementwise.exp(node - shift), axes, True)) + shift
    return Tensor(total if keepdims else shape.reshape(total, reduce.reduced_shape(node.shape, axes, False)))
