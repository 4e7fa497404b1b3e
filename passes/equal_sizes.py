"""Equal sizes: which sizes each operation needs to be equal, told once for unification and for guards."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain
from typing import TypeAlias

from graphkb.ir.dims import Dim, Shape
from graphkb.ir.node import Node
from graphkb.ir.types import parts

Pairs: TypeAlias = Iterator[tuple[Dim, Dim]]

# Operations that need nothing to be equal: what they demand is that sizes are positive and slices lie inside.
_FREE = {
    "transpose", "slice", "guard", "stop_gradient", "pad", "pad_value", "cumsum", "cumprod", "item", "gather",
    "window_sum", "window_max", "window_argmax",
    "sum", "prod", "max", "min", "any", "all", "variance", "argmax", "argmin",
}  # fmt: skip


def is_told(node: Node) -> bool:
    """Whether `equal_sizes` tells all that an operation demands; of others that is known only when they run."""
    return node.op.kind in ("elementwise", "leaf", "marker") or node.op.name in _FREE | set(_MEETINGS)


def equal_sizes(node: Node) -> Pairs:
    """Pairs of sizes that an operation needs to be equal, as far as they are told; sizes of 1 broadcast."""
    if node.op.kind in ("elementwise", "leaf", "marker"):
        return _aligned(node.shape, *[x.shape for x in node.inputs])
    meetings = _MEETINGS.get(node.op.name)
    return iter(()) if meetings is None else meetings(node)


# ---------------------------------------------------------------------------------------------- by operation
def _broadcast_to(node: Node) -> Pairs:
    return _aligned(node.shape, node.inputs[0].shape)


def _broadcast_like(node: Node) -> Pairs:
    one, other = node.inputs
    yield from _aligned(one.shape, other.shape)
    yield from _aligned(node.shape, *[s for s in (one.shape, other.shape) if len(s) == node.ndim])


def _reshape(node: Node) -> Pairs:
    yield node.inputs[0].type.size, node.type.size


def _concatenate(node: Node) -> Pairs:
    for operand in node.inputs:
        pairs = enumerate(zip(node.shape, operand.shape))
        yield from (pair for axis, pair in pairs if axis != node.attrs["axis"])


def _dot(node: Node) -> Pairs:
    (x, y), attrs = node.inputs, node.attrs
    axes = chain(zip(attrs["batch_x"], attrs["batch_y"]), zip(attrs["contract_x"], attrs["contract_y"]))
    yield from ((x.shape[a], y.shape[b]) for a, b in axes)


def _conv(node: Node) -> Pairs:
    x, kernel = node.inputs
    n = len(node.attrs["strides"])
    yield from ((x.shape[-1], kernel.shape[-2]), *zip(x.shape[n + 1 : -1], kernel.shape[n:-2]))


def _scatter_add(node: Node) -> Pairs:
    updates, indices = node.inputs
    axis, dims = node.attrs["axis"], node.attrs["shape"]
    yield from zip(updates.shape, (*dims[:axis], *indices.shape, *dims[axis + 1 :]))


def _scan(node: Node) -> Pairs:
    attrs, body = node.attrs, node.attrs["body"]
    states, sequences = attrs["states"], attrs["sequences"]
    for x, parameter in zip(node.inputs[states : states + sequences], body.inputs[states:]):
        yield from zip(x.shape, (attrs["length"], *parameter.shape))
    yield from _types(node.inputs[:states], body.inputs)
    yield from _types(node.inputs[states + sequences :], body.inputs[states + sequences :])
    yield from _types(body.outputs[:states], body.inputs)


def _cond(node: Node) -> Pairs:
    for body in (node.attrs["then"], node.attrs["other"]):
        yield from _types(node.inputs[1:], body.inputs)
        yield from (pair for part, out in zip(parts(node.type), body.outputs) for pair in zip(part.shape, out.shape))


_MEETINGS: dict[str, Callable[[Node], Pairs]] = {
    "broadcast_to": _broadcast_to,
    "broadcast_like": _broadcast_like,
    "unbroadcast": _broadcast_like,
    "reshape": _reshape,
    "concatenate": _concatenate,
    "dot": _dot,
    "conv": _conv,
    "scatter_add": _scatter_add,
    "scan": _scan,
    "cond": _cond,
}


def _types(values: tuple[Node, ...], parameters: tuple[Node, ...]) -> Pairs:
    for x, parameter in zip(values, parameters):
        yield from zip(x.shape, parameter.shape)


def _aligned(result: Shape, *operands: Shape) -> Pairs:
    """The sizes of operands that are not 1 and the sizes that the result has there."""
    for shape in operands:
        yield from ((m, n) for m, n in zip(reversed(result), reversed(shape)) if m != 1 and n != 1)


__all__ = ["equal_sizes", "is_told"]
