"""Locally connected layers of K: convolutions with a kernel of its own for every place."""

from __future__ import annotations

import itertools
from math import prod
from typing import Any

from graphkb.backend.config import normalize_data_format
from graphkb.backend.sizes import to_dims
from graphkb.backend.spatial import (
    Sizes,
    check_spatial,
    float_pair,
    from_channels_last,
    spatial_sizes,
    to_channels_last,
)
from graphkb.backend.tensors import Tensor
from graphkb.ir.dims import Dim, Shape, product, show_shape
from graphkb.ir.errors import ShapeError, shown
from graphkb.ir.node import Node
from graphkb.ops import shape
from graphkb.ops.linalg import dot


def _windows(what: str, x: Node, size: Sizes, strides: Sizes, places: Shape, channels_inner: bool) -> Node:
    """The elements that every place sees, along the last axis: by tap and channel, or by channel and tap."""
    for have, length, stride, count in zip(x.shape[1:], size, strides, places):
        needed = (count - 1) * stride + length
        if isinstance(have, int) and isinstance(needed, int) and needed > have:
            raise ShapeError(
                f"{what}: {count} windows of {length} at a stride of {stride} reach over {needed} elements, "
                f"an axis has {have}"
            )
    steps = (1, *strides, 1)
    counts = (x.shape[0], *places, x.shape[-1])
    taps = [shape.slice_(x, (0, *tap, 0), counts, steps) for tap in itertools.product(*map(range, size))]
    if channels_inner:
        return shape.concatenate(taps, x.ndim - 1)
    wide = shape.concatenate([shape.expand_dims(tap, x.ndim) for tap in taps], x.ndim)
    return shape.reshape(wide, (*wide.shape[:-2], wide.shape[-2] * prod(size)))


def _connect(what: str, windows: Node, kernel: Node) -> Node:
    """For every place, the product of what it sees with its own matrix."""
    places = windows.shape[1:-1]
    count: Dim = product(places)
    for name, have, takes in (("places", count, kernel.shape[0]), ("features", windows.shape[-1], kernel.shape[1])):
        if isinstance(have, int) and isinstance(takes, int) and have != takes:
            raise ShapeError(
                f"{what}: there are {have} {name}, the kernel of shape {show_shape(kernel.shape)} takes {takes}"
            )
    flat = shape.reshape(windows, (windows.shape[0], count, windows.shape[-1]))
    by_place = shape.transpose(dot(flat, kernel, (1,), (0,), (2,), (1,)), (1, 0, 2))
    return shape.reshape(by_place, (windows.shape[0], *places, kernel.shape[2]))


def local_conv1d(inputs: Any, kernel: Any, kernel_size: Any, strides: Any, data_format: str | None = None) -> Tensor:
    """A convolution along one axis whose weights differ from step to step.

    Args:
        inputs: a tensor of shape (samples, steps, channels); integers become `floatx()`.
        kernel: of shape (new steps, kernel size * channels, filters).
        kernel_size: how many steps a window has: an int, or a sequence of one.
        strides: how far the windows lie from each other: an int, or a sequence of one.
        data_format: checked, but the channels are always last, as in Keras.

    Returns:
        A float tensor of shape (samples, new steps, filters).

    Raises:
        ValueError: the data format, the size or the stride is not one of these. ShapeError: the ranks or sizes do
            not fit.

    >>> from graphkb import backend as K
    >>> x, kernel = K.reshape(K.variable([1, 2, 3]), (1, 3, 1)), K.variable([[[1], [1]], [[10], [10]]])
    >>> K.eval(K.flatten(K.local_conv1d(x, kernel, (2,), (1,)))).tolist()
    [3.0, 50.0]
    """
    what = "local_conv1d"
    normalize_data_format(data_format)
    x, w = float_pair(inputs, kernel)
    check_spatial(what, "a tensor", x, 3, "(samples, steps, channels)")
    check_spatial(what, "a kernel", w, 3, "(new steps, kernel size * channels, filters)")
    size, steps = spatial_sizes(what, "kernel_size", kernel_size, 1), spatial_sizes(what, "strides", strides, 1)
    return Tensor(_connect(what, _windows(what, x, size, steps, w.shape[:1], True), w))


def local_conv2d(
    inputs: Any, kernel: Any, kernel_size: Any, strides: Any, output_shape: Any, data_format: str | None = None
) -> Tensor:
    """A convolution of images whose weights differ from pixel to pixel.

    Args:
        inputs: a tensor of shape (samples, rows, columns, channels), or (samples, channels, rows, columns); integers
            become `floatx()`.
        kernel: of shape (new rows * new columns, features, filters). The features are those of a window, its rows
            first and its channels last; under "channels_first" its channels come first.
        kernel_size: rows and columns of a window: two ints, or one for both.
        strides: how far the windows lie from each other: two ints, or one for both.
        output_shape: new rows and new columns.
        data_format: "channels_last" or "channels_first"; None takes `image_data_format()`.

    Returns:
        A float tensor of shape (samples, new rows, new columns, filters), or with the filters second.

    Raises:
        ValueError: the data format, a size or a stride is not one of these. ShapeError: the ranks or sizes do not
            fit.

    >>> from graphkb import backend as K
    >>> x = K.placeholder((None, 5, 5, 2))
    >>> K.local_conv2d(x, K.ones((9, 18, 4)), (3, 3), (1, 1), (3, 3)).shape
    (None, 3, 3, 4)
    """
    what = "local_conv2d"
    layout = normalize_data_format(data_format)
    x, w = float_pair(inputs, kernel)
    check_spatial(what, "a tensor", x, 4, "(samples, rows, columns, channels) or (samples, channels, rows, columns)")
    check_spatial(what, "a kernel", w, 3, "(new rows * new columns, features, filters)")
    size, steps = spatial_sizes(what, "kernel_size", kernel_size, 2), spatial_sizes(what, "strides", strides, 2)
    places = to_dims(output_shape, what)
    if len(places) != 2 or any(isinstance(n, int) and n < 0 for n in places):
        raise ShapeError(f"{what}: expected new rows and new columns as output_shape, not {shown(output_shape)}")
    windows = _windows(what, to_channels_last(x, layout), size, steps, places, layout == "channels_last")
    return Tensor(from_channels_last(_connect(what, windows, w), layout))
