"""Spatial axes: layouts, strides and paddings, as convolution and pooling share them."""

from __future__ import annotations

from collections.abc import Sequence
from operator import index
from typing import Any

from graphkb.backend.promotion import pair, to_float
from graphkb.ir.dims import Dim, Shape, maximum, show_shape
from graphkb.ir.errors import ShapeError, shown
from graphkb.ir.graph import built_at
from graphkb.ir.node import Node
from graphkb.ops import shape
from graphkb.ops.conv import reach

Sizes = tuple[int, ...]


def spatial_sizes(what: str, name: str, value: Any, count: int) -> Sizes:
    """One positive integer for each spatial axis, from as many or from one for all; ValueError otherwise."""
    try:
        sizes = tuple([index(v) for v in value]) if hasattr(value, "__iter__") else (index(value),) * count
    except TypeError:
        sizes = ()
    if len(sizes) != count or min(sizes) < 1:
        wanted = f"{count} positive integers" if count > 1 else "a positive integer"
        raise ValueError(f"{what}: expected {wanted} as {name}, not {shown(value)}")
    return sizes


def check_padding(what: str, padding: Any, modes: Sequence[str] = ("valid", "same")) -> None:
    """ValueError unless the padding is one of the modes."""
    if not isinstance(padding, str) or padding not in modes:
        raise ValueError(f"{what}: expected the padding {' or '.join(map(repr, modes))}, not {shown(padding)}")


def check_spatial(what: str, name: str, x: Node, rank: int, parts: str) -> None:
    """ShapeError unless a tensor has a rank; `parts` names its axes."""
    if x.ndim != rank:
        raise ShapeError(
            f"{what}: expected {name} of shape {parts}, not one of shape {show_shape(x.shape)}{built_at(x)}"
        )


def check_reach(what: str, size: Dim, reach: Dim) -> None:
    """ShapeError when an axis is known to be shorter than a window."""
    if isinstance(size, int) and isinstance(reach, int) and size < reach:
        raise ShapeError(f"{what}: a window that reaches over {reach} elements does not fit into an axis of {size}")


def float_pair(x: Any, kernel: Any) -> tuple[Node, Node]:
    """Two operands as nodes of one float dtype."""
    a, b = pair(x, kernel)
    return to_float(a), to_float(b)


def to_channels_last(x: Node, layout: str) -> Node:
    """The tensor with its second axis moved to the end, if that is where its channels are."""
    return shape.transpose(x, (0, *range(2, x.ndim), 1)) if layout == "channels_first" else x


def from_channels_last(x: Node, layout: str) -> Node:
    """The opposite of `to_channels_last`."""
    return shape.transpose(x, (0, x.ndim - 1, *range(1, x.ndim - 1))) if layout == "channels_first" else x


def same_count(size: Dim, stride: int) -> Dim:
    """How many windows "same" padding gives: one for each stride begun."""
    return (size + stride - 1) // stride


def same_padding(size: Dim, length: Dim, stride: int, dilation: int = 1) -> tuple[Dim, Dim]:
    """How many elements "same" padding adds before and after an axis, the odd one after, as in TensorFlow."""
    total = maximum((same_count(size, stride) - 1) * stride + reach(length, dilation) - size, 0)
    return total // 2, total - total // 2


def paddings(padding: str, sizes: Shape, lengths: Shape, strides: Sizes, dilations: Sizes) -> list[tuple[Dim, Dim]]:
    """How many elements a mode adds before and after each spatial axis."""
    axes = zip(sizes, lengths, strides, dilations)
    if padding == "same":
        return [same_padding(*axis) for axis in axes]
    if padding == "causal":
        return [(reach(length, dilation) - 1, 0) for _, length, _, dilation in axes]
    return [(0, 0) for _ in axes]


def surrounded(x: Shape, around: Sequence[tuple[Dim, Dim]], first: int) -> tuple[Shape, Shape]:
    """Where a tensor starts within its padded shape, and that shape; `first` is the first spatial axis."""
    all_axes = [(0, 0)] * first + list(around)
    all_axes += [(0, 0)] * (len(x) - len(all_axes))
    return tuple([b for b, _ in all_axes]), tuple([n + b + a for n, (b, a) in zip(x, all_axes)])
