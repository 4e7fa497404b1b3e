"""The plan of a graph with open sizes: machine code that finds the sizes in the arrays of each call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from graphkb.ir.errors import OpenSizeError
from graphkb.ir.graph import Graph
from graphkb.ir.leaves import Array
from graphkb.runtime.dynamic import OpenProgram
from graphkb.runtime.options import Options
from graphkb.runtime.plan import NativePlan, Plan, obstacle

if TYPE_CHECKING:
    from graphkb.codegen.builder import Builder
    from graphkb.codegen.target import Target
    from graphkb.runtime.call_spec import CallSpec


class OpenPlan(NativePlan):
    """A plan that serves all sizes for which the guards of its program hold.

    Attributes: `sizes`, those that it was made for first, which its report shows.
    """

    def __init__(
        self,
        graph: Graph,
        fused: Graph,
        target: Target,
        options: Options,
        opened: OpenProgram,
    ) -> None:
        self._opened = opened
        self.sizes = opened.first
        super().__init__(graph, fused, target, options)
        self._note = f"for any {opened.names}; the figures are those of {opened.values}"

    def _emit(self, b: Builder) -> None:
        from graphkb.codegen.open_program import emit_open

        emit_open(b, self.program, self._opened.guards, "run", "sizes")

    def _call_spec(self, options: Options, **more: Any) -> CallSpec:
        sizes, symbols = self.engine.address("sizes"), len(self.program.symbols)
        return super()._call_spec(options, sizes=sizes, symbols=symbols, **more)

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        from graphkb.runtime.native_call import DeclinedError, run_context

        try:
            return run_context(self._spec, inputs)
        except DeclinedError:
            sizes = self._opened.sizes(tuple([array.shape for array in inputs]))
            assert sizes is not None
            return Plan(self.graph.bind(sizes)).run(inputs)

    def widened(self, inputs: Sequence[Array]) -> CallSpec | None:
        from graphkb.runtime.native_call import needed_workspace

        needed = needed_workspace(self._spec, inputs)
        if needed <= self._spec.workspace_bytes:
            return None
        # With some room to spare, so that slowly growing sizes do not come here each time.
        self._spec = replace(self._spec, workspace_bytes=needed + needed // 4)
        return self._spec


def make_open_plan(graph: Graph, options: Options, opened: OpenProgram) -> OpenPlan:
    """The plan of an optimized graph with open sizes.

    Raises:
        OpenSizeError: not all of it is native.
    """
    if reason := obstacle(options):
        raise OpenSizeError(reason)
    from graphkb.codegen.program import interpreted_nodes
    from graphkb.passes.pipeline import FUSION, optimize
    from graphkb.runtime.kernel_cache import find_target

    fused = optimize(graph, FUSION)
    if found := interpreted_nodes(fused):
        names = ", ".join(dict.fromkeys(node.op.name for node in found))
        raise OpenSizeError(f"there is no kernel for {names}")
    return OpenPlan(graph, fused, find_target(options), options, opened)


__all__ = ["OpenPlan", "make_open_plan"]
