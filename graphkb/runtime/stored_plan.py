"""The plan of a program that an earlier process compiled: what a call needs is at hand, all else is made when asked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from graphkb.ir.graph import Graph
from graphkb.ir.leaves import Array
from graphkb.runtime.plan import CompiledPlan, Plan
from graphkb.runtime.report import Report

if TYPE_CHECKING:
    from graphkb.codegen.engine import Engine
    from graphkb.runtime.call_spec import CallSpec


class StoredPlan(CompiledPlan):
    """Machine code with what a call needs to know. Reports, dumps and errors take the plan that the passes lead to.

    Args:
        spec: the call.
        engine: the machine code.
        make: runs the passes.
    """

    def __init__(self, spec: CallSpec, engine: Engine, make: Callable[[], Plan]) -> None:
        self._spec = spec
        self.engine = engine
        self._make = make
        self._made: Plan | None = None

    @property
    def full(self) -> Plan:
        if self._made is None:
            self._made = self._make()
        return self._made

    @property
    def graph(self) -> Graph:  # type: ignore[override]
        return self.full.graph

    @property
    def fused(self) -> Graph:  # type: ignore[override]
        return self.full.fused

    @property
    def loops(self) -> str:  # type: ignore[override]
        return self.full.loops

    @property
    def llvm(self) -> str:  # type: ignore[override]
        return self.full.llvm

    @property
    def asm(self) -> str:
        return self.full.asm

    def interpret(self, inputs: Sequence[Array]) -> list[Array]:
        return self.full.interpret(inputs)

    def report(self) -> Report:
        return self.full.report()
