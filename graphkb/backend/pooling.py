"""Pooling of K: the largest or the mean element of each window."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from operator import mul
from typing import Any

from graphkb.backend.config import normalize_data_format
from graphkb.backend.promotion import as_node, to_float
from graphkb.backend.spatial import (
    Sizes,
    check_padding,
    check_reach,
    check_spatial,
    paddings,
    spatial_sizes,
    surrounded,
)
from graphkb.backend.tensors import Tensor
from graphkb.ir.dims import Dim
from graphkb.ir.errors import shown
from graphkb.ir.node import Node
from graphkb.ops import leaf, shape, window
from graphkb.ops.elementwise import cast, maximum, minimum

_AXES = {2: "rows, columns", 3: "depth, rows, columns"}


def _pool(
    what: str, n: int, x: Any, pool_size: Any, strides: Any, padding: str, data_format: str | None, pool_mode: str
) -> Tensor:
    layout = normalize_data_format(data_format)
    check_padding(what, padding)
    if not isinstance(pool_mode, str) or pool_mode not in ("max", "avg"):
        raise ValueError(f"{what}: expected the pool_mode 'max' or 'avg', not {shown(pool_mode)}")
    node = as_node(x)
    first = 2 if layout == "channels_first" else 1
    parts = f"(samples, channels, {_AXES[n]})" if first == 2 else f"(samples, {_AXES[n]}, channels)"
    check_spatial(what, "a tensor", node, n + 2, parts)
    lengths, steps = spatial_sizes(what, "pool_size", pool_size, n), spatial_sizes(what, "strides", strides, n)
    spatial = node.shape[first : first + n]
    around = paddings(padding, spatial, lengths, steps, (1,) * n)
    starts, sizes = surrounded(node.shape, around, first)
    if padding == "valid":
        for size, length in zip(spatial, lengths):
            check_reach(what, size, length)
    none = (1,) * first, (1,) * (node.ndim - first - n)
    over, every = (*none[0], *lengths, *none[1]), (*none[0], *steps, *none[1])
    if pool_mode == "max":
        node = to_float(node) if node.dtype == "bool" else node
        return Tensor(window.window_max(window.pad_lowest(node, starts, sizes), over, every))
    node = to_float(node)
    # Sums of half-precision numbers might not fit before they are divided.
    wide = cast(node, "float32") if node.dtype == "float16" else node
    total = window.window_sum(shape.pad(wide, starts, (1,) * node.ndim, sizes), over, every)
    return Tensor(cast(total / _real_cells(total, first, spatial, lengths, steps, around), node.dtype))


def _real_cells(
    total: Node, first: int, spatial: Sequence[Dim], lengths: Sizes, strides: Sizes, around: list[tuple[Dim, Dim]]
) -> Node | float:
    """How many cells of each window are elements and not padding, in a shape that broadcasts with the sums."""
    everywhere = 1.0
    counts: list[Node] = []
    for i, (size, length, stride, (before, after)) in enumerate(zip(spatial, lengths, strides, around)):
        if before == after == 0:
            everywhere *= length
            continue
        begin = leaf.iota(total.shape[first + i]) * stride - leaf.size(before)
        real = minimum(begin + length, leaf.size(size)) - maximum(begin, 0)
        dims = tuple([d if axis == first + i else 1 for axis, d in enumerate(total.shape)])
        counts.append(shape.reshape(cast(real, total.dtype), dims))
    return reduce(mul, counts) * everywhere if counts else everywhere


def pool2d(
    x: Any,
    pool_size: Any,
    strides: Any = (1, 1),
    padding: str = "valid",
    data_format: str | None = None,
    pool_mode: str = "max",
) -> Tensor:
    """The largest element, or the mean, of each window of images.

    Args:
        x: a tensor of shape (samples, rows, columns, channels), or (samples, channels, rows, columns).
        pool_size: rows and columns of a window: two ints, or one for both.
        strides: how far the windows lie from each other: two ints, or one for both.
        padding: "valid" for windows within the images only; "same" for one window for every stride begun. What lies
            outside counts neither for the maximum nor for the mean.
        data_format: "channels_last" or "channels_first"; None takes `image_data_format()`.
        pool_mode: "max" or "avg".

    Returns:
        A tensor of shape (samples, new rows, new columns, channels), or with the channels second; means are floats.
        The gradient of a maximum goes to the first of equal elements.

    Raises:
        ValueError: the data format, the padding, the pool mode, a size or a stride is not one of these. ShapeError:
            the rank is not 4, or the images are smaller than a window.

    >>> from graphkb import backend as K
    >>> x = K.reshape(K.variable([1, 2, 3, 4, 5, 6]), (1, 2, 3, 1))
    >>> K.eval(K.flatten(K.pool2d(x, (2, 2)))).tolist()
    [5.0, 6.0]
    >>> K.eval(K.flatten(K.pool2d(x, (2, 2), (2, 2), "same", pool_mode="avg"))).tolist()
    [3.0, 4.5]
    """
    return _pool("pool2d", 2, x, pool_size, strides, padding, data_format, pool_mode)


def pool3d(
    x: Any,
    pool_size: Any,
    strides: Any = (1, 1, 1),
    padding: str = "valid",
    data_format: str | None = None,
    pool_mode: str = "max",
) -> Tensor:
    """The largest element, or the mean, of each window of volumes.

    Args:
        x: a tensor of shape (samples, depth, rows, columns, channels), or with the channels second.
        pool_size: depth, rows and columns of a window: three ints, or one for all.
        strides: how far the windows lie from each other: three ints, or one for all.
        padding: "valid" or "same", as for `pool2d`.
        data_format: "channels_last" or "channels_first"; None takes `image_data_format()`.
        pool_mode: "max" or "avg".

    Returns:
        A tensor of shape (samples, new depth, new rows, new columns, channels), or with the channels second; means
        are floats. The gradient of a maximum goes to the first of equal elements.

    Raises:
        ValueError: the data format, the padding, the pool mode, a size or a stride is not one of these. ShapeError:
            the rank is not 5, or the volumes are smaller than a window.

    >>> from graphkb import backend as K
    >>> K.pool3d(K.placeholder((None, 6, 6, 6, 2)), (2, 2, 2), (2, 2, 2)).shape
    (None, 3, 3, 3, 2)
    """
    return _pool("pool3d", 3, x, pool_size, strides, padding, data_format, pool_mode)
