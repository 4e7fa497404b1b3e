"""Shape ops: views (reshape, transpose, broadcast, slice) and moves (pad, concatenate, interleave)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from operator import index
from typing import Any

import numpy as np

from graphkb.ir.dims import Dim, Expr, Shape, maximum, minimum, product, show_shape
from graphkb.ir.errors import DTypeError, ShapeError
from graphkb.ir.leaves import Array
from graphkb.ir.node import Node, make
from graphkb.ir.op import define
from graphkb.ir.types import TensorType
from graphkb.ops.elementwise import broadcast_shapes, unbroadcast


def _infer_reshape(x: TensorType, shape: Shape) -> TensorType:
    old, new = x.size, product(shape)
    if isinstance(old, int) and isinstance(new, int) and old != new:
        raise ShapeError(
            f"reshape: {show_shape(x.shape)} has {old} elements, the new shape {show_shape(shape)} has {new}"
        )
    return TensorType(x.dtype, shape)


RESHAPE = define(
    "reshape",
    kind="view",
    params=("shape",),
    infer=_infer_reshape,
    numpy=lambda x, shape: np.reshape(x, shape),
    vjp=lambda g, y, x, shape: (reshape(g, x.shape),),
    doc="The same elements in row-major order under another shape.",
)


def reshape(x: Node, shape: Shape) -> Node:
    """`x` with another shape of as many elements (no -1 here: the K function resolves it)."""
    if shape == x.shape:
        return x
    if x.op is RESHAPE:
        return reshape(x.inputs[0], shape)
    return make(RESHAPE, (x,), {"shape": shape})


def _infer_transpose(x: TensorType, axes: tuple[int, ...]) -> TensorType:
    if sorted(axes) != list(range(x.ndim)):
        raise ShapeError(f"transpose: axes {axes} are not a permutation of the {x.ndim} axes of {show_shape(x.shape)}")
    return TensorType(x.dtype, tuple([x.shape[a] for a in axes]))


def _inverse(axes: tuple[int, ...]) -> tuple[int, ...]:
    inverse = [0] * len(axes)
    for i, a in enumerate(axes):
        inverse[a] = i
    return tuple(inverse)


TRANSPOSE = define(
    "transpose",
    kind="view",
    params=("axes",),
    infer=_infer_transpose,
    numpy=lambda x, axes: np.transpose(x, axes),
    vjp=lambda g, y, x, axes: (transpose(g, _inverse(axes)),),
    doc="Axis i of the result is axis axes[i] of the operand.",
)


def transpose(x: Node, axes: tuple[int, ...]) -> Node:
    """`x` with its axes permuted."""
    return x if axes == tuple(range(x.ndim)) else make(TRANSPOSE, (x,), {"axes": axes})


def _infer_broadcast_to(x: TensorType, shape: Shape) -> TensorType:
    if any(isinstance(size, int) and size < 0 for size in shape):
        raise ShapeError(f"broadcast_to: the shape {show_shape(shape)} has a negative size")
    if x.ndim > len(shape):
        raise ShapeError(f"broadcast_to: {show_shape(x.shape)} has more axes than {show_shape(shape)}")
    for a, b in zip(reversed(x.shape), reversed(shape)):
        if isinstance(a, int) and a != 1 and isinstance(b, int) and a != b:
            raise ShapeError(f"broadcast_to: {show_shape(x.shape)} does not broadcast to {show_shape(shape)}")
    return TensorType(x.dtype, shape)


BROADCAST_TO = define(
    "broadcast_to",
    kind="view",
    params=("shape",),
    infer=_infer_broadcast_to,
    numpy=lambda x, shape: np.broadcast_to(x, shape),
    vjp=lambda g, y, x, shape: (unbroadcast(g, x),),
    doc="The operand repeated to a shape, by NumPy's rules.",
)


def broadcast_to(x: Node, shape: Shape) -> Node:
    """`x` repeated to `shape`."""
    return x if x.shape == shape else make(BROADCAST_TO, (x,), {"shape": shape})


Steps = tuple[int, ...]


def _infer_slice(x: TensorType, starts: Shape, sizes: Shape, steps: Steps) -> TensorType:
    if not len(starts) == len(sizes) == len(steps) == x.ndim:
        raise ShapeError(f"slice: {len(starts)} ranges for the {x.ndim} axes of {show_shape(x.shape)}")
    for axis, (n, start, size, step) in enumerate(zip(x.shape, starts, sizes, steps)):
        if not (isinstance(n, int) and isinstance(start, int) and isinstance(size, int)) or size == 0:
            continue
        last = start + (size - 1) * step
        if not (0 <= start < n and 0 <= last < n):
            raise ShapeError(f"slice: axis {axis} of {show_shape(x.shape)} has no elements {start} to {last}")
    return TensorType(x.dtype, sizes)


def _slices(starts: Sequence[int], sizes: Sequence[int], steps: Steps) -> tuple[slice, ...]:
    out = []
    for start, size, step in zip(starts, sizes, steps):
        stop = start + size * step
        out.append(slice(0, 0) if size == 0 else slice(start, None if stop < 0 else stop, step))
    return tuple(out)


SLICE = define(
    "slice",
    kind="view",
    params=("starts", "sizes", "steps"),
    infer=_infer_slice,
    numpy=lambda x, starts, sizes, steps: x[_slices(starts, sizes, steps)],
    vjp=lambda g, y, x, starts, sizes, steps: (pad(g, starts, steps, x.shape),),
    doc="Element start + i * step along each axis, for i < size; steps may be negative but not 0.",
)


def slice_(x: Node, starts: Shape, sizes: Shape, steps: Steps | None = None) -> Node:
    """`sizes` elements from `starts` on, along every axis."""
    steps = steps or (1,) * x.ndim
    if sizes == x.shape and all(s == 1 for s in steps) and all(s == 0 for s in starts):
        return x
    return make(SLICE, (x,), {"starts": starts, "sizes": sizes, "steps": steps})


def slice_bounds(n: Dim, item: slice) -> tuple[Dim, Dim, int]:
    """Python's slice of an axis of size n as (start, size, step); exact for unknown n too.

    A symbolic start or stop counts from the beginning of the axis: its sign is not known when the graph is built.
    """
    step = 1 if item.step is None else index(item.step)
    if step == 0:
        raise ValueError("slice: the step must not be 0")
    if isinstance(n, int) and not isinstance(item.start, Expr) and not isinstance(item.stop, Expr):
        first, end, step = item.indices(n)
        return first, len(range(first, end, step)), step
    low, high = (0, n) if step > 0 else (-1, n - 1)

    def clamp(value: Any, default: Dim) -> Dim:
        if value is None:
            return default
        if isinstance(value, Expr):
            return maximum(minimum(value, high), low)
        value = index(value)
        return maximum(n + value, low) if value < 0 else minimum(value, high)

    start = clamp(item.start, low if step > 0 else high)
    stop = clamp(item.stop, high if step > 0 else low)
    length = stop - start if step > 0 else start - stop
    return start, maximum((length + abs(step) - 1) // abs(step), 0), step


def reverse(x: Node, axes: Sequence[int]) -> Node:
    """`x` with the order along the axes turned round."""
    flip = {a % x.ndim for a in axes}
    starts = tuple(maximum(n - 1, 0) if a in flip else 0 for a, n in enumerate(x.shape))
    return slice_(x, starts, x.shape, tuple(-1 if a in flip else 1 for a in range(x.ndim)))


def _numpy_pad(x: Array, starts: Sequence[int], steps: Steps, shape: tuple[int, ...]) -> Array:
    out = np.zeros(shape, x.dtype)
    out[_slices(starts, x.shape, steps)] = x
    return out


def _infer_pad(x: TensorType, starts: Shape, steps: Steps, shape: Shape) -> TensorType:
    if not len(starts) == len(steps) == len(shape) == x.ndim:
        raise ShapeError(f"pad: {len(shape)} axes for the operand's {x.ndim}, {show_shape(x.shape)}")
    for axis, (n, start, step, total) in enumerate(zip(x.shape, starts, steps, shape)):
        if not (isinstance(n, int) and isinstance(start, int) and isinstance(total, int)) or n == 0:
            continue
        last = start + (n - 1) * step
        if not (0 <= start < total and 0 <= last < total):
            raise ShapeError(f"pad: axis {axis} of {show_shape(x.shape)} does not fit into {show_shape(shape)}")
    return TensorType(x.dtype, shape)


PAD = define(
    "pad",
    kind="move",
    params=("starts", "steps", "shape"),
    infer=_infer_pad,
    numpy=_numpy_pad,
    vjp=lambda g, y, x, starts, steps, shape: (slice_(g, starts, x.shape, steps),),
    doc="Zeros of a shape, with the operand's element i at start + i * step along each axis: the opposite of slice.",
)


def pad(x: Node, starts: Shape, steps: Steps, shape: Shape) -> Node:
    """`x` placed into zeros of `shape`."""
    if shape == x.shape and all(s == 1 for s in steps):
        return x
    return make(PAD, (x,), {"starts": starts, "steps": steps, "shape": shape})


def _infer_concatenate(*types: TensorType, axis: int) -> TensorType:
    first = types[0]
    total: Dim = 0
    dims = list(first.shape)
    for t in types:
        if t.dtype != first.dtype:
            raise DTypeError(f"concatenate: the operands must have one dtype, not {first.dtype} and {t.dtype}")
        if t.ndim != first.ndim:
            raise ShapeError(f"concatenate: shapes {show_shape(first.shape)} and {show_shape(t.shape)} differ in rank")
        for i, (a, b) in enumerate(zip(dims, t.shape)):
            if i == axis or a == b:
                continue
            if isinstance(a, int) and isinstance(b, int):
                raise ShapeError(
                    f"concatenate: shapes {show_shape(first.shape)} and {show_shape(t.shape)} differ along axis {i}, "
                    f"which is not the axis of concatenation ({axis})"
                )
            dims[i] = a if isinstance(a, int) else b
        total = total + t.shape[axis]
    dims[axis] = total
    return TensorType(first.dtype, tuple(dims))


def _concatenate_vjp(g: Node, y: Node, *inputs: Node, axis: int) -> tuple[Node, ...]:
    grads = []
    offset: Dim = 0
    for x in inputs:
        starts = tuple(offset if a == axis else 0 for a in range(g.ndim))
        grads.append(slice_(g, starts, x.shape))
        offset = offset + x.shape[axis]
    return tuple(grads)


CONCATENATE = define(
    "concatenate",
    kind="move",
    params=("axis",),
    infer=_infer_concatenate,
    numpy=lambda *arrays, axis: np.concatenate(arrays, axis),
    vjp=_concatenate_vjp,
    doc="The operands one after the other along an axis.",
)


def concatenate(nodes: Sequence[Node], axis: int) -> Node:
    """The nodes joined along a non-negative axis."""
    return nodes[0] if len(nodes) == 1 else make(CONCATENATE, tuple(nodes), {"axis": axis})


def _counts(shape: Shape, steps: Steps) -> list[Shape]:
    """For every phase of the steps, in row-major order, how many elements of a shape belong to it."""
    return [
        tuple([(n - r + s - 1) // s for n, r, s in zip(shape, phase, steps)])
        for phase in itertools.product(*map(range, steps))
    ]


def _infer_interleave(*types: TensorType, steps: Steps, shape: Shape) -> TensorType:
    if len(steps) != len(shape) or len(types) != math.prod(steps):
        raise ShapeError(f"interleave: {len(types)} operands for steps {steps} into {show_shape(shape)}")
    for t, counts in zip(types, _counts(shape, steps)):
        if t.dtype != types[0].dtype:
            raise DTypeError(f"interleave: the operands must have one dtype, not {types[0].dtype} and {t.dtype}")
        known = zip(t.shape, counts)
        if t.ndim != len(shape) or any(isinstance(a, int) and isinstance(b, int) and a != b for a, b in known):
            raise ShapeError(
                f"interleave: an operand has the shape {show_shape(t.shape)}, its places in {show_shape(shape)} "
                f"are {show_shape(counts)}"
            )
    return TensorType(types[0].dtype, shape)


def _numpy_interleave(*arrays: Array, steps: Steps, shape: tuple[int, ...]) -> Array:
    out = np.empty(shape, arrays[0].dtype)
    for part, phase in zip(arrays, itertools.product(*map(range, steps))):
        out[tuple(slice(r, None, s) for r, s in zip(phase, steps))] = part
    return out


def _interleave_vjp(g: Node, y: Node, *inputs: Node, steps: Steps, shape: Shape) -> tuple[Node, ...]:
    # A phase without elements may begin behind the end.
    return tuple([
        slice_(g, tuple([minimum(r, n) for r, n in zip(phase, shape)]), x.shape, steps)
        for x, phase in zip(inputs, itertools.product(*map(range, steps)))
    ])  # fmt: skip


INTERLEAVE = define(
    "interleave",
    kind="move",
    params=("steps", "shape"),
    infer=_infer_interleave,
    numpy=_numpy_interleave,
    vjp=_interleave_vjp,
    doc="Operands that take turns: along each axis element i comes from phase i % step, where it is number i // step; "
    "the operands stand in row-major order of their phases.",
)


def interleave(nodes: Sequence[Node], steps: Steps, shape: Shape) -> Node:
    """Nodes that take turns along the axes, one for each phase of the steps, as a node of `shape`."""
    return nodes[0] if len(nodes) == 1 else make(INTERLEAVE, tuple(nodes), {"steps": steps, "shape": shape})


def expand_dims(x: Node, axis: int) -> Node:
    """`x` with a new axis of size 1 before position `axis` (non-negative)."""
    return reshape(x, (*x.shape[:axis], 1, *x.shape[axis:]))


def stack(nodes: Sequence[Node], axis: int) -> Node:
    """The nodes, broadcast to one shape, along a new axis."""
    shape = broadcast_shapes("stack", *[n.shape for n in nodes])
    return concatenate([expand_dims(broadcast_to(n, shape), axis) for n in nodes], axis)
