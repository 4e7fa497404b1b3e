"""Which axis of a kernel's result each axis of an inner node runs along: what tells whether reductions share rows."""

from __future__ import annotations

from graphkb.ir.node import Node

# One entry per axis of a node: the number of an axis of the kernel's result; COLUMN for the axis that the kernel
# reduces; None for an axis of size 1; OTHER where the index is something else.
Axes = tuple[int | None, ...]
COLUMN = -1
OTHER = -2


def result_axes(root: Node) -> Axes:
    """The axes of the kernel's result itself."""
    return tuple([None if n == 1 else axis for axis, n in enumerate(root.shape)])


def row_axes(axes: Axes) -> Axes:
    """The axes without those of size 1: what a row of a reduction is numbered by."""
    return tuple([a for a in axes if a is not None])


def operand_axes(user: Node, axes: Axes, operand: Node) -> Axes:
    """The axes along which a user that runs along `axes` reads an operand."""
    attrs = user.attrs
    match user.op.name:
        case "transpose":
            inner: list[int | None] = [None] * len(axes)
            for position, axis in enumerate(attrs["axes"]):
                inner[axis] = axes[position]
            return tuple(inner)
        case "reshape":
            rest = iter(row_axes(tuple([a for a, n in zip(axes, user.shape) if n != 1])))
            return tuple([None if n == 1 else next(rest, OTHER) for n in operand.shape])
        case "gather":
            # The operand whose slices are taken stands in memory.
            start = attrs["axis"]
            return axes[start : start + operand.ndim] if operand is user.inputs[1] else (OTHER,) * operand.ndim
        case "slice":
            whole = zip(axes, attrs["starts"], attrs["steps"], user.shape, operand.shape)
            return tuple([a if start == 0 and step == 1 and m == n else OTHER for a, start, step, m, n in whole])
        case _:
            offset = len(axes) - operand.ndim
            return tuple([None if n == 1 else axes[offset + i] for i, n in enumerate(operand.shape)])


def reduced_axes(core: Node, axes: Axes, column: int) -> Axes:
    """The axes of the operand of a reduction over its last axis, whose result runs along `axes`."""
    kept = axes[:-1] if core.attrs.get("keepdims", False) else axes
    return (*kept, None if core.inputs[0].shape[-1] == 1 else column)


def reduces_last_axis(core: Node) -> bool:
    """Whether a reduction runs over the last axis of its operand and no other."""
    last = core.inputs[0].ndim - 1
    return (core.attrs.get("axis") == last) or (core.attrs.get("axes") == (last,))
