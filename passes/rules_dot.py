"""Dot products: transposes of the operands and of the result become other axis lists."""

from __future__ import annotations

from collections.abc import Sequence

from graphkb.ir.node import Node, make
from graphkb.ops import shape as sh
from graphkb.ops.linalg import DOT, Axes, dot
from graphkb.passes.rewrite import rule


def free_axes(ndim: int, batch: Axes, contract: Axes) -> Axes:
    """The axes of an operand that the result keeps beside the batch axes."""
    return tuple([a for a in range(ndim) if a not in batch and a not in contract])


@rule("dot")
def dot_transpose(node: Node) -> Node | None:
    """dot(transpose(x), y) -> dot(x, y) along other axes, where the axes that stay keep their order"""
    attrs = dict(node.attrs)
    inputs = list(node.inputs)
    for position, side in enumerate("xy"):
        operand = inputs[position]
        if operand.op is not sh.TRANSPOSE:
            continue
        order = operand.attrs["axes"]
        batch, contract = attrs[f"batch_{side}"], attrs[f"contract_{side}"]
        free = [order[a] for a in free_axes(operand.ndim, batch, contract)]
        if free != sorted(free):
            continue
        attrs[f"batch_{side}"] = tuple([order[a] for a in batch])
        attrs[f"contract_{side}"] = tuple([order[a] for a in contract])
        inputs[position] = operand.inputs[0]
    return make(DOT, tuple(inputs), attrs) if tuple(inputs) != node.inputs else None


@rule("transpose")
def transpose_dot(node: Node) -> Node | None:
    """transpose(dot(x, y)) -> dot(x, y) or dot(y, x) where only batch axes move, or both sides change places"""
    (product,) = node.inputs
    if product.op is not DOT:
        return None
    x, y = product.inputs
    batch_x, batch_y, contract_x, contract_y = product.attrs.values()
    b = len(batch_x)
    m = x.ndim - b - len(contract_x)
    order = node.attrs["axes"]
    if set(order[:b]) != set(range(b)):
        return None
    batch_x, batch_y = _pick(batch_x, order[:b]), _pick(batch_y, order[:b])
    left, right = tuple(range(b, b + m)), tuple(range(b + m, product.ndim))
    if order[b:] == left + right:
        return dot(x, y, batch_x, batch_y, contract_x, contract_y)
    if order[b:] == right + left:
        return dot(y, x, batch_y, batch_x, contract_y, contract_x)
    return None


def _pick(axes: Axes, order: Sequence[int]) -> Axes:
    return tuple([axes[i] for i in order])


DOTS = (dot_transpose, transpose_dot)
