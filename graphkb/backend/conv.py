"""Convolutions of K: plain, transposed, separable and depthwise."""

from __future__ import annotations

from typing import Any

from graphkb.backend.config import normalize_data_format
from graphkb.backend.promotion import Handle, as_node
from graphkb.backend.sizes import size_list, to_dim, to_dims
from graphkb.backend.spatial import (
    Sizes,
    check_padding,
    check_reach,
    check_spatial,
    float_pair,
    from_channels_last,
    paddings,
    same_count,
    same_padding,
    spatial_sizes,
    surrounded,
    to_channels_last,
)
from graphkb.backend.tensors import Tensor
from graphkb.ir.dims import Dim, Shape, show_shape
from graphkb.ir.errors import ShapeError
from graphkb.ir.node import Node
from graphkb.ops import conv as conv_ops
from graphkb.ops import shape
from graphkb.ops.conv import reach
from graphkb.ops.elementwise import cast
from graphkb.ops.window import window_count

_AXES = {1: "steps", 2: "rows, columns", 3: "depth, rows, columns"}


def _check_operands(what: str, x: Node, kernel: Node, n: int, layout: str, ends: str = "channels, filters") -> None:
    axes = _AXES[n]
    parts = f"(samples, channels, {axes})" if layout == "channels_first" else f"(samples, {axes}, channels)"
    check_spatial(what, "a tensor", x, n + 2, parts)
    check_spatial(what, "a kernel", kernel, n + 2, f"({axes}, {ends})")


def _check_channels(what: str, x: Node, channels: Dim, kernel: Node) -> None:
    """ShapeError unless a tensor, its channels last, has as many as the kernel takes."""
    have = x.shape[-1]
    if isinstance(have, int) and isinstance(channels, int) and have != channels:
        raise ShapeError(
            f"{what}: the tensor has {have} channels, the kernel of shape {show_shape(kernel.shape)} takes {channels}"
        )


def _padded(what: str, x: Node, taps: Shape, padding: str, strides: Sizes, dilations: Sizes) -> Node:
    """A tensor with its channels last, surrounded by the zeros of a padding mode."""
    spatial = x.shape[1:-1]
    around = paddings(padding, spatial, taps, strides, dilations)
    starts, sizes = surrounded(x.shape, around, 1)
    if padding == "valid":
        for size, length, dilation in zip(spatial, taps, dilations):
            check_reach(what, size, reach(length, dilation))
    return shape.pad(x, starts, (1,) * x.ndim, sizes)


def _convolve(
    what: str, n: int, x: Any, kernel: Any, strides: Any, padding: str, data_format: str | None, dilation_rate: Any
) -> Tensor:
    layout = normalize_data_format(data_format)
    check_padding(what, padding, ("valid", "same", "causal") if n == 1 else ("valid", "same"))
    if padding == "causal" and layout != "channels_last":
        raise ValueError(f"{what}: causal padding needs the data format 'channels_last', not {layout!r}")
    a, w = float_pair(x, kernel)
    _check_operands(what, a, w, n, layout)
    steps = spatial_sizes(what, "strides", strides, n)
    rates = spatial_sizes(what, "dilation_rate", dilation_rate, n)
    a = to_channels_last(a, layout)
    _check_channels(what, a, w.shape[-2], w)
    a = _padded(what, a, w.shape[:n], padding, steps, rates)
    return Tensor(from_channels_last(conv_ops.conv(a, w, steps, rates), layout))


def conv1d(
    x: Any,
    kernel: Any,
    strides: Any = 1,
    padding: str = "valid",
    data_format: str | None = None,
    dilation_rate: Any = 1,
) -> Tensor:
    """A convolution along one axis; the kernel is not turned round.

    Args:
        x: a tensor of shape (samples, steps, channels), or (samples, channels, steps); integers become `floatx()`.
        kernel: of shape (steps, channels, filters) in both data formats.
        strides: how far the kernel moves: an int, or a sequence of one.
        padding: "valid" for none; "same" for zeros around, so that there is one result for every stride begun; the
            odd zero stands after; "causal" for zeros before only, so that no result sees later steps.
        data_format: "channels_last" or "channels_first"; None takes `image_data_format()`.
        dilation_rate: the distance of the kernel's elements: an int, or a sequence of one.

    Returns:
        A float tensor of shape (samples, new steps, filters), or (samples, filters, new steps).

    Raises:
        ValueError: the data format, the padding, a stride or a dilation is not one of these, or causal padding meets
            "channels_first". ShapeError: the ranks or the channels do not fit, or there are too few steps.

    >>> from graphkb import backend as K
    >>> x, kernel = K.reshape(K.variable([1, 2, 4]), (1, 3, 1)), K.reshape(K.variable([10, 1]), (2, 1, 1))
    >>> K.eval(K.flatten(K.conv1d(x, kernel))).tolist()
    [12.0, 24.0]
    >>> K.eval(K.flatten(K.conv1d(x, kernel, padding="causal"))).tolist()
    [1.0, 12.0, 24.0]
    """
    return _convolve("conv1d", 1, x, kernel, strides, padding, data_format, dilation_rate)


