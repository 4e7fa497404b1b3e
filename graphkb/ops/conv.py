"""The general convolution: any number of spatial axes, strides, dilations and groups, channels last."""

from __future__ import annotations

import itertools
from math import prod
from typing import Any

import numpy as np

from graphkb.ir.dims import Dim, Shape, maximum, minimum, show_shape
from graphkb.ir.errors import DTypeError, ShapeError
from graphkb.ir.leaves import Array
from graphkb.ir.node import Node, make
from graphkb.ir.op import define
from graphkb.ir.types import NUMBERS, TensorType
from graphkb.ops import shape
from graphkb.ops.linalg import dot
from graphkb.ops.window import check_sizes, window_count

Sizes = tuple[int, ...]
# How many elements of unrolled windows the NumPy meaning holds at a time.
_UNROLLED = 1 << 23


def reach(length: Dim, dilation: int) -> Dim:
    """How many elements a dilated kernel spans, the first and the last counted."""
    return (length - 1) * dilation + 1


def _infer_conv(x: TensorType, kernel: TensorType, strides: Sizes, dilations: Sizes) -> TensorType:
    if x.dtype != kernel.dtype:
        raise DTypeError(f"conv: the operands must have one dtype, not {x.dtype} and {kernel.dtype}")
    if x.dtype not in NUMBERS:
        raise DTypeError(f"conv: {x.dtype} is not allowed, expected a number type")
    n = len(strides)
    check_sizes("conv", "strides", strides)
    check_sizes("conv", "dilations", dilations)
    shapes = f"{show_shape(x.shape)} and {show_shape(kernel.shape)}"
    if len(dilations) != n or x.ndim != kernel.ndim or x.ndim - n not in (2, 3):
        raise ShapeError(f"conv: shapes {shapes} do not fit {n} strides and {len(dilations)} dilations")
    pairs = [(x.shape[-1], kernel.shape[-2]), *zip(x.shape[n + 1 : -1], kernel.shape[n:-2])]
    for a, b in pairs:
        if isinstance(a, int) and isinstance(b, int) and a != b:
            raise ShapeError(f"conv: shapes {shapes} do not fit: the operand has {a} channels, the kernel takes {b}")
    if any(k == 0 for k in kernel.shape[:n]):
        raise ShapeError(f"conv: the kernel of shape {show_shape(kernel.shape)} has an empty spatial axis")
    counts = [
        window_count("conv", size, reach(length, dilation), stride)
        for size, length, stride, dilation in zip(x.shape[1 : n + 1], kernel.shape, strides, dilations)
    ]
    groups = [a if isinstance(a, int) else b for a, b in pairs[1:]]
    return TensorType(x.dtype, (x.shape[0], *counts, *groups, kernel.shape[-1]))


