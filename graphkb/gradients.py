"""Reverse-mode differentiation: one walk over the graph; the rules live in the op records."""

from __future__ import annotations

from collections.abc import Sequence

from graphkb.ir.errors import GradientError
from graphkb.ir.graph import built_at, toposort
from graphkb.ir.node import Node, make
from graphkb.ir.origin import set_override
from graphkb.ir.types import FLOATS, parts
from graphkb.ops import leaf, shape
from graphkb.ops.control import ITEM
from graphkb.ops.elementwise import SELECT, UNBROADCAST, and_, not_, select, unbroadcast


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
    grads: dict[Node, Node] = {}
    # Of a tuple, the gradients of its values.
    several: dict[Node, dict[int, Node]] = {}
    chosen = _Chosen()

    def accumulate(node: Node, grad: Node) -> None:
        known = grads.get(node)
        grads[node] = grad if known is None else chosen.add(known, grad)

    previous = set_override(None)
    try:
        for output, grad in seeds:
            if output in active:
                set_override(output.origin)
                accumulate(output, grad)
        for node in reversed(order):
            values = several.get(node)
            g = grads.get(node)
            if (g is None and values is None) or node not in active or not any(i in active for i in node.inputs):
                continue
            if node.op is ITEM:
                assert g is not None
                several.setdefault(node.inputs[0], {})[node.attrs["index"]] = g
                continue
            vjp = node.op.vjp
            if vjp is None:
                raise GradientError(f"{node.op.name} has no gradient{built_at(node)}")
            set_override(node.origin)
            upstream = g if values is None else [values.get(i) for i in range(len(parts(node.type)))]
            downs: Sequence[Node | None] = vjp(upstream, node, *node.inputs, **node.attrs)
            if g is not None and node.op.kind == "elementwise":
                downs = chosen.carry(g, node, downs)
            for x, down in zip(node.inputs, downs):
                if down is not None and x in active:
                    # Where two unknown sizes were taken to be equal, the rule may have found the other one.
                    accumulate(x, down if down.shape == x.shape else shape.reshape(down, x.shape))
    finally:
        set_override(previous)
    return [grads.get(node) for node in wrt]


class _Chosen:
    """Which elements of a gradient matter: behind a `select`, those of the side that was chosen.

    On the other side the gradient is 0, and 0 times the slope of a function there may be NaN: the logarithm's at 0,
    that of an exponential which overflows. So what comes through element-wise functions is set to 0 there again.
    """

    def __init__(self) -> None:
        self.where: dict[Node, Node] = {}  # the gradient, and the bool node that tells where it matters

    def add(self, a: Node, b: Node) -> Node:
        total = a + b
        where = self.where.get(a)
        if where is not None and self.where.get(b) is where:
            self.where[total] = where
        return total

    def carry(self, g: Node, node: Node, downs: Sequence[Node | None]) -> list[Node | None]:
        """The gradients of the inputs of an element-wise node, from that of its output."""
        where = self.where.get(g)
        if node.op is SELECT:
            test = node.inputs[0]
            for down, side in zip(downs[1:], (test, make(not_, (test,)))):
                if down is not None and down.op is SELECT:
                    self.where[down] = side if where is None else make(and_, (where, side))
            return list(downs)
        return list(downs) if where is None else [d if d is None else self._masked(g, where, d) for d in downs]

    def _masked(self, g: Node, where: Node, down: Node) -> Node:
        if down is g:
            return down
        if down.op is UNBROADCAST:
            whole, x = down.inputs
            return down if whole is g or whole.shape != g.shape else unbroadcast(select(where, whole, 0), x)
        if down.shape != g.shape:
            return down
        masked = select(where, down, 0)
        self.where[masked] = where
        return masked
