"""Neural network functions of K: activations, normalization, biases."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from graphkb.backend.config import normalize_data_format
from graphkb.backend.math import maximum, minimum
from graphkb.backend.promotion import as_node, float_node, operand, pair, to_float
from graphkb.backend.reductions import mean_node, normalize_axes, normalize_axis, shift_of, var_node
from graphkb.backend.tensors import Tensor
from graphkb.ir.dims import Dim, product, show_shape
from graphkb.ir.errors import DTypeError, ShapeError, shown
from graphkb.ir.node import Node, make
from graphkb.ir.types import INTEGERS
from graphkb.ops import elementwise, index, reduce, shape
from graphkb.ops.elementwise import cast, select


# ---------------------------------------------------------------------------------------------- activations
def _is_number(value: Any, number: float) -> bool:
    return isinstance(value, (int, float, np.number)) and float(value) == number


def relu(x: Any, alpha: Any = 0.0, max_value: Any = None, threshold: float = 0.0) -> Tensor:
    """The rectifier: `max_value` above it, x between, alpha * (x - threshold) below the threshold.

    As in Keras, a `max_value` also keeps the upper branch from going below 0 where the threshold is negative.

    Args:
        x: numbers of any shape.
        alpha: the slope below the threshold: a number, or a tensor or array that broadcasts with `x`.
        max_value: the largest value, None for no bound.
        threshold: where the lower branch begins.

    Returns:
        A tensor of the shape of `x`.

    >>> from graphkb import backend as K
    >>> K.eval(K.relu(K.variable([-2, 1, 9]), alpha=0.5, max_value=6)).tolist()
    [-1.0, 1.0, 6.0]
    """
    node = as_node(x)
    if node.dtype == "bool":
        raise DTypeError("relu: bool is not allowed, expected numbers; use K.cast")
    operand("relu", "alpha", alpha), operand("relu", "threshold", threshold)
    flat, plain = _is_number(alpha, 0), _is_number(threshold, 0)
    if flat and plain:
        upper = Tensor(elementwise.relu(node))
        return upper if max_value is None else minimum(upper, max_value)
    x = Tensor(node)
    upper = x if max_value is None else minimum(x, max_value)
    if max_value is not None and not plain:
        upper = maximum(upper, 0)  # a threshold below 0 lets negative numbers through only where there is no bound
    if flat:
        lower, upper_node = pair(0, upper)
    else:
        lower, upper_node = pair((x if plain else x - threshold) * alpha, upper)
    above = x > 0 if plain else x >= threshold
    return Tensor(select(above.node, upper_node, lower))


def elu(x: Any, alpha: Any = 1.0) -> Tensor:
    """The exponential linear unit: x above 0, alpha * (exp(x) - 1) below.

    Args:
        x: numbers of any shape; integers and bools become `floatx()`.
        alpha: a number, or a tensor that broadcasts with `x`.

    Returns:
        A float tensor of the shape of `x`.

    >>> from graphkb import backend as K
    >>> K.eval(K.elu(K.variable([0, 2]))).tolist()
    [0.0, 2.0]
    """
    node = float_node(x)
    # Only x <= 0 enters exp: an overflow in the branch not taken would make gradients NaN.
    below = Tensor(make(elementwise.expm1_, (elementwise.minimum(node, 0),)))
    if not _is_number(alpha, 1):
        below = below * operand("elu", "alpha", alpha)
    upper, lower = pair(Tensor(node), below)
    return Tensor(select(elementwise.greater(node, 0), upper, lower))


def softmax_node(x: Node, axis: int) -> Node:
    """exp(x) / sum(exp(x)) along a non-negative axis, shifted so that nothing overflows."""
    e = elementwise.exp(x - shift_of(x, (axis,)))
    return e / reduce.reduce_sum(e, (axis,), True)


def softmax_logits(node: Node) -> tuple[Node, int] | None:
    """What a node is the softmax of, and along which axis; None when it is no softmax."""
    if node.op is not elementwise.div:
        return None
    e, total = node.inputs
    if e.op is not elementwise.exp_ or total.op is not reduce.SUM or e.inputs[0].op is not elementwise.sub:
        return None
    x = e.inputs[0].inputs[0]
    axes = total.attrs["axes"]
    # Nodes are interned: the same expression built again is the same node.
    if len(axes) == 1 and softmax_node(x, axes[0]) is node:
        return x, axes[0]
    return None


def softmax(x: Any, axis: int = -1) -> Tensor:
    """exp(x) / sum(exp(x)) along an axis: positive numbers that add up to 1.

    Args:
        x: numbers of rank 1 or more; integers and bools become `floatx()`.
        axis: an int.

    Returns:
        A float tensor of the shape of `x`.

    Raises:
        ShapeError: there is no such axis.

    >>> from graphkb import backend as K
    >>> K.eval(K.softmax(K.variable([1000, 1000]))).tolist()
    [0.5, 0.5]
    """
    node = float_node(x)
    return Tensor(softmax_node(node, normalize_axis("softmax", axis, node.ndim)))


def softplus(x: Any) -> Tensor:
    """log(1 + exp(x)), without overflow.

    Args:
        x: numbers of any shape; integers and bools become `floatx()`.

    Returns:
        A float tensor of the same shape.

    >>> from graphkb import backend as K
    >>> K.eval(K.softplus(K.variable([-1000, 1000]))).tolist()
    [0.0, 1000.0]
    """
    return Tensor(elementwise.softplus(float_node(x)))


def softsign(x: Any) -> Tensor:
    """x / (1 + |x|).

    Args:
        x: numbers of any shape; integers and bools become `floatx()`.

    Returns:
        A float tensor of the same shape.

    >>> from graphkb import backend as K
    >>> K.eval(K.softsign(K.variable([-1, 3]))).tolist()
    [-0.5, 0.75]
    """
    node = float_node(x)
    return Tensor(node / (make(elementwise.abs_, (node,)) + 1))


def sigmoid(x: Any) -> Tensor:
    """1 / (1 + exp(-x)), without overflow.

    Args:
        x: numbers of any shape; integers and bools become `floatx()`.

    Returns:
        A float tensor of the same shape.

    >>> from graphkb import backend as K
    >>> K.eval(K.sigmoid(K.variable([0, -1000]))).tolist()
    [0.5, 0.0]
    """
    return Tensor(elementwise.sigmoid(float_node(x)))


def hard_sigmoid(x: Any) -> Tensor:
    """0.2 x + 0.5, kept between 0 and 1.

    Args:
        x: numbers of any shape; integers and bools become `floatx()`.

    Returns:
        A float tensor of the same shape.

    >>> from graphkb import backend as K
    >>> K.eval(K.hard_sigmoid(K.variable([-9, 0, 9]))).tolist()
    [0.0, 0.5, 1.0]
    """
    line = float_node(x) * 0.2 + 0.5
    return Tensor(elementwise.minimum(elementwise.maximum(line, 0), 1))


def tanh(x: Any) -> Tensor:
    """The hyperbolic tangent.

    Args:
        x: numbers of any shape; integers and bools become `floatx()`.

    Returns:
        A float tensor of the same shape.

    >>> from graphkb import backend as K
    >>> K.eval(K.tanh(K.variable([0]))).tolist()
    [0.0]
    """
    return Tensor(elementwise.tanh(float_node(x)))


# -------------------------------------------------------------------------------------------- normalization
def l2_normalize(x: Any, axis: Any = None) -> Tensor:
    """x divided by its Euclidean length along axes: x / sqrt(max(sum(x^2), 1e-12)).

    Args:
        x: numbers of any shape; integers and bools become `floatx()`.
        axis: an int, a list or tuple of ints, or None for all axes.

    Returns:
        A float tensor of the shape of `x`.

    Raises:
        ShapeError: there is no such axis.

    >>> from graphkb import backend as K
    >>> K.eval(K.l2_normalize(K.variable([3, 4]))).round(3).tolist()
    [0.6000000238418579, 0.800000011920929]
    """
    node = float_node(x)
    axes = normalize_axes("l2_normalize", axis, node.ndim)
    total = reduce.reduce_sum(elementwise.square(node), axes, True)
    return Tensor(node * elementwise.rsqrt(elementwise.maximum(total, 1e-12)))


def _along(parameter: Any, like: Node, axis: int) -> Node:
    """A parameter in the dtype of a node; a vector is laid along an axis."""
    node = cast(as_node(parameter), like.dtype)
    if node.ndim == 1 and axis != like.ndim - 1:
        node = shape.reshape(node, tuple([node.shape[0] if a == axis else 1 for a in range(like.ndim)]))
    ends = zip(reversed(like.shape), reversed(node.shape))
    if node.ndim > like.ndim or any(m == 1 and isinstance(n, int) and n > 1 for m, n in ends):
        raise ShapeError(
            "batch_normalization: expected mean, variance, beta and gamma that broadcast to the shape "
            f"{show_shape(like.shape)}, not one of shape {show_shape(node.shape)}"
        )
    return node


def _normalized(x: Node, mean: Node, var: Node, beta: Node | None, gamma: Node | None, epsilon: float) -> Node:
    scale = elementwise.rsqrt(var + as_node(epsilon, var.dtype))
    if gamma is not None:
        scale = scale * gamma
    y = (x - mean) * scale
    return y if beta is None else y + beta


def batch_normalization(
    x: Any, mean: Any, var: Any, beta: Any, gamma: Any, axis: int = -1, epsilon: float = 1e-3
) -> Tensor:
    """(x - mean) / sqrt(var + epsilon) * gamma + beta.

    Args:
        x: numbers of rank 1 or more; integers and bools become `floatx()`.
        mean: one number for each element of the axis, or a shape that broadcasts with `x`; likewise `var`, `beta`
            and `gamma`.
        var: variances.
        beta: what to add, or None.
        gamma: what to multiply with, or None.
        axis: the axis along which vectors are laid.
        epsilon: added to the variances.

    Returns:
        A float tensor of the shape of `x`.

    Raises:
        ShapeError: the shapes do not broadcast, or there is no such axis.

    >>> from graphkb import backend as K
    >>> y = K.batch_normalization(K.variable([[1, 2]]), [1, 1], [1, 1], None, [2, 2], epsilon=0)
    >>> K.eval(y).tolist()
    [[0.0, 2.0]]
    """
    node = float_node(x)
    at = normalize_axis("batch_normalization", axis, node.ndim)
    shift = None if beta is None else _along(beta, node, at)
    scale = None if gamma is None else _along(gamma, node, at)
    return Tensor(_normalized(node, _along(mean, node, at), _along(var, node, at), shift, scale, epsilon))


def normalize_batch_in_training(
    x: Any, gamma: Any, beta: Any, reduction_axes: Sequence[int], epsilon: float = 1e-3
) -> tuple[Tensor, Tensor, Tensor]:
    """A batch normalized with its own mean and variance.

    Args:
        x: numbers of any shape; integers and bools become `floatx()`.
        gamma: what to multiply with, in the shape of the axes that are not reduced, or None.
        beta: what to add, likewise.
        reduction_axes: the axes over which mean and variance are taken.
        epsilon: added to the variance.

    Returns:
        The normalized tensor, the mean and the variance, the last two without the reduced axes.

    Raises:
        ShapeError: there is no such axis, or the shapes do not fit.

    >>> from graphkb import backend as K
    >>> y, mean, var = K.normalize_batch_in_training(K.variable([[1], [3]]), None, None, [0], epsilon=0)
    >>> K.eval(y).tolist(), K.eval(mean).tolist(), K.eval(var).tolist()
    ([[-1.0], [1.0]], [2.0], [1.0])
    """
    node = float_node(x)
    axes = normalize_axes("normalize_batch_in_training", reduction_axes, node.ndim)
    mean, var = mean_node(node, axes, False), var_node(node, axes, False)
    kept = reduce.reduced_shape(node.shape, axes, True)

    def spread(what: str, value: Any) -> Node | None:
        if value is None:
            return None
        parameter = cast(as_node(value), node.dtype)
        if parameter.ndim == node.ndim:
            return parameter
        if parameter.type.is_static and isinstance(count := product(kept), int) and parameter.type.size != count:
            rest = reduce.reduced_shape(node.shape, axes, False)
            raise ShapeError(
                f"normalize_batch_in_training: expected {what} of shape {show_shape(rest)}, "
                f"not one of shape {show_shape(parameter.shape)}"
            )
        return shape.reshape(parameter, kept)

    wide_mean, wide_var = shape.reshape(mean, kept), shape.reshape(var, kept)
    y = _normalized(node, wide_mean, wide_var, spread("beta", beta), spread("gamma", gamma), epsilon)
    return Tensor(y), Tensor(mean), Tensor(var)


def bias_add(x: Any, bias: Any, data_format: str | None = None) -> Tensor:
    """x plus a bias for each channel, or for each position and channel.

    Args:
        x: a tensor of rank 2 or more; the channels are its last axis, or its second one under "channels_first".
        bias: a vector of channels, or a tensor of shape (positions…, channels) without the batch axis. Under
            "channels_first" the latter is, as in Keras, reshaped (not transposed) to (channels, positions…).
        data_format: "channels_last" or "channels_first"; None takes `image_data_format()`. Matrices always have
            their channels last.

    Returns:
        A tensor of the shape of `x`.

    Raises:
        ValueError: the data format is not known, or the rank of the bias fits neither.

    >>> from graphkb import backend as K
    >>> K.eval(K.bias_add(K.variable([[1, 2]]), K.variable([10, 20]))).tolist()
    [[11.0, 22.0]]
    """
    layout = normalize_data_format(data_format)
    a, b = pair(x, bias)
    if a.ndim < 2:
        raise ShapeError(f"bias_add: expected a tensor of rank 2 or more, not one of shape {show_shape(a.shape)}")
    if b.ndim not in (1, a.ndim - 1):
        ranks = "1" if a.ndim == 2 else f"1 or {a.ndim - 1}"
        raise ValueError(
            f"bias_add: expected a bias of rank {ranks} for a tensor of rank {a.ndim}, "
            f"not one of shape {show_shape(b.shape)}"
        )
    first = layout == "channels_first" and a.ndim > 2
    if b.ndim == 1:
        dims: tuple[Dim, ...] = (b.shape[0], *(1,) * (a.ndim - 2)) if first else b.shape
        b = shape.reshape(b, dims)
    elif first:
        b = shape.reshape(b, (b.shape[-1], *b.shape[:-1]))
    elementwise.broadcast_shapes("bias_add", a.shape, b.shape)
    return Tensor(make(elementwise.add, (a, b)))


# -------------------------------------------------------------------------------------------------- ranking
def in_top_k(predictions: Any, targets: Any, k: Any) -> Tensor:
    """Whether the target is among the k largest predictions of its row.

    Args:
        predictions: numbers of shape (samples, classes).
        targets: integer classes of shape (samples,).
        k: an int, or a scalar integer tensor.

    Returns:
        A bool vector. Equal predictions at the border all count as in; a target out of range, or a row with a
        prediction that is not finite, gives False.

    Raises:
        ShapeError: the ranks are not 2 and 1. DTypeError: the targets are no integers.

    >>> from graphkb import backend as K
    >>> K.eval(K.in_top_k(K.variable([[0.1, 0.7, 0.2], [0.5, 0.3, 0.2]]), [2, 2], 2)).tolist()
    [True, False]
    """
    scores, classes = to_float(as_node(predictions)), as_node(targets)
    if scores.ndim != 2 or classes.ndim != 1:
        raise ShapeError(
            "in_top_k: expected predictions of rank 2 and targets of rank 1, "
            f"not shapes {show_shape(scores.shape)} and {show_shape(classes.shape)}"
        )
    if classes.dtype not in INTEGERS:
        raise DTypeError(f"in_top_k: the targets must be integers, not {classes.dtype}; use K.cast")
    count = as_node(k)
    if count.ndim or count.dtype not in INTEGERS:
        raise DTypeError(f"in_top_k: expected an integer or a scalar integer tensor as k, not {shown(k)}")
    hit = index.one_hot(cast(classes, "int64"), scores.shape[1], "bool")
    own = reduce.reduce_sum(select(hit, scores, 0), (1,), True)
    better = reduce.reduce_sum(cast(elementwise.greater(scores, own), "int64"), (1,))
    finite = reduce.reduce(reduce.ALL, make(elementwise.isfinite_, (scores,)), (1,))
    known = reduce.reduce(reduce.ANY, hit, (1,))
    within = elementwise.less(better, cast(count, "int64"))
    return Tensor(make(elementwise.and_, (make(elementwise.and_, (within, finite)), known)))


def sigmoid_logits(node: Node) -> Node | None:
    """What a node is the sigmoid of; None when it is no sigmoid."""
    return node.inputs[0] if node.op is elementwise.sigmoid_ else None


def log_softmax_node(x: Node, axis: int) -> Node:
    """log(softmax(x)) along a non-negative axis, without overflow or underflow."""
    shifted = x - shift_of(x, (axis,))
    return shifted - elementwise.log(reduce.reduce_sum(elementwise.exp(shifted), (axis,), True))
