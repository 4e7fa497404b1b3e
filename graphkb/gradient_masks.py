"""Gradients of which only some elements matter: behind a `select`, those of the side that was chosen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from graphkb.ir.dims import Shape
from graphkb.ir.node import Node, make
from graphkb.ir.op import Op
from graphkb.ops import reduce as reductions
from graphkb.ops import shape
from graphkb.ops.elementwise import (
    BROADCAST_LIKE,
    SELECT,
    UNBROADCAST,
    and_,
    broadcast_like,
    cast,
    greater,
    not_,
    or_,
    select,
    unbroadcast,
)
from graphkb.ops.index import GATHER
from graphkb.ops.linalg import DOT

# On the side that was not chosen the gradient is 0, and 0 times the slope of a function there may be NaN: that of the
# logarithm at 0, that of an exponential which overflows. So what has been chosen is carried along beside the gradient,
# whose other elements may be anything until `settle` replaces them by 0: where elements are added up, where a gradient
# that was chosen otherwise joins, and at the end.


class Masked(NamedTuple):
    """A gradient: `value` where the bool node `where` holds, which broadcasts to its shape, 0 elsewhere."""

    value: Node
    where: Node | None = None  # None: everywhere


def settle(g: Masked) -> Node:
    """The gradient as one node."""
    return g.value if g.where is None else select(g.where, g.value, 0)


def add(a: Masked, b: Masked) -> Masked:
    """The sum of two gradients of one node."""
    if a.where is b.where:
        return Masked(a.value + b.value, a.where)
    total = settle(a) + settle(b)
    if a.where is None or b.where is None or _is_not(a.where, b.where) or _is_not(b.where, a.where):
        return Masked(total)
    return Masked(total, make(or_, (a.where, b.where)))


def _is_not(a: Node, b: Node) -> bool:
    return a.op is not_ and a.inputs[0] is b


def pull(g: Masked, node: Node) -> list[Masked | None]:
    """The gradients of the inputs of a node, from that of its output."""
    if node.op is SELECT:
        return _pull_select(g, node)
    if g.where is None or not g.where.ndim:  # all of it, or all or nothing
        return [None if down is None else Masked(down, g.where) for down in _apply(node.op, g.value, node)]
    if node.op.kind == "elementwise" or node.op in (UNBROADCAST, BROADCAST_LIKE, shape.BROADCAST_TO):
        return _pull_pointwise(g, g.where, node)
    whole = shape.broadcast_to(g.where, node.shape)
    if node.op in _MOVES:
        return _pair(_apply(node.op, g.value, node), _apply(node.op, whole, node))
    if node.op in _REDUCTIONS:
        kept = reductions.reduced_shape(node.inputs[0].shape, node.attrs["axes"], True)
        return _pair(_apply(node.op, g.value, node), [shape.reshape(whole, kept)])
    downs = _apply(node.op, settle(g), node)
    if node.op is DOT:
        return _pair(downs, _dot_sides(whole, node))
    if node.op in _SUMS:
        counts = _apply(_SUMS[node.op], cast(whole, "float32"), node)
        return _pair(downs, [None if count is None else greater(count, 0) for count in counts])
    return [None if down is None else Masked(down) for down in downs]


def pull_several(gs: Sequence[Masked | None], node: Node) -> list[Masked | None]:
    """The gradients of the inputs of a node whose output is a tuple, from those of its values."""
    assert node.op.vjp is not None
    upstream = [None if g is None else settle(g) for g in gs]
    downs = node.op.vjp(upstream, node, *node.inputs, **node.attrs)
    # What one scalar decides for all values is all or nothing.
    wheres = {g.where for g in gs if g is not None}
    where = wheres.pop() if len(wheres) == 1 else None
    where = where if where is not None and not where.ndim else None
    return [None if down is None else Masked(down, where) for down in downs]


def _apply(op: Op, g: Node, node: Node) -> Sequence[Node | None]:
    """The rule of an op at a node."""
    assert op.vjp is not None
    return op.vjp(g, node, *node.inputs, **node.attrs)


def _pair(values: Sequence[Node | None], sides: Sequence[Node | None]) -> list[Masked | None]:
    return [None if value is None else Masked(value, side) for value, side in zip(values, sides)]


# One element of the gradient for each element of an operand, at another place.
_MOVES = (shape.RESHAPE, shape.TRANSPOSE, shape.SLICE, shape.PAD, shape.CONCATENATE)
_REDUCTIONS = (reductions.SUM, reductions.PROD, reductions.MAX, reductions.MIN)
# Ops whose gradient adds up elements, and the op whose gradient adds up the same ones as they are: of a count of those
# that matter, what is not 0 matters.
_SUMS = {reductions.CUMSUM: reductions.CUMSUM, reductions.CUMPROD: reductions.CUMSUM, GATHER: GATHER}


def _pull_select(g: Masked, node: Node) -> list[Masked | None]:
    test, *branches = node.inputs
    downs: list[Masked | None] = [None]
    for x, chosen in zip(branches, (test, make(not_, (test,)))):
        where = chosen if g.where is None else make(and_, (g.where, chosen))
        downs.append(_unbroadcast(Masked(g.value, where), x))
    return downs


def _pull_pointwise(g: Masked, where: Node, node: Node) -> list[Masked | None]:
    """Each element of a gradient belongs to one of g, or is the sum of those along which the operand was broadcast."""
    downs: list[Masked | None] = []
    for down in _apply(node.op, g.value, node):
        if down is None:
            downs.append(None)
        elif node.op is UNBROADCAST:
            downs.append(Masked(down, broadcast_like(where, node.inputs[0])))
        elif down.op is UNBROADCAST and down is not g.value:
            downs.append(_unbroadcast(Masked(down.inputs[0], where), down.inputs[1]))
        else:
            downs.append(Masked(down, where))
    return downs


def _unbroadcast(g: Masked, x: Node) -> Masked:
    """A gradient added up to the shape of an operand that was broadcast."""
    assert g.where is not None
    if g.value.shape == x.shape:
        return g
    if _broadcasts(g.where.shape, x.shape):  # what is added up matters as a whole, or not at all
        return Masked(unbroadcast(g.value, x), g.where)
    count = unbroadcast(cast(shape.broadcast_to(g.where, g.value.shape), "float32"), x)
    return Masked(unbroadcast(settle(g), x), greater(count, 0))


def _broadcasts(small: Shape, large: Shape) -> bool:
    """Whether a shape surely broadcasts to another one."""
    return len(small) <= len(large) and all(m in (1, n) for m, n in zip(reversed(small), reversed(large)))


def _dot_sides(where: Node, node: Node) -> list[Node | None]:
    """Of each operand the rows and columns to which some element of the product that matters belongs."""
    shared = len(node.attrs["batch_x"])
    sides: list[Node | None] = []
    first = shared
    for x, batch, contract in zip(
        node.inputs,
        (node.attrs["batch_x"], node.attrs["batch_y"]),
        (node.attrs["contract_x"], node.attrs["contract_y"]),
    ):
        free = tuple([a for a in range(x.ndim) if a not in batch and a not in contract])
        mine = range(first, first + len(free))
        first += len(free)
        others = tuple([a for a in range(shared, node.ndim) if a not in mine])
        order = (*batch, *free)
        axes = tuple(sorted(range(len(order)), key=lambda i, order=order: order[i]))  # type: ignore[misc]
        side = shape.transpose(reductions.reduce(reductions.ANY, where, others), axes)
        sides.append(shape.reshape(side, reductions.reduced_shape(x.shape, contract, True)))
    return sides