def conv2d(
    x: Any,
    kernel: Any,
    strides: Any = (1, 1),
    padding: str = "valid",
    data_format: str | None = None,
    dilation_rate: Any = (1, 1),
) -> Tensor:
    """A convolution of images; the kernel is not turned round.

    Args:
        x: a tensor of shape (samples, rows, columns, channels), or (samples, channels, rows, columns); integers
            become `floatx()`.
        kernel: of shape (rows, columns, channels, filters) in both data formats.
        strides: how far the kernel moves along rows and columns: two ints, or one for both.
        padding: "valid" for none, "same" for zeros around, so that there is one result for every stride begun; the
            odd zero stands after.
        data_format: "channels_last" or "channels_first"; None takes `image_data_format()`.
        dilation_rate: the distances of the kernel's elements: two ints, or one for both.

    Returns:
        A float tensor of shape (samples, new rows, new columns, filters), or with the filters second.

    Raises:
        ValueError: the data format, the padding, a stride or a dilation is not one of these. ShapeError: the ranks
            or the channels do not fit, or the images are too small.

    >>> from graphkb import backend as K
    >>> images = K.placeholder((None, 28, 28, 3))
    >>> K.conv2d(images, K.ones((5, 5, 3, 16))).shape
    (None, 24, 24, 16)
    >>> K.conv2d(images, K.ones((5, 5, 3, 16)), strides=(2, 2), padding="same").shape
    (None, 14, 14, 16)
    """
    return _convolve("conv2d", 2, x, kernel, strides, padding, data_format, dilation_rate)


def conv3d(
    x: Any,
    kernel: Any,
    strides: Any = (1, 1, 1),
    padding: str = "valid",
    data_format: str | None = None,
    dilation_rate: Any = (1, 1, 1),
) -> Tensor:
    """A convolution of volumes; the kernel is not turned round.

    Args:
        x: a tensor of shape (samples, depth, rows, columns, channels), or with the channels second; integers become
            `floatx()`.
        kernel: of shape (depth, rows, columns, channels, filters) in both data formats.
        strides: how far the kernel moves along each axis: three ints, or one for all.
        padding: "valid" or "same", as for `conv2d`.
        data_format: "channels_last" or "channels_first"; None takes `image_data_format()`.
        dilation_rate: the distances of the kernel's elements: three ints, or one for all.

    Returns:
        A float tensor of shape (samples, new depth, new rows, new columns, filters), or with the filters second.

    Raises:
        ValueError: the data format, the padding, a stride or a dilation is not one of these. ShapeError: the ranks
            or the channels do not fit, or the volumes are too small.

    >>> from graphkb import backend as K
    >>> K.conv3d(K.placeholder((None, 8, 8, 8, 2)), K.ones((3, 3, 3, 2, 4)), strides=2).shape
    (None, 3, 3, 3, 4)
    """
    return _convolve("conv3d", 3, x, kernel, strides, padding, data_format, dilation_rate)


# ---------------------------------------------------------------------------------------------- transposed
def _requested(what: str, output_shape: Any, n: int, layout: str) -> list[Dim | None]:
    """The wanted shape with its channels last; None for what is to follow from the operands."""
    sizes: list[Dim | None]
    if isinstance(output_shape, Handle):
        sizes = list(to_dims(output_shape, what))
    else:
        sizes = [None if size is None else to_dim(size, what) for size in size_list(output_shape, what)]
    if len(sizes) != n + 2:
        raise ShapeError(f"{what}: expected an output shape of {n + 2} sizes, not {output_shape!r}")
    if any(isinstance(size, int) and size < 0 for size in sizes):
        raise ShapeError(f"{what}: the output shape {output_shape!r} has negative sizes")
    return [sizes[0], *sizes[2:], sizes[1]] if layout == "channels_first" else sizes


