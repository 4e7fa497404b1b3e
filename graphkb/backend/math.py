"""Element-wise functions of K: arithmetic, comparisons, casts."""

from __future__ import annotations

from typing import Any

import numpy as np

from graphkb.backend.promotion import as_node, float_node, pair
from graphkb.backend.tensors import Tensor, compare, power
from graphkb.ir.errors import DTypeError
from graphkb.ir.node import Node, make
from graphkb.ir.types import FLOATS, dtype_name
from graphkb.ops import elementwise


def cast(x: Any, dtype: str) -> Tensor:
    """A tensor in another dtype.

    Args:
        x: a tensor, a number or an array of any shape.
        dtype: a dtype name. Floats become integers by cutting off the fraction, and bools by comparison with 0.

    Returns:
        A new tensor of the same shape. No gradient flows through an integer or bool dtype.

    Raises:
        TypeError: the dtype is not known.

    >>> from graphkb import backend as K
    >>> K.eval(K.cast(K.variable([1.7, -1.7]), "int32")).tolist()
    [1, -1]
    """
    return Tensor(elementwise.cast(as_node(x), dtype_name(dtype)))


def _number(name: str, x: Any) -> Node:
    node = as_node(x)
    if node.dtype == "bool":
        raise DTypeError(f"{name}: bool is not allowed, expected numbers; use K.cast")
    return node


def abs(x: Any) -> Tensor:
    """Absolute values.

    Args:
        x: numbers of any shape.

    Returns:
        A tensor of the same shape and dtype.

    >>> from graphkb import backend as K
    >>> K.eval(K.abs(K.variable([-1, 2]))).tolist()
    [1.0, 2.0]
    """
    return Tensor(make(elementwise.abs_, (_number("abs", x),)))


def square(x: Any) -> Tensor:
    """Squares.

    Args:
        x: numbers of any shape.

    Returns:
        A tensor of the same shape and dtype.

    >>> from graphkb import backend as K
    >>> K.eval(K.square(K.variable([-1, 2]))).tolist()
    [1.0, 4.0]
    """
    return Tensor(elementwise.square(_number("square", x)))


def sign(x: Any) -> Tensor:
    """-1, 0 or 1.

    Args:
        x: numbers of any shape.

    Returns:
        A tensor of the same shape and dtype.

    >>> from graphkb import backend as K
    >>> K.eval(K.sign(K.variable([-3, 0, 2]))).tolist()
    [-1.0, 0.0, 1.0]
    """
    return Tensor(elementwise.sign(_number("sign", x)))


def round(x: Any) -> Tensor:
    """The nearest integers, halves to the even one; no gradient flows through it.

    Args:
        x: numbers of any shape.

    Returns:
        A tensor of the same shape and dtype.

    >>> from graphkb import backend as K
    >>> K.eval(K.round(K.variable([0.5, 1.5, -0.6]))).tolist()
    [0.0, 2.0, -1.0]
    """
    node = _number("round", x)
    return Tensor(make(elementwise.round_, (node,)) if node.dtype in FLOATS else node)


def sqrt(x: Any) -> Tensor:
    """Square roots; those of negative numbers are 0, as in Keras.

    Args:
        x: numbers of any shape; integers and bools become `floatx()`.

    Returns:
        A float tensor of the same shape.

    >>> from graphkb import backend as K
    >>> K.eval(K.sqrt(K.variable([9, -1]))).tolist()
    [3.0, 0.0]
    """
    return Tensor(elementwise.sqrt(elementwise.maximum(float_node(x), 0)))


def exp(x: Any) -> Tensor:
    """e to the power of each element.

    Args:
        x: numbers of any shape; integers and bools become `floatx()`.

    Returns:
        A float tensor of the same shape.

    >>> from graphkb import backend as K
    >>> K.eval(K.exp(K.variable([0]))).tolist()
    [1.0]
    """
    return Tensor(elementwise.exp(float_node(x)))


def log(x: Any) -> Tensor:
    """Natural logarithms.

    Args:
        x: numbers of any shape; integers and bools become `floatx()`.

    Returns:
        A float tensor of the same shape; -inf at 0, NaN below.

    >>> from graphkb import backend as K
    >>> K.eval(K.log(K.variable([1]))).tolist()
    [0.0]
    """
    return Tensor(elementwise.log(float_node(x)))


def sin(x: Any) -> Tensor:
    """Sines of angles in radians.

    Args:
        x: numbers of any shape; integers and bools become `floatx()`.

    Returns:
        A float tensor of the same shape.

    >>> from graphkb import backend as K
    >>> K.eval(K.sin(K.variable([0]))).tolist()
    [0.0]
    """
    return Tensor(elementwise.sin(float_node(x)))


def cos(x: Any) -> Tensor:
    """Cosines of angles in radians.

    Args:
        x: numbers of any shape; integers and bools become `floatx()`.

    Returns:
        A float tensor of the same shape.

    >>> from graphkb import backend as K
    >>> K.eval(K.cos(K.variable([0]))).tolist()
    [1.0]
    """
    return Tensor(elementwise.cos(float_node(x)))


