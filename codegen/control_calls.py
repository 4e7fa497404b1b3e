"""Control flow as steps of a program: each body is a program of its own, in a function of its own; branches."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import field, replace
from typing import TYPE_CHECKING, Protocol

from graphkb.codegen.builder import Builder, Value
from graphkb.codegen.calls import Place, Writer
from graphkb.codegen.emit_values import Sizes
from graphkb.ir.dims import Dim, maximum
from graphkb.ir.graph import Graph, bodies
from graphkb.ir.node import Node
from graphkb.ir.record import record
from graphkb.ir.types import TensorType

if TYPE_CHECKING:
    from graphkb.codegen.program import Program

# What a call's memory holds for each result: the item of the graph that takes it, None where nobody does.
Items = tuple[Node | None, ...]


class Plan(Protocol):
    """Makes the program of a body."""

    def __call__(self, graph: Graph, often: bool, alone: bool = False) -> Program:
        """The program.

        Args:
            graph: the body.
            often: whether it runs so often that threads are awake.
            alone: whether each thread runs it by itself.
        """
        ...


@record(eq=False)
class ControlCall(ABC):
    """A loop or a branch with the values that it reads and those that it writes.

    Attributes:
        node: the fused loop or branch.
        operands: the values in memory behind its operands.
        items: who takes each of its results.
        bodies: the programs of its bodies.
        scratch: its part of the workspace.
    """

    node: Node
    operands: tuple[Node, ...]
    items: Items
    bodies: tuple[Program, ...]
    scratch: Place | None = field(default=None, kw_only=True)

    @property
    def results(self) -> tuple[Node, ...]:
        """The values that it writes to their places."""
        return tuple([item for item in self.items if item is not None])

    @property
    def name(self) -> str:
        """How reports name it."""
        return self.node.op.name

    @property
    def named_bodies(self) -> list[tuple[str, Program]]:
        """The programs of the bodies, with the names of the attributes that hold their graphs."""
        names = [name for name, _ in bodies(self.node)]
        return [(names[min(place, len(names) - 1)], body) for place, body in enumerate(self.bodies)]

    @property
    def bound(self) -> list[Node]:
        """The leaves that its bodies need in memory."""
        return [leaf for body in self.bodies for leaf in body.bound]

    @property
    def may_stop(self) -> bool:
        """Whether it can end the program by itself."""
        return any(body.may_stop for body in self.bodies)

    @property
    def runs_at_once(self) -> bool:
        """Whether several threads may run its bodies at the same time."""
        return False

    @property
    def types(self) -> tuple[TensorType, ...]:
        """The types of all results."""
        types: tuple[TensorType, ...] = self.node.type.items  # type: ignore[attr-defined]
        return types

    @property
    @abstractmethod
    def scratch_bytes(self) -> Dim:
        """The bytes of workspace that it works in."""

    @abstractmethod
    def in_place(self, result: Node | None) -> set[int]:
        """The operands whose memory a result may take."""

    @abstractmethod
    def emit(self, w: Writer, name: str) -> None:
        """Append what calls the bodies to the open function."""

    @abstractmethod
    def outline(self) -> list[str]:
        """The lines that show it in the text of a program."""

    def emit_bodies(self, b: Builder, name: str) -> None:
        """Append the functions of the bodies, whose names begin with `name`."""
        for place, body in enumerate(self.bodies):
            body.emit_function(b, f"{name}.body{place}")


def indented(body: Program) -> list[str]:
    return [f"  {line}" for line in body.outline() or ["nothing"]]


class Arguments:
    """The addresses that a body's function takes, in memory of the stack."""

    def __init__(self, w: Writer, body: Program) -> None:
        self._b = w.b
        self._bound = [w.address_of(leaf) for leaf in body.bound]
        self._inputs = len(body.graph.inputs)
        self.memory = w.b.alloca("ptr", max(1, self._inputs + len(self._bound) + len(body.graph.outputs)))

    def bind(self) -> None:
        """Set the leaves."""
        for i, pointer in enumerate(self._bound):
            self._set(self._inputs + i, pointer)

    def set_input(self, index: int, pointer: Value) -> None:
        self._set(index, pointer)

    def set_output(self, index: int, pointer: Value) -> None:
        self._set(self._inputs + len(self._bound) + index, pointer)

    def _set(self, index: int, pointer: Value) -> None:
        self._b.store(pointer, self._b.gep(self.memory, index, "ptr"))


class PartWriter(Writer):
    """The open function of a parallel region, which is told where everything lies."""

    def __init__(self, b: Builder, sizes: Sizes, told: Sequence[Value], places: Mapping[Node, Value]) -> None:
        super().__init__(b, sizes, told)
        self._places = places

    def address_of(self, node: Node) -> Value:
        return self._places[node]

    def address(self, place: Place) -> Value:
        raise AssertionError(f"{place} is unknown in a parallel region")

    def share(self, name: str, parts: Sequence[Callable[[Writer], None]]) -> None:
        raise AssertionError("threads share the batch already")


# ---------------------------------------------------------------------------------------------- branches
@record(eq=False)
class BranchCall(ControlCall):
    """A cond: the first operand decides which body fills the results."""

    @staticmethod
    def make(node: Node, operands: tuple[Node, ...], items: Items, plan: Plan) -> BranchCall:
        """The call for a fused cond."""
        taken = [i for i, item in enumerate(items) if item is not None]
        sides: list[Graph] = [node.attrs["then"], node.attrs["other"]]
        cut = [replace(side, outputs=tuple([side.outputs[i] for i in taken]), _order=None) for side in sides]
        programs = [plan(side, False) for side in cut]
        return BranchCall(node, operands, items, tuple(programs))

    @property
    def scratch_bytes(self) -> Dim:
        return maximum(*[body.memory.total for body in self.bodies])

    def in_place(self, result: Node | None) -> set[int]:
        return set()

    def outline(self) -> list[str]:
        then, other = self.bodies
        return ["if condition:", *indented(then), "else:", *indented(other)]

    def emit(self, w: Writer, name: str) -> None:
        b = w.b
        scratch = w.address(self.scratch) if self.scratch is not None else b.null()
        test, *given = [w.address_of(operand) for operand in self.operands]
        into = [w.address_of(item) for item in self.results]
        arguments = [Arguments(w, body) for body in self.bodies]

        def side(place: int) -> None:
            arguments[place].bind()
            for i, pointer in enumerate(given):
                arguments[place].set_input(i, pointer)
            for i, pointer in enumerate(into):
                arguments[place].set_output(i, pointer)
            w.call_body(f"{name}.body{place}", self.bodies[place], arguments[place].memory, scratch)

        b.branch(b.load(test, "bool"), lambda: side(0), lambda: side(1))