def _check_requested(what: str, name: str, wanted: Dim | None, given: Dim) -> None:
    if isinstance(wanted, int) and isinstance(given, int) and wanted != given:
        raise ShapeError(f"{what}: the output shape asks for {wanted} {name}, the operands give {given}")


def _convolve_transposed(
    what: str,
    n: int,
    x: Any,
    kernel: Any,
    output_shape: Any,
    strides: Any,
    padding: str,
    data_format: str | None,
    dilation_rate: Any,
) -> Tensor:
    layout = normalize_data_format(data_format)
    check_padding(what, padding)
    a, w = float_pair(x, kernel)
    _check_operands(what, a, w, n, layout, "filters, channels")
    steps = spatial_sizes(what, "strides", strides, n)
    rates = spatial_sizes(what, "dilation_rate", dilation_rate, n)
    a = to_channels_last(a, layout)
    _check_channels(what, a, w.shape[-1], w)
    batch, *wanted, filters = _requested(what, output_shape, n, layout)
    _check_requested(what, "samples", batch, a.shape[0])
    _check_requested(what, "filters", filters, w.shape[-2])
    sizes: list[Dim] = []
    before: list[Dim] = []
    places: list[Dim] = []
    for size, have, length, step, rate in zip(wanted, a.shape[1:], w.shape, steps, rates):
        span = reach(length, rate)
        if size is None:
            size = have * step if padding == "same" else (have - 1) * step + span
        count = same_count(size, step) if padding == "same" else window_count(what, size, span, step)
        if isinstance(count, int) and isinstance(have, int) and count != have:
            raise ShapeError(
                f"{what}: an output of {size} elements along an axis comes from {count}, not from {have}: "
                f"kernel {length}, stride {step}, padding {padding!r}"
            )
        sizes.append(size)
        places.append(count)
        before.append(same_padding(size, length, step, rate)[0] if padding == "same" else 0)
    # Sizes that only the call tells are compared then: a reshape to other sizes is refused.
    a = shape.reshape(a, (a.shape[0] if batch is None else batch, *places, a.shape[-1]))
    y = conv_ops.conv_transpose(a, w, tuple(sizes), steps, rates, tuple(before))
    return Tensor(from_channels_last(y, layout))


def conv2d_transpose(
    x: Any,
    kernel: Any,
    output_shape: Any,
    strides: Any = (1, 1),
    padding: str = "valid",
    data_format: str | None = None,
    dilation_rate: Any = (1, 1),
) -> Tensor:
    """The transpose of `conv2d`: what the gradient of its images is made with.

    Args:
        x: a tensor of shape (samples, rows, columns, channels), or (samples, channels, rows, columns); integers
            become `floatx()`.
        kernel: of shape (rows, columns, filters, channels) in both data formats.
        output_shape: four sizes in the order of the data format: ints, scalar tensors computed from `K.shape`, or
            None for what follows from the operands; or an integer vector. It tells apart the sizes that a strided
            convolution takes to one size.
        strides: of the convolution that this is the transpose of: two ints, or one for both.
        padding: of that convolution: "valid" or "same".
        data_format: "channels_last" or "channels_first"; None takes `image_data_format()`.
        dilation_rate: of that convolution: two ints, or one for both.

    Returns:
        A float tensor of shape `output_shape`.

    Raises:
        ValueError: the data format, the padding, a stride or a dilation is not one of these. ShapeError: the ranks
            or the channels do not fit, or the convolution would not take the output shape to that of `x`.

    >>> from graphkb import backend as K
    >>> x = K.reshape(K.variable([1, 2]), (1, 1, 2, 1))
    >>> y = K.conv2d_transpose(x, K.ones((1, 3, 1, 1)), (None, 1, 5, 1), strides=(1, 2))
    >>> K.eval(K.flatten(y)).tolist()
    [1.0, 1.0, 3.0, 2.0, 2.0]
    """
    return _convolve_transposed(
        "conv2d_transpose", 2, x, kernel, output_shape, strides, padding, data_format, dilation_rate
    )


