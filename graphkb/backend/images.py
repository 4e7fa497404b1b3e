"""Enlarging images and volumes by whole factors."""

from __future__ import annotations

from typing import Any

import numpy as np

from graphkb.backend.config import DATA_FORMATS
from graphkb.backend.joining import check_rank, repeat_elements
from graphkb.backend.promotion import as_node, to_float
from graphkb.backend.tensors import Tensor
from graphkb.ir.dims import minimum
from graphkb.ir.errors import ShapeError, shown
from graphkb.ir.node import Node
from graphkb.ops import leaf, shape
from graphkb.ops.elementwise import cast


def _spatial_axes(what: str, x: Node, count: int, data_format: Any) -> tuple[int, ...]:
    if not isinstance(data_format, str) or data_format not in DATA_FORMATS:
        raise ValueError(
            f"{what}: expected 'channels_first' or 'channels_last' as the data format, not {shown(data_format)}"
        )
    check_rank(what, x, count + 2)
    first = 2 if data_format == "channels_first" else 1
    return tuple(range(first, first + count))


def _factor(what: str, factor: Any) -> int:
    number = int(factor) if isinstance(factor, (int, float, np.number)) and np.isfinite(factor) else 0
    if number != factor or number < 1:
        raise ValueError(f"{what}: expected positive integers as factors, not {shown(factor)}")
    return number


def _enlarge_linear(x: Node, axis: int, factor: int) -> Node:
    """Linear interpolation along an axis: output i lies at i / factor, the last element is continued."""
    if factor == 1:
        return x
    n = x.shape[axis]
    if n == 0:
        raise ShapeError("resize_images: there is nothing to interpolate along an axis of size 0")
    first = minimum(1, n)
    sizes = tuple([n - first if a == axis else d for a, d in enumerate(x.shape)])
    rest = shape.slice_(x, tuple([first if a == axis else 0 for a in range(x.ndim)]), sizes)
    last_size = tuple([first if a == axis else d for a, d in enumerate(x.shape)])
    last = shape.slice_(x, tuple([n - first if a == axis else 0 for a in range(x.ndim)]), last_size)
    following = shape.reshape(shape.concatenate([rest, last], axis), x.shape)
    weights = (np.arange(factor) / factor).reshape(factor, *(1,) * (x.ndim - 1 - axis))
    share = cast(leaf.constant(weights, "float64"), x.dtype)
    low, high = shape.expand_dims(x, axis + 1), shape.expand_dims(following, axis + 1)
    blended = low + (high - low) * share
    return shape.reshape(blended, (*x.shape[:axis], n * factor, *x.shape[axis + 1 :]))


def resize_images(
    x: Any, height_factor: int, width_factor: int, data_format: str, interpolation: str = "nearest"
) -> Tensor:
    """Images enlarged by whole factors.

    Args:
        x: a tensor of shape (samples, rows, columns, channels), or (samples, channels, rows, columns).
        height_factor: a positive int.
        width_factor: a positive int.
        data_format: "channels_last" or "channels_first".
        interpolation: "nearest" repeats pixels; "bilinear" blends them, output pixel i at position i / factor, and
            gives floats.

    Raises:
        ValueError: the data format, the interpolation or a factor is not one of these. ShapeError: the rank is not
            4.

    >>> from graphkb import backend as K
    >>> x = K.reshape(K.variable([0, 4]), (1, 1, 2, 1))
    >>> K.eval(K.flatten(K.resize_images(x, 1, 2, "channels_last", "bilinear"))).tolist()
    [0.0, 2.0, 4.0, 4.0]
    """
    node = as_node(x)
    axes = _spatial_axes("resize_images", node, 2, data_format)
    factors = [_factor("resize_images", f) for f in (height_factor, width_factor)]
    if interpolation == "nearest":
        result = Tensor(node)
        for axis, factor in zip(axes, factors):
            result = repeat_elements(result, factor, axis)
        return result
    if interpolation != "bilinear":
        raise ValueError(f"resize_images: expected the interpolation 'nearest' or 'bilinear', not {interpolation!r}")
    node = to_float(node)
    for axis, factor in zip(axes, factors):
        node = _enlarge_linear(node, axis, factor)
    return Tensor(node)


def resize_volumes(x: Any, depth_factor: int, height_factor: int, width_factor: int, data_format: str) -> Tensor:
    """Volumes enlarged by whole factors; voxels are repeated.

    Args:
        x: a tensor of shape (samples, depth, rows, columns, channels), or with the channels second.
        depth_factor: a positive int.
        height_factor: a positive int.
        width_factor: a positive int.
        data_format: "channels_last" or "channels_first".

    Raises:
        ValueError: the data format or a factor is not one of these. ShapeError: the rank is not 5.

    >>> from graphkb import backend as K
    >>> K.resize_volumes(K.placeholder((None, 2, 3, 4, 1)), 2, 2, 1, "channels_last").shape
    (None, 4, 6, 4, 1)
    """
    result = Tensor(as_node(x))
    axes = _spatial_axes("resize_volumes", result.node, 3, data_format)
    for axis, factor in zip(axes, (depth_factor, height_factor, width_factor)):
        result = repeat_elements(result, _factor("resize_volumes", factor), axis)
    return result
