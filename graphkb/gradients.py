"""Reverse-mode differentiation: one walk over the graph; the rules live in the op records."""

from __future__ import annotations

from collections.abc import Sequence

from graphkb.ir.errors import GradientError
from graphkb.ir.graph import built_at, toposort
from graphkb.ir.node import Node
from graphkb.ir.origin import set_override
from graphkb.ir.types import FLOATS
from graphkb.ops import leaf, shape


def gradients(outputs: Sequence[Node], wrt: Sequence[Node]) -> list[Node | None]:
    """The gradient of the sum of all outputs with respect to each node; None where nothing depends on it.

    The gradients are ordinary nodes, so they can be differentiated again. They carry the provenance of the nodes
    that they belong to.

    Args:
        outputs: nodes of any shapes, of a float dtype.
        wrt: nodes.

    Raises:
        GradientError: an op on the way has no gradient rule; the text names it.
    """
    order = toposort(outputs)
    targets = set(wrt)
    # Only nodes that depend on a target need a gradient.
    active: set[Node] = set()
    for node in order:
        if node in targets or any(i in active for i in node.inputs):
            active.add(node)
    grads: dict[Node, Node] = {}

    def accumulate(node: Node, grad: Node) -> None:
        known = grads.get(node)
        grads[node] = grad if known is None else known + grad

    previous = set_override(None)
    try:
        for output in outputs:
            if output in active and output.dtype in FLOATS:
                set_override(output.origin)
                accumulate(output, shape.broadcast_to(leaf.constant(1, output.dtype), output.shape))
        for node in reversed(order):
            g = grads.get(node)
            if g is None or node not in active or not any(i in active for i in node.inputs):
                continue
            vjp = node.op.vjp
            if vjp is None:
                raise GradientError(f"{node.op.name} has no gradient{built_at(node)}")
            set_override(node.origin)
            for x, grad in zip(node.inputs, vjp(g, node, *node.inputs, **node.attrs)):
                if grad is not None and x in active:
                    # Where two unknown sizes were taken to be equal, the rule may have found the other one.
                    accumulate(x, grad if grad.shape == x.shape else shape.reshape(grad, x.shape))
    finally:
        set_override(previous)
    return [grads.get(node) for node in wrt]
