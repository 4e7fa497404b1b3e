"""The pass that drops work nobody looks at: operands that lend only their shape, updates without a use."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

from graphkb.ir.graph import Graph, toposort
from graphkb.ir.leaves import DrawCell, VariableCell
from graphkb.ir.node import Node, make
from graphkb.ir.record import record
from graphkb.ops.leaf import VARIABLE, constant
from graphkb.ops.shape import BROADCAST_TO, broadcast_to
from graphkb.passes.rewrite import rewrite_graph, rule


@rule("unbroadcast", "broadcast_like")
def shape_only(node: Node) -> Node | None:
    """unbroadcast(g, x) -> unbroadcast(g, zeros of x's shape)"""
    g, x = node.inputs
    if x.op.kind == "leaf" or x.op is BROADCAST_TO:
        return None
    return make(node.op, (g, broadcast_to(constant(0, x.dtype), x.shape)))


@record
class EliminateDead:
    """Cut what does not reach a root by its values.

    A graph holds only what its roots need, so nodes that no root reads are gone as soon as nobody refers to them;
    this pass finds the ones that are referred to in vain.
    """

    name: ClassVar[str] = "eliminate_dead"

    def apply(self, graph: Graph) -> Graph:
        graph = rewrite_graph(graph, (shape_only,))
        updates = _made([(cell, new) for cell, new in graph.updates if not _keeps(cell, new)], graph.outputs)
        if len(updates) == len(graph.updates):
            return graph
        return replace(graph, updates=updates, _order=None)


def _made(
    updates: Sequence[tuple[VariableCell, Node]], outputs: Sequence[Node]
) -> tuple[tuple[VariableCell, Node], ...]:
    """The updates without the counts of random draws that nothing needs any more, such as dropout in testing."""
    if not any(isinstance(cell, DrawCell) for cell, _ in updates):
        return tuple(updates)
    needed = toposort([*outputs, *[new for cell, new in updates if not isinstance(cell, DrawCell)]])
    drawn = {node.attrs["cell"] for node in needed if node.op is VARIABLE}
    return tuple([(cell, new) for cell, new in updates if not isinstance(cell, DrawCell) or cell in drawn])


def _keeps(cell: object, new: Node) -> bool:
    """Whether an update gives a variable the value that it has."""
    return new.op is VARIABLE and new.attrs["cell"] is cell
