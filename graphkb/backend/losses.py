"""Cross-entropy losses, numerically stable from logits and from probabilities."""

from __future__ import annotations

from typing import Any

import numpy as np

from graphkb.backend import config
from graphkb.backend.nn import log_softmax_node, sigmoid_logits, softmax_logits
from graphkb.backend.promotion import as_node, float_node
from graphkb.backend.reductions import normalize_axis
from graphkb.backend.tensors import Tensor
from graphkb.ir.dims import Dim, product, show_shape
from graphkb.ir.errors import ShapeError
from graphkb.ir.node import Node, make
from graphkb.ops import elementwise, index, leaf, reduce, shape
from graphkb.ops.elementwise import cast, select


def _class_axis(what: str, axis: int, output: Node) -> int:
    at = normalize_axis(what, axis, output.ndim)
    if axis < -1:
        raise ValueError(f"{what}: expected -1 or an axis from 0 to {output.ndim - 1}, not {axis}")
    return at


def _check_shapes(what: str, target: Node, output: Node) -> None:
    if target.ndim != output.ndim:
        raise ShapeError(
            f"{what}: the target of shape {show_shape(target.shape)} and the output of shape "
            f"{show_shape(output.shape)} differ in rank"
        )


def _clipped(x: Node) -> Node:
    small = config.epsilon()
    return elementwise.minimum(elementwise.maximum(x, small), 1.0 - small)


def categorical_crossentropy(target: Any, output: Any, from_logits: bool = False, axis: int = -1) -> Tensor:
    """-sum(target * log(output)) over the classes.

    Probabilities are divided by their sum and kept epsilon away from 0 and 1. An output that `softmax` made along
    the same axis is computed from what softmax was given, which is exact where probabilities underflow.

    Args:
        target: probabilities of the classes, in the shape of `output`.
        output: probabilities, or logits.
        from_logits: whether `output` holds logits.
        axis: the axis of the classes.

    Returns:
        A float tensor without the axis of the classes.

    Raises:
        ValueError: there is no such axis. ShapeError: the shapes do not fit.

    >>> from graphkb import backend as K
    >>> K.eval(K.categorical_crossentropy(K.variable([[0, 1]]), K.variable([[0.5, 0.5]]))).round(3).tolist()
    [0.6930000185966492]
    """
    y = float_node(output)
    at = _class_axis("categorical_crossentropy", axis, y)
    t = cast(as_node(target), y.dtype)
    _check_shapes("categorical_crossentropy", t, y)
    log_y = _log_probabilities(y, at, from_logits, True)
    return Tensor(-reduce.reduce_sum(t * log_y, (at,)))


def _log_probabilities(y: Node, axis: int, from_logits: bool, normalize: bool) -> Node:
    if from_logits:
        return log_softmax_node(y, axis)
    known = softmax_logits(y)
    if known is not None and known[1] == axis:
        return log_softmax_node(known[0], axis)
    if normalize:
        return elementwise.log(_clipped(y / reduce.reduce_sum(y, (axis,), True)))
    return log_softmax_node(elementwise.log(_clipped(y)), axis)


def sparse_categorical_crossentropy(target: Any, output: Any, from_logits: bool = False, axis: int = -1) -> Tensor:
    """-log(output) at the target class.

    Args:
        target: the class of each sample as a number of any dtype, in the shape of `output` without the axis of the
            classes, or any shape with as many elements. A class that does not exist gives NaN.
        output: probabilities, which are kept epsilon away from 0 and 1 and divided by their sum, or logits.
        from_logits: whether `output` holds logits.
        axis: the axis of the classes.

    Returns:
        A float tensor without the axis of the classes.

    Raises:
        ValueError: there is no such axis. ShapeError: the shapes do not fit.

    >>> from graphkb import backend as K
    >>> K.eval(K.sparse_categorical_crossentropy([1], K.variable([[0.5, 0.5]]))).round(3).tolist()
    [0.6930000185966492]
    """
    y = float_node(output)
    at = _class_axis("sparse_categorical_crossentropy", axis, y)
    log_y = _log_probabilities(y, at, from_logits, False)
    last = (*[a for a in range(y.ndim) if a != at], at)
    log_y = shape.transpose(log_y, last)
    dims: tuple[Dim, ...] = log_y.shape[:-1]
    classes = cast(as_node(target), "int64")
    if classes.type.is_static and isinstance(count := product(dims), int) and classes.type.size != count:
        raise ShapeError(
            f"sparse_categorical_crossentropy: expected a target of shape {show_shape(dims)}, "
            f"not one of shape {show_shape(classes.shape)}"
        )
    classes = shape.reshape(classes, dims)
    number = log_y.shape[-1]
    hit = index.one_hot(classes, number, "bool")
    loss = -reduce.reduce_sum(select(hit, log_y, 0), (log_y.ndim - 1,))
    exists = make(
        elementwise.and_,
        (elementwise.greater_equal(classes, 0), elementwise.less(classes, leaf.size(number, "int64"))),
    )
    return Tensor(select(exists, loss, np.nan))


def binary_crossentropy(target: Any, output: Any, from_logits: bool = False) -> Tensor:
    """-(target * log(output) + (1 - target) * log(1 - output)), element by element.

    Probabilities are kept epsilon away from 0 and 1, and epsilon is added inside the logarithms, as in Keras. An
    output that `sigmoid` made is computed from what sigmoid was given.

    Args:
        target: probabilities in the shape of `output`.
        output: probabilities, or logits.
        from_logits: whether `output` holds logits.

    Returns:
        A float tensor of the shape of `output`; nothing is summed.

    Raises:
        ShapeError: the shapes do not broadcast.

    >>> from graphkb import backend as K
    >>> K.eval(K.binary_crossentropy(K.variable([1, 0]), K.variable([0, 0]), from_logits=True)).round(3).tolist()
    [0.6930000185966492, 0.6930000185966492]
    """
    y = float_node(output)
    t = cast(as_node(target), y.dtype)
    logits = y if from_logits else sigmoid_logits(y)
    if logits is not None:
        # log(sigmoid(x)) = -softplus(-x) and log(1 - sigmoid(x)) = -softplus(x): nothing cancels
        return Tensor(t * elementwise.softplus(-logits) + (1 - t) * elementwise.softplus(logits))
    y = _clipped(y)
    small = config.epsilon()
    return Tensor(-(t * elementwise.log(y + small) + (1 - t) * elementwise.log(1 - y + small)))
