"""Sums of the gradients of one node: those of its slices are joined rather than added up."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

from graphkb.gradient_masks import Masked, add
from graphkb.ir.node import Node
from graphkb.ops import leaf, shape


def add_up(grads: Sequence[Masked]) -> Masked:
    """The sum of the gradients that the users of one node give it."""
    return reduce(add, join_pads(grads) if len(grads) > 1 else grads)


def join_pads(grads: Sequence[Masked]) -> list[Masked]:
    """The terms of a sum, where those that fill different parts of zeros along one axis have become one.

    Such are the gradients of slices: side by side they need neither zeros nor sums.
    """
    plain = [g.value for g in grads if g.where is None]
    pads = [node for node in plain if node.op is shape.PAD and all(step == 1 for step in node.attrs["steps"])]
    for axis in range(grads[0].value.ndim) if len(pads) > 1 else ():
        along = sorted([p for p in pads if _lies_along(p, axis)], key=lambda p: p.attrs["starts"][axis])
        starts = [p.attrs["starts"][axis] for p in along]
        ends = [start + p.inputs[0].shape[axis] for start, p in zip(starts, along)]
        if len(along) < 2 or any(end > start for end, start in zip(ends, starts[1:])):
            continue
        parts: list[Node] = []
        for at, start, p in zip([0, *ends], starts, along):
            parts += [*_zeros(p, axis, start - at), p.inputs[0]]
        parts += _zeros(along[-1], axis, along[-1].shape[axis] - ends[-1])
        joined = Masked(shape.concatenate(parts, axis))
        first = next(i for i, g in enumerate(grads) if g.value in along)
        return [joined if i == first else g for i, g in enumerate(grads) if i == first or g.value not in along]
    return list(grads)


def _lies_along(pad: Node, axis: int) -> bool:
    """Whether a part of known place and size fills its zeros along all axes but one."""
    (x,) = pad.inputs
    known = all(isinstance(n, int) for n in (pad.attrs["starts"][axis], x.shape[axis], pad.shape[axis]))
    return known and all(n == m for i, (n, m) in enumerate(zip(x.shape, pad.shape)) if i != axis)


def _zeros(like: Node, axis: int, size: int) -> list[Node]:
    dims = (*like.shape[:axis], size, *like.shape[axis + 1 :])
    return [shape.broadcast_to(leaf.constant(0, like.dtype), dims)] if size else []