def conv3d_transpose(
    x: Any,
    kernel: Any,
    output_shape: Any,
    strides: Any = (1, 1, 1),
    padding: str = "valid",
    data_format: str | None = None,
) -> Tensor:
    """The transpose of `conv3d`: what the gradient of its volumes is made with.

    Args:
        x: a tensor of shape (samples, depth, rows, columns, channels), or with the channels second; integers become
            `floatx()`.
        kernel: of shape (depth, rows, columns, filters, channels) in both data formats.
        output_shape: five sizes in the order of the data format, as for `conv2d_transpose`.
        strides: of the convolution that this is the transpose of: three ints, or one for all.
        padding: of that convolution: "valid" or "same".
        data_format: "channels_last" or "channels_first"; None takes `image_data_format()`.

    Returns:
        A float tensor of shape `output_shape`.

    Raises:
        ValueError: the data format, the padding or a stride is not one of these. ShapeError: the ranks or the
            channels do not fit, or the convolution would not take the output shape to that of `x`.

    >>> from graphkb import backend as K
    >>> x = K.placeholder((None, 4, 4, 4, 2))
    >>> K.conv3d_transpose(x, K.ones((3, 3, 3, 8, 2)), (None, 8, 8, 8, 8), strides=2, padding="same").shape
    (None, 8, 8, 8, 8)
    """
    return _convolve_transposed("conv3d_transpose", 3, x, kernel, output_shape, strides, padding, data_format, 1)


# ---------------------------------------------------------------------------------------------- by channel
def _by_channel(what: str, x: Node, kernel: Node, padding: str, strides: Sizes, dilations: Sizes) -> Node:
    """Each channel of a tensor, channels last, convolved with its own kernels; their results stand side by side."""
    n = len(strides)
    _check_channels(what, x, kernel.shape[-2], kernel)
    channels, multiplier = kernel.shape[n:]
    several = isinstance(channels, int) and isinstance(multiplier, int) and min(channels, multiplier) > 1
    if several and x.shape[-1] == channels:
        # Vectors run along channels, so each kernel gets a channel of its own.
        spread = shape.broadcast_to(shape.expand_dims(x, x.ndim), (*x.shape, multiplier))
        x = shape.reshape(spread, (*x.shape[:-1], channels * multiplier))
        kernel = shape.reshape(kernel, (*kernel.shape[:n], channels * multiplier, 1))
    a = _padded(what, x, kernel.shape[:n], padding, strides, dilations)
    groups = shape.expand_dims(a, a.ndim)
    y = conv_ops.conv(groups, shape.expand_dims(kernel, n + 1), strides, dilations)
    return shape.reshape(y, (*y.shape[:-2], y.shape[-2] * y.shape[-1]))


def _separate(
    what: str,
    n: int,
    x: Any,
    depthwise_kernel: Any,
    pointwise_kernel: Any,
    strides: Any,
    padding: str,
    data_format: str | None,
    dilation_rate: Any,
) -> Tensor:
    layout = normalize_data_format(data_format)
    check_padding(what, padding)
    a, w = float_pair(x, depthwise_kernel)
    _check_operands(what, a, w, n, layout, "channels, multiplier")
    steps = spatial_sizes(what, "strides", strides, n)
    rates = spatial_sizes(what, "dilation_rate", dilation_rate, n)
    a = to_channels_last(a, layout)
    point = None
    if pointwise_kernel is not None:
        point = cast(as_node(pointwise_kernel), a.dtype)
        check_spatial(what, "a pointwise kernel", point, n + 2, f"({'1, ' * n}channels * multiplier, filters)")
        if any(isinstance(size, int) and size != 1 for size in point.shape[:n]):
            raise ShapeError(
                f"{what}: expected a pointwise kernel of size 1 along the spatial axes, not {show_shape(point.shape)}"
            )
    y = _by_channel(what, a, w, padding, steps, rates)
    if point is not None:
        _check_channels(what, y, point.shape[-2], point)
        y = conv_ops.conv(y, point, (1,) * n, (1,) * n)
    return Tensor(from_channels_last(y, layout))


