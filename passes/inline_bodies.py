"""The pass that writes bodies out in place: loops of one step or none, and branches that are decided or cheap."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import ClassVar

from graphkb.ir.graph import Graph, replace_nodes
from graphkb.ir.node import Node, remake
from graphkb.ir.origin import set_override
from graphkb.ir.record import record
from graphkb.ops.control import COND, ITEM, SCAN
from graphkb.ops.elementwise import select
from graphkb.ops.leaf import constant, constant_value, is_constant
from graphkb.ops.shape import broadcast_to, reshape

# What can be computed in vain: it neither fails nor takes long, and it joins the kernels around it.
_HARMLESS = ("leaf", "elementwise", "view", "move", "marker")


@record
class InlineBodies:
    """Replace loops and branches by the nodes of their bodies where nothing is lost.

    Args:
        most: the scalar operations up to which both branches are computed and one is selected: less than it costs to
            leave the kernels and come back.
    """

    most: int = 1 << 18
    name: ClassVar[str] = "inline_bodies"

    def apply(self, graph: Graph) -> Graph:
        if not any(node.op is SCAN or node.op is COND for node in graph.nodes):
            return graph
        new: dict[Node, Node] = {}
        values: dict[Node, list[Node]] = {}
        previous = set_override(None)
        try:
            for node in graph.nodes:
                inputs = tuple([new[i] for i in node.inputs])
                set_override(node.origin)
                made = remake(node, inputs)
                written = None
                if node.op is SCAN:
                    written = _write_loop(made)
                elif node.op is COND:
                    written = self._write_branch(made)
                elif node.op is ITEM and node.inputs[0] in values:
                    made = values[node.inputs[0]][node.attrs["index"]]
                if written is not None:
                    values[node] = written
                new[node] = made
        finally:
            set_override(previous)
        return graph.with_roots([new[r] for r in graph.roots]) if values else graph

    def _write_branch(self, node: Node) -> list[Node] | None:
        test, *operands = node.inputs
        sides: list[Graph] = [node.attrs["then"], node.attrs["other"]]
        if is_constant(test):
            return _write(sides[0 if constant_value(test) else 1], operands)
        if sum(map(_cost, sides)) > self.most:
            return None
        then, other = [_write(body, operands) for body in sides]
        # Sizes that only the call tells must be equal too: they must not broadcast.
        return [select(test, a, reshape(b, a.shape)) for a, b in zip(then, other)]


def _write(body: Graph, operands: Sequence[Node]) -> list[Node]:
    return replace_nodes(body.outputs, dict(zip(body.inputs, operands)))


def _write_loop(node: Node) -> list[Node] | None:
    """The values of a loop of one step or none."""
    length, states = node.attrs["length"], node.attrs["states"]
    body: Graph = node.attrs["body"]
    if length not in (0, 1):
        return None
    if length == 0:
        stacks = [broadcast_to(constant(0, out.dtype), (0, *out.shape)) for out in body.outputs[states:]]
        return [*node.inputs[:states], *stacks]
    last = states + node.attrs["sequences"]
    slices = [reshape(x, x.shape[1:]) for x in node.inputs[states:last]]
    results = _write(body, [*node.inputs[:states], *slices, *node.inputs[last:]])
    return results[:states] + [reshape(out, (1, *out.shape)) for out in results[states:]]


def _cost(body: Graph) -> int:
    """The scalar operations of a body; more than any limit where it must not be computed in vain."""
    total = 0
    for node in body.nodes:
        if node.op.kind not in _HARMLESS:
            return 1 << 62
        if node.op.kind != "leaf":
            total += node.op.cost * prod(size if isinstance(size, int) else 32 for size in node.shape)
    return total
