"""The plan: how one specialization of a function runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from graphkb.ir.graph import Graph
from graphkb.ir.leaves import Array
from graphkb.runtime.interpreter import Program
from graphkb.runtime.options import Options
from graphkb.runtime.report import Report, interpreted_step

if TYPE_CHECKING:
    from graphkb.runtime.native_call import CallSpec


class Plan:
    """A graph of known sizes with all that it takes to run it."""

    def __init__(self, graph: Graph, options: Options) -> None:
        self.graph = graph
        self.options = options
        self._program = Program(graph)

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """The outputs, with all updates written, from arrays of the exact dtype and shape."""
        return self._program.run(inputs)

    def entry_spec(self) -> CallSpec | None:
        """What the native entry needs, where every step is native."""
        return None

    def report(self) -> Report:
        """Which steps are native, and what they cost."""
        steps = [interpreted_step(node, "no kernel") for node in self.graph.nodes if node.op.kind != "leaf"]
        return Report(self.graph.name, tuple(repr(node.type) for node in self.graph.inputs), tuple(steps))


def make_plan(graph: Graph, options: Options) -> Plan:
    """The plan of an optimized graph whose sizes are all known."""
    return Plan(graph, options)