def separable_conv1d(
    x: Any,
    depthwise_kernel: Any,
    pointwise_kernel: Any,
    strides: Any = 1,
    padding: str = "valid",
    data_format: str | None = None,
    dilation_rate: Any = 1,
) -> Tensor:
    """A convolution of each channel by itself, then one of all channels at each step.

    Args:
        x: a tensor of shape (samples, steps, channels), or (samples, channels, steps); integers become `floatx()`.
        depthwise_kernel: of shape (steps, channels, multiplier).
        pointwise_kernel: of shape (1, channels * multiplier, filters); the results of one channel stand together.
        strides: how far the depthwise kernel moves: an int, or a sequence of one.
        padding: "valid" or "same", as for `conv1d`.
        data_format: "channels_last" or "channels_first"; None takes `image_data_format()`.
        dilation_rate: the distance of the depthwise kernel's elements: an int, or a sequence of one.

    Returns:
        A float tensor of shape (samples, new steps, filters), or (samples, filters, new steps).

    Raises:
        ValueError: the data format, the padding, a stride or a dilation is not one of these. ShapeError: the ranks,
            the channels or the pointwise kernel do not fit, or there are too few steps.

    >>> from graphkb import backend as K
    >>> x = K.placeholder((None, 10, 3))
    >>> K.separable_conv1d(x, K.ones((3, 3, 2)), K.ones((1, 6, 5))).shape
    (None, 8, 5)
    """
    return _separate(
        "separable_conv1d", 1, x, depthwise_kernel, pointwise_kernel, strides, padding, data_format, dilation_rate
    )


def separable_conv2d(
    x: Any,
    depthwise_kernel: Any,
    pointwise_kernel: Any,
    strides: Any = (1, 1),
    padding: str = "valid",
    data_format: str | None = None,
    dilation_rate: Any = (1, 1),
) -> Tensor:
    """A convolution of each channel by itself, then one of all channels at each pixel.

    Args:
        x: a tensor of shape (samples, rows, columns, channels), or (samples, channels, rows, columns); integers
            become `floatx()`.
        depthwise_kernel: of shape (rows, columns, channels, multiplier).
        pointwise_kernel: of shape (1, 1, channels * multiplier, filters); the results of one channel stand together.
        strides: how far the depthwise kernel moves: two ints, or one for both.
        padding: "valid" or "same", as for `conv2d`.
        data_format: "channels_last" or "channels_first"; None takes `image_data_format()`.
        dilation_rate: the distances of the depthwise kernel's elements: two ints, or one for both.

    Returns:
        A float tensor of shape (samples, new rows, new columns, filters), or with the filters second.

    Raises:
        ValueError: the data format, the padding, a stride or a dilation is not one of these. ShapeError: the ranks,
            the channels or the pointwise kernel do not fit, or the images are too small.

    >>> from graphkb import backend as K
    >>> x = K.placeholder((None, 8, 8, 3))
    >>> K.separable_conv2d(x, K.ones((3, 3, 3, 2)), K.ones((1, 1, 6, 5)), padding="same").shape
    (None, 8, 8, 5)
    """
    return _separate(
        "separable_conv2d", 2, x, depthwise_kernel, pointwise_kernel, strides, padding, data_format, dilation_rate
    )


def depthwise_conv2d(
    x: Any,
    depthwise_kernel: Any,
    strides: Any = (1, 1),
    padding: str = "valid",
    data_format: str | None = None,
    dilation_rate: Any = (1, 1),
) -> Tensor:
    """A convolution of each channel by itself.

    Args:
        x: a tensor of shape (samples, rows, columns, channels), or (samples, channels, rows, columns); integers
            become `floatx()`.
        depthwise_kernel: of shape (rows, columns, channels, multiplier).
        strides: how far the kernel moves along rows and columns: two ints, or one for both.
        padding: "valid" or "same", as for `conv2d`.
        data_format: "channels_last" or "channels_first"; None takes `image_data_format()`.
        dilation_rate: the distances of the kernel's elements: two ints, or one for both.

    Returns:
        A float tensor of shape (samples, new rows, new columns, channels * multiplier), or with the channels second;
        the results of one channel stand together.

    Raises:
        ValueError: the data format, the padding, a stride or a dilation is not one of these. ShapeError: the ranks
            or the channels do not fit, or the images are too small.

    >>> from graphkb import backend as K
    >>> x = K.reshape(K.variable([1, 2, 3, 4]), (1, 1, 2, 2))
    >>> K.eval(K.flatten(K.depthwise_conv2d(x, K.ones((1, 2, 2, 1))))).tolist()
    [4.0, 6.0]
    """
    return _separate("depthwise_conv2d", 2, x, depthwise_kernel, None, strides, padding, data_format, dilation_rate)
