"""Stacking: an op on the values of one step becomes an op on those of all steps, along a new first axis."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from graphkb.ir.dims import Dim
from graphkb.ir.node import Node, make, remake
from graphkb.ir.record import record
from graphkb.ops.shape import broadcast_to, concatenate, reshape, transpose


@record
class Value:
    """What stands for a value of the steps: with `stacked`, one slice for each step; else it is the same for all."""

    node: Node
    stacked: bool


def can_stack(node: Node, varies: Sequence[bool]) -> bool:
    """Whether an op can be done for all steps at once.

    Args:
        node: of one step.
        varies: for each of its inputs whether it differs from step to step.
    """
    if node.op.kind == "elementwise":
        return True
    match node.op.name:
        case "gather":
            return not all(varies)
        case "conv":
            return not varies[1]
        case name:
            return name in _STACKED


def stack_step(node: Node, values: Sequence[Value], length: Dim) -> Value:
    """The op on the values of all steps; `can_stack` must hold.

    Args:
        node: of one step.
        values: what its inputs are outside of the loop.
        length: the number of steps.
    """
    inputs = tuple([v.node for v in values])
    if not any(v.stacked for v in values):
        return Value(remake(node, inputs), False)
    varies = [v.stacked for v in values]
    rule = _elementwise if node.op.kind == "elementwise" else _STACKED[node.op.name]
    made = rule(node, inputs, varies, length)
    whole = (length, *node.shape)
    return Value(made if made.shape == whole else broadcast_to(made, whole), True)


_Rule = Callable[[Node, tuple[Node, ...], Sequence[bool], Dim], Node]


def _aligned(x: Node, ndim: int) -> Node:
    """A stacked value with axes of size 1 behind the first, such that it broadcasts as a slice of it does."""
    missing = ndim + 1 - x.ndim
    return reshape(x, (x.shape[0], *(1,) * missing, *x.shape[1:])) if missing > 0 else x


def _to_front(x: Node, axis: int) -> Node:
    return transpose(x, (axis, *[a for a in range(x.ndim) if a != axis])) if axis else x


def _elementwise(node: Node, inputs: tuple[Node, ...], varies: Sequence[bool], length: Dim) -> Node:
    aligned = [_aligned(x, node.ndim) if v else x for x, v in zip(inputs, varies)]
    return make(node.op, tuple(aligned), node.attrs)


def _dot(node: Node, inputs: tuple[Node, ...], varies: Sequence[bool], length: Dim) -> Node:
    attrs = {}
    for side, varying in zip("xy", varies):
        batch, contract = node.attrs[f"batch_{side}"], node.attrs[f"contract_{side}"]
        if varying:
            batch, contract = tuple([a + 1 for a in batch]), tuple([a + 1 for a in contract])
        attrs[f"batch_{side}"] = (0, *batch) if all(varies) else batch
        attrs[f"contract_{side}"] = contract
    made = make(node.op, inputs, attrs)
    if all(varies):
        return made
    # The steps are the first free axis of the operand that varies.
    first = len(node.attrs["batch_x"])
    if not varies[0]:
        first += inputs[0].ndim - first - len(node.attrs["contract_x"])
    return _to_front(made, first)


def _conv(node: Node, inputs: tuple[Node, ...], varies: Sequence[bool], length: Dim) -> Node:
    x, kernel = inputs
    made = make(node.op, (_flat(x), kernel), node.attrs)
    return reshape(made, (length, *node.shape))


def _window(node: Node, inputs: tuple[Node, ...], varies: Sequence[bool], length: Dim) -> Node:
    return reshape(make(node.op, (_flat(inputs[0]),), node.attrs), (length, *node.shape))


def _flat(x: Node) -> Node:
    """Steps and samples as one axis."""
    return reshape(x, (x.shape[0] * x.shape[1], *x.shape[2:]))


def _reduction(node: Node, inputs: tuple[Node, ...], varies: Sequence[bool], length: Dim) -> Node:
    return make(node.op, inputs, {**node.attrs, "axes": tuple([a + 1 for a in node.attrs["axes"]])})


def _along(node: Node, inputs: tuple[Node, ...], varies: Sequence[bool], length: Dim) -> Node:
    return make(node.op, inputs, {**node.attrs, "axis": node.attrs["axis"] + 1})


def _transpose(node: Node, inputs: tuple[Node, ...], varies: Sequence[bool], length: Dim) -> Node:
    return transpose(inputs[0], (0, *[a + 1 for a in node.attrs["axes"]]))


def _reshape(node: Node, inputs: tuple[Node, ...], varies: Sequence[bool], length: Dim) -> Node:
    return reshape(inputs[0], (length, *node.shape))


def _broadcast(node: Node, inputs: tuple[Node, ...], varies: Sequence[bool], length: Dim) -> Node:
    return broadcast_to(_aligned(inputs[0], node.ndim), (length, *node.shape))


def _slice(node: Node, inputs: tuple[Node, ...], varies: Sequence[bool], length: Dim) -> Node:
    attrs = node.attrs
    starts, sizes, steps = (0, *attrs["starts"]), (length, *attrs["sizes"]), (1, *attrs["steps"])
    return make(node.op, inputs, {"starts": starts, "sizes": sizes, "steps": steps})


def _pad(node: Node, inputs: tuple[Node, ...], varies: Sequence[bool], length: Dim) -> Node:
    attrs = node.attrs
    starts, steps, dims = (0, *attrs["starts"]), (1, *attrs["steps"]), (length, *attrs["shape"])
    return make(node.op, inputs, {**attrs, "starts": starts, "steps": steps, "shape": dims})


def _concatenate(node: Node, inputs: tuple[Node, ...], varies: Sequence[bool], length: Dim) -> Node:
    parts = [x if v else broadcast_to(x, (length, *x.shape)) for x, v in zip(inputs, varies)]
    return concatenate(parts, node.attrs["axis"] + 1)


def _gather(node: Node, inputs: tuple[Node, ...], varies: Sequence[bool], length: Dim) -> Node:
    axis = node.attrs["axis"]
    if varies[0]:
        return make(node.op, inputs, {"axis": axis + 1})
    return _to_front(make(node.op, inputs, {"axis": axis}), axis)


_STACKED: dict[str, _Rule] = {
    "dot": _dot,
    "conv": _conv,
    "window_sum": _window,
    "window_max": _window,
    "sum": _reduction,
    "prod": _reduction,
    "max": _reduction,
    "min": _reduction,
    "any": _reduction,
    "all": _reduction,
    "argmax": _along,
    "argmin": _along,
    "cumsum": _along,
    "cumprod": _along,
    "transpose": _transpose,
    "reshape": _reshape,
    "broadcast_to": _broadcast,
    "slice": _slice,
    "pad": _pad,
    "concatenate": _concatenate,
    "gather": _gather,
}


__all__ = ["Value", "can_stack", "stack_step"]
