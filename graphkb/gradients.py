"""Reverse-mode differentiation: one walk over the graph; the rules live in the op records."""

from __future__ import annotations

from collections.abc import Sequence

from graphkb.gradient_masks import Masked, pull, pull_several, settle
from graphkb.gradient_sums import add_up
from graphkb.ir.errors import GradientError
from graphkb.ir.graph import built_at, toposort
from graphkb.ir.node import Node
from graphkb.ir.origin import set_override
from graphkb.ir.types import FLOATS, parts
from graphkb.ops import leaf, shape
from graphkb.ops.control import ITEM


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
    seeds = []
    for output in outputs:
        if output.dtype in FLOATS:
            previous = set_override(output.origin)
            try:
                seeds.append((output, shape.broadcast_to(leaf.constant(1, output.dtype), output.shape)))
            finally:
                set_override(previous)
    return pull_back(seeds, wrt)


def pull_back(seeds: Sequence[tuple[Node, Node]], wrt: Sequence[Node]) -> list[Node | None]:
    """The gradients with respect to each node, from those of some outputs; None where no output depends on it.

    Args:
        seeds: pairs of an output and its gradient.
        wrt: nodes.

    Raises:
        GradientError: as `gradients` raises it.
    """
    order = toposort([output for output, _ in seeds])
    targets = set(wrt)
    # Only nodes that depend on a target need a gradient.
    active: set[Node] = set()
    for node in order:
        if node in targets or any(i in active for i in node.inputs):
            active.add(node)
    grads: dict[Node, list[Masked]] = {}
    # Of a tuple, the gradients of its values.
    several: dict[Node, dict[int, Masked]] = {}

    def accumulate(node: Node, grad: Masked) -> None:
        grads.setdefault(node, []).append(grad)

    def total(node: Node) -> Masked | None:
        if node not in grads:
            return None
        grads[node] = [add_up(grads[node])]
        return grads[node][0]

    previous = set_override(None)
    try:
        for output, grad in seeds:
            if output in active:
                set_override(output.origin)
                accumulate(output, Masked(grad))
        for node in reversed(order):
            set_override(node.origin)
            values = several.get(node)
            g = total(node)
            if (g is None and values is None) or node not in active or not any(i in active for i in node.inputs):
                continue
            if node.op is ITEM:
                assert g is not None
                several.setdefault(node.inputs[0], {})[node.attrs["index"]] = g
                continue
            if node.op.vjp is None:
                raise GradientError(f"{node.op.name} has no gradient{built_at(node)}")
            if g is not None:
                downs: Sequence[Masked | None] = pull(g, node)
            else:
                assert values is not None
                downs = pull_several([values.get(i) for i in range(len(parts(node.type)))], node)
            for x, down in zip(node.inputs, downs):
                if down is not None and x in active:
                    # Where two unknown sizes were taken to be equal, the rule may have found the other one.
                    value = down.value if down.value.shape == x.shape else shape.reshape(down.value, x.shape)
                    accumulate(x, Masked(value, down.where))
        found: list[Node | None] = []
        for node in wrt:
            set_override(node.origin)
            g = total(node)
            found.append(None if g is None else settle(g))
        return found
    finally:
        set_override(previous)