def pow(x: Any, a: Any) -> Tensor:
    """x to the power of a, element by element.

    Args:
        x: numbers of any shape.
        a: a number, or a tensor that broadcasts with `x`.

    Returns:
        A tensor of the broadcast shape.

    >>> from graphkb import backend as K
    >>> K.eval(K.pow(K.variable([1, 2, 3]), 3)).tolist()
    [1.0, 8.0, 27.0]
    """
    return power(x, a)


def clip(x: Any, min_value: Any, max_value: Any) -> Tensor:
    """The elements, those outside of the bounds moved to the nearer bound.

    Args:
        x: numbers of any shape.
        min_value: a number, a tensor that broadcasts with `x`, or None for no bound.
        max_value: like `min_value`; a number below a number `min_value` counts as `min_value`.

    Returns:
        A tensor of the broadcast shape.

    >>> from graphkb import backend as K
    >>> K.eval(K.clip(K.variable([-5, 0.5, 5]), 0, 1)).tolist()
    [0.0, 0.5, 1.0]
    """
    if isinstance(min_value, (int, float)) and isinstance(max_value, (int, float)) and max_value < min_value:
        max_value = min_value
    result = Tensor(as_node(x))
    if min_value is not None and not _is_infinite(min_value, -np.inf):
        result = maximum(result, min_value)
    if max_value is not None and not _is_infinite(max_value, np.inf):
        result = minimum(result, max_value)
    return result


def _is_infinite(bound: Any, infinity: float) -> bool:
    return isinstance(bound, float) and bound == infinity


def maximum(x: Any, y: Any) -> Tensor:
    """The larger of two, element by element; NaN where one is NaN.

    Args:
        x: a tensor, a number or an array.
        y: the same, of a shape that broadcasts with that of `x`.

    Returns:
        A tensor of the broadcast shape. Where both are equal the gradient goes to `x`.

    >>> from graphkb import backend as K
    >>> K.eval(K.maximum(K.variable([-1, 2]), 0.0)).tolist()
    [0.0, 2.0]
    """
    return Tensor(elementwise.maximum(*pair(x, y)))


def minimum(x: Any, y: Any) -> Tensor:
    """The smaller of two, element by element; NaN where one is NaN.

    Args:
        x: a tensor, a number or an array.
        y: the same, of a shape that broadcasts with that of `x`.

    Returns:
        A tensor of the broadcast shape. Where both are equal the gradient goes to `x`.

    >>> from graphkb import backend as K
    >>> K.eval(K.minimum(K.variable([-1, 2]), 0.0)).tolist()
    [-1.0, 0.0]
    """
    return Tensor(elementwise.minimum(*pair(x, y)))


def equal(x: Any, y: Any) -> Tensor:
    """Whether elements are equal.

    Args:
        x: a tensor, a number or an array.
        y: the same, of a shape that broadcasts with that of `x`.

    Returns:
        A bool tensor of the broadcast shape.

    >>> from graphkb import backend as K
    >>> K.eval(K.equal(K.variable([1, 2]), 2)).tolist()
    [False, True]
    """
    return compare(elementwise.eq, x, y)


def not_equal(x: Any, y: Any) -> Tensor:
    """Whether elements differ.

    Args:
        x: a tensor, a number or an array.
        y: the same, of a shape that broadcasts with that of `x`.

    Returns:
        A bool tensor of the broadcast shape.

    >>> from graphkb import backend as K
    >>> K.eval(K.not_equal(K.variable([1, 2]), 2)).tolist()
    [True, False]
    """
    return compare(elementwise.ne, x, y)


def greater(x: Any, y: Any) -> Tensor:
    """Whether x > y, element by element.

    Args:
        x: a tensor, a number or an array.
        y: the same, of a shape that broadcasts with that of `x`.

    Returns:
        A bool tensor of the broadcast shape.

    >>> from graphkb import backend as K
    >>> K.eval(K.greater(K.variable([1, 2]), 1)).tolist()
    [False, True]
    """
    return compare(elementwise.gt, x, y)


def greater_equal(x: Any, y: Any) -> Tensor:
    """Whether x >= y, element by element.

    Args:
        x: a tensor, a number or an array.
        y: the same, of a shape that broadcasts with that of `x`.

    Returns:
        A bool tensor of the broadcast shape.

    >>> from graphkb import backend as K
    >>> K.eval(K.greater_equal(K.variable([1, 2]), 2)).tolist()
    [False, True]
    """
    return compare(elementwise.ge, x, y)


def less(x: Any, y: Any) -> Tensor:
    """Whether x < y, element by element.

    Args:
        x: a tensor, a number or an array.
        y: the same, of a shape that broadcasts with that of `x`.

    Returns:
        A bool tensor of the broadcast shape.

    >>> from graphkb import backend as K
    >>> K.eval(K.less(K.variable([1, 2]), 2)).tolist()
    [True, False]
    """
    return compare(elementwise.lt, x, y)


def less_equal(x: Any, y: Any) -> Tensor:
    """Whether x <= y, element by element.

    Args:
        x: a tensor, a number or an array.
        y: the same, of a shape that broadcasts with that of `x`.

    Returns:
        A bool tensor of the broadcast shape.

    >>> from graphkb import backend as K
    >>> K.eval(K.less_equal(K.variable([1, 2]), 1)).tolist()
    [True, False]
    """
    return compare(elementwise.le, x, y)
