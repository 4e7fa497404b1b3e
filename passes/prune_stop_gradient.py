"""The pass that removes gradient markers, which say nothing to code generation."""

from __future__ import annotations

from typing import ClassVar

from graphkb.ir.graph import Graph
from graphkb.ir.node import Node
from graphkb.ir.record import record
from graphkb.passes.rewrite import rewrite_graph, rule


@rule("stop_gradient")
def drop_stop_gradient(node: Node) -> Node | None:
    """stop_gradient(x) -> x"""
    return node.inputs[0]


@record
class PruneStopGradient:
    """Put the operand in the place of every `stop_gradient`: the gradients are built by now."""

    name: ClassVar[str] = "prune_stop_gradient"

    def apply(self, graph: Graph) -> Graph:
        return rewrite_graph(graph, (drop_stop_gradient,))