def _numpy_conv(x: Array, kernel: Array, strides: Sizes, dilations: Sizes) -> Array:
    n = len(strides)
    wide: Any = np.float32 if x.dtype == np.float16 else x.dtype
    result_dtype, grouped = x.dtype, x.ndim == n + 3
    x, kernel = x.astype(wide, copy=False), kernel.astype(wide, copy=False)
    if not grouped:
        x, kernel = np.expand_dims(x, -2), np.expand_dims(kernel, -3)
    taps = kernel.shape[:n]
    reaches = [(k - 1) * d + 1 for k, d in zip(taps, dilations)]
    counts = [(s - r) // stride + 1 for s, r, stride in zip(x.shape[1:], reaches, strides)]
    out = np.zeros((x.shape[0], *counts, *kernel.shape[n:-2], kernel.shape[-1]), wide)
    if out.size and x.size:
        if kernel.shape[-2] == 1 and prod(taps) <= 64:
            _add_taps(out, x, kernel, strides, dilations)
        else:
            _multiply_windows(out, x, kernel, reaches, strides, dilations)
    return (out if grouped else out[..., 0, :]).astype(result_dtype, copy=False)


def _add_taps(out: Array, x: Array, kernel: Array, strides: Sizes, dilations: Sizes) -> None:
    """One channel a group: nothing to contract but the few elements of the kernel."""
    n = len(strides)
    for tap in itertools.product(*map(range, kernel.shape[:n])):
        ranges = zip(tap, out.shape[1:], strides, dilations)
        part = x[(slice(None), *[slice(k * d, k * d + (c - 1) * s + 1, s) for k, c, s, d in ranges])]
        out += part * kernel[tap][:, 0]


def _multiply_windows(
    out: Array, x: Array, kernel: Array, reaches: list[int], strides: Sizes, dilations: Sizes
) -> None:
    """The windows side by side as a matrix, for some samples at a time, times the kernel as a matrix."""
    n = len(strides)
    groups, channels = x.shape[-2:]
    view = np.lib.stride_tricks.sliding_window_view(x, reaches, axis=tuple(range(1, n + 1)))
    index: tuple[Any, ...] = tuple([slice(None, None, s) for s in strides])
    index = (slice(None), *index, ..., *[slice(None, None, d) for d in dilations])
    order = (n + 1, *range(n + 1), *range(n + 3, 2 * n + 3), n + 2)  # groups, samples, counts…, taps…, channels
    windows = view[index].transpose(order)
    depth = prod(kernel.shape[:n]) * channels
    matrix = np.moveaxis(kernel, n, 0).reshape(groups, depth, kernel.shape[-1])
    step = max(1, _UNROLLED // max(1, prod(out.shape[1 : n + 1]) * depth * groups))
    for first in range(0, len(x), step):
        part = windows[:, first : first + step]
        product = np.matmul(part.reshape(groups, -1, depth), matrix)
        target = out[first : first + step]
        target[...] = np.moveaxis(product.reshape(groups, *target.shape[:-2], target.shape[-1]), 0, -2)


def _conv_vjp(g: Node, y: Node, x: Node, kernel: Node, strides: Sizes, dilations: Sizes) -> tuple[Node, Node]:
    n = len(strides)
    dx = conv_transpose(g, kernel, x.shape[1 : n + 1], strides, dilations, (0,) * n)
    return dx, _kernel_gradient(g, x, kernel.shape[:n], strides, dilations)


def _kernel_gradient(g: Node, x: Node, taps: Shape, strides: Sizes, dilations: Sizes) -> Node:
    """dk[t, i, o] = sum over samples b and places p of x[b, p * stride + t * dilation, i] g[b, p, o].

    A convolution again: samples and channels change places, strides and dilations, too. A gradient without places is
    padded to one, since a kernel has at least one tap. A kernel of a single tap needs no more than a dot product.
    """
    n = len(strides)
    if all(k == 1 for k in taps) and x.ndim == n + 2:
        seen = shape.slice_(x, (0,) * x.ndim, (*g.shape[:-1], x.shape[-1]), (1, *strides, 1))
        places = tuple(range(n + 1))
        return shape.reshape(dot(seen, g, (), (), places, places), (*taps, x.shape[-1], g.shape[-1]))
    counts = [maximum(c, 1) for c in g.shape[1 : n + 1]]
    used = [(c - 1) * s + reach(k, d) for c, s, k, d in zip(counts, strides, taps, dilations)]
    rest = x.shape[n + 1 :]
    known = [minimum(u, s) for u, s in zip(used, x.shape[1 : n + 1])]
    x = shape.slice_(x, (0,) * x.ndim, (x.shape[0], *known, *rest))
    x = shape.pad(x, (0,) * x.ndim, (1,) * x.ndim, (x.shape[0], *used, *rest))
    g = shape.pad(g, (0,) * g.ndim, (1,) * g.ndim, (g.shape[0], *counts, *g.shape[n + 1 :]))
    last = x.ndim - 1
    inner = tuple(range(1, last))
    dk = conv(shape.transpose(x, (last, *inner, 0)), shape.transpose(g, (*inner, 0, last)), dilations, strides)
    return shape.transpose(dk, (*inner, 0, last))


CONV = define(
    "conv",
    kind="dot",
    params=("strides", "dilations"),
    infer=_infer_conv,
    numpy=_numpy_conv,
    vjp=_conv_vjp,
    doc="y[b, p, (g,) o] = sum over t, i of x[b, p * stride + t * dilation, (g,) i] kernel[t, (g,) i, o]: no padding; "
    "samples first, channels last, before them an axis of groups or none.",
)


def conv(x: Node, kernel: Node, strides: Sizes, dilations: Sizes) -> Node:
    """The convolution of `x` (samples, places…, channels) with `kernel` (taps…, channels, outputs).

    Both may have an axis of groups before the channels, which the result has, too. The kernel is not turned round.
    Padding is the caller's: `shape.pad`.
    """
    return make(CONV, (x, kernel), {"strides": strides, "dilations": dilations})


def conv_transpose(x: Node, kernel: Node, sizes: Shape, strides: Sizes, dilations: Sizes, before: Shape) -> Node:
    """The gradient of a convolution's operand: each element of `x` spreads the kernel over the places it came from.

    Args:
        x: what the convolution would give, of shape (samples, places…, (groups,) outputs).
        kernel: of the convolution, of shape (taps…, (groups,) channels, outputs).
        sizes: the spatial sizes of the convolution's operand.
        strides, dilations: of the convolution.
        before: how many elements of padding stood before the operand.

    Returns:
        A node of shape (samples, sizes…, (groups,) channels).
    """
    n = len(strides)
    reaches = [reach(k, d) for k, d in zip(kernel.shape, dilations)]
    ends = (0,) * (x.ndim - n - 1)
    starts = (0, *[r - 1 - b for r, b in zip(reaches, before)], *ends)
    steps = (1, *strides, *[1 for _ in ends])
    wide = (x.shape[0], *[s + r - 1 for s, r in zip(sizes, reaches)], *x.shape[n + 1 :])
    last = kernel.ndim - 1
    turned = shape.transpose(shape.reverse(kernel, range(n)), (*range(last - 1), last, last - 1))
    return conv(shape.pad(x, starts, steps, wide), turned, (1,) * n, dilations)
