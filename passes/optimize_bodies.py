"""The pass that optimizes the bodies of loops and branches as graphs of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from graphkb.ir.graph import Graph, bodies
from graphkb.ir.node import Node, make
from graphkb.ir.record import record

if TYPE_CHECKING:
    from graphkb.passes.pipeline import Pipeline


@record
class OptimizeBodies:
    """Apply passes to every body once, and to the bodies within it.

    Args:
        passes: the passes for bodies.
    """

    passes: Pipeline
    name: ClassVar[str] = "optimize_bodies"

    def apply(self, graph: Graph) -> Graph:
        if not any(node.op.kind == "control" and bodies(node) for node in graph.nodes):
            return graph
        return graph.map(self._visit)

    def _visit(self, node: Node) -> Node | None:
        if node.op.kind != "control":
            return None
        found = bodies(node)
        better = {name: self._optimize(body) for name, body in found}
        if all(better[name] is body for name, body in found):
            return None
        return make(node.op, node.inputs, {**node.attrs, **better}, None, node.origin)

    def _optimize(self, body: Graph) -> Graph:
        for step in (*self.passes, self):
            body = step.apply(body)
        return body
