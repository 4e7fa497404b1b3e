"""The pass that checks: structure and types, as every pass must leave them."""

from __future__ import annotations

from typing import ClassVar

from graphkb.ir.graph import Graph
from graphkb.ir.record import record
from graphkb.ir.verify import verify


@record
class Verify:
    """Raise GraphError unless the graph is well formed; the graph stays as it is."""

    name: ClassVar[str] = "verify"

    def apply(self, graph: Graph) -> Graph:
        verify(graph)
        return graph
