"""Loops and branches as steps of a program: each body is a program of its own, in a function of its own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING

from graphkb.codegen.builder import Builder, Value
from graphkb.codegen.calls import Place, Writer
from graphkb.codegen.loops import NativeKernel
from graphkb.ir.dims import Dim, maximum
from graphkb.ir.graph import Graph
from graphkb.ir.node import Node
from graphkb.ir.types import TensorType
from graphkb.passes.plan_memory import aligned

if TYPE_CHECKING:
    from graphkb.codegen.program import Program

# What a call's memory holds for each result: the item of the graph that takes it, None where nobody does.
Items = tuple[Node | None, ...]


@dataclass(frozen=True, eq=False)
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
    def bound(self) -> list[Node]:
        """The leaves that its bodies need in memory."""
        return [leaf for body in self.bodies for leaf in body.bound]

    @property
    def may_stop(self) -> bool:
        """Whether it can end the program by itself."""
        return any(body.may_stop for body in self.bodies)

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


def _indented(body: Program) -> list[str]:
    return [f"  {line}" for line in body.outline() or ["nothing"]]


class _Arguments:
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


# ---------------------------------------------------------------------------------------------- loops
@dataclass(frozen=True, eq=False)
class LoopCall(ControlCall):
    """A scan.

    A state that is also stacked is read from the stack, where the step before has left it. Where its old values are
    stacked, each step writes the next one right there. Any other state is written over its old value where the body
    allows that; else two places take turns, such that the last step writes the result.

    Attributes:
        slots: the body's output that holds each result; None for stacks that the body does not write.
        trails: for states whose old values are stacked, and whose new ones are not, that stack.
        copies: the kernels that copy states to where they belong, by the states.
    """

    slots: tuple[int | None, ...]
    trails: Mapping[int, int]
    copies: Mapping[int, NativeKernel]

    @staticmethod
    def make(node: Node, operands: tuple[Node, ...], items: Items, plan: Callable[[Graph], Program]) -> LoopCall:
        """The call for a fused scan.

        Args:
            plan: makes the program of a body.
        """
        body: Graph = node.attrs["body"]
        states = node.attrs["states"]
        taken = [i for i in range(states, len(items)) if items[i] is not None]
        trails = _trails(body, states, taken)
        written = [i for i in taken if i not in trails.values()]
        outputs = [body.outputs[i] for i in written]
        for state in body.outputs[:states]:
            if state not in outputs:
                outputs.append(state)
        slots: list[int | None] = [outputs.index(state) for state in body.outputs[:states]]
        slots += [written.index(i) if i in written else None for i in range(states, len(items))]
        program = plan(replace(body, outputs=tuple(outputs), _order=None))
        call = LoopCall(node, operands, items, (program,), tuple(slots), trails, {})
        copies = {k: program.kernels.copy(call.types[k]) for k in range(states) if call.is_copied(k)}
        return replace(call, copies=copies)

    @property
    def body(self) -> Program:
        return self.bodies[0]

    @property
    def length(self) -> Dim:
        length: Dim = self.node.attrs["length"]
        return length

    @property
    def states(self) -> range:
        """The operands and results that are states."""
        return range(self.node.attrs["states"])

    @property
    def sequences(self) -> range:
        """The operands that are sequences."""
        states: int = self.node.attrs["states"]
        return range(states, states + self.node.attrs["sequences"])

    @property
    def stacks(self) -> list[int]:
        """The results that the body writes slice by slice."""
        return [i for i in range(len(self.states), len(self.items)) if self.slots[i] is not None]

    def is_home(self, state: int) -> bool:
        """Whether a state lies where its result belongs: it is neither stacked nor equal to an earlier state."""
        slot = self.slots[state]
        return self.slots.index(slot) == state and slot not in [self.slots[i] for i in self.stacks]

    def is_copied(self, state: int) -> bool:
        """Whether a state may have to be copied, to where its result belongs or to the first of its old values."""
        may_be_empty = not isinstance(self.length, int) or self.length == 0
        return state in self.trails or (self.items[state] is not None and (may_be_empty or not self.is_home(state)))

    def _is_replaced(self, home: int) -> bool:
        """Whether a step may write a state over its old value."""
        slot = self.slots[home]
        assert slot is not None
        return all(self.body.may_share(k, slot) for k in self.states if self.slots[k] == slot)

    @cached_property
    def layout(self) -> tuple[Mapping[tuple[str, int], Dim], Dim]:
        """Places behind the body's workspace: results that nobody takes, and second places of states; and the end."""
        offsets: dict[tuple[str, int], Dim] = {}
        end: Dim = self.body.memory.total
        for k in filter(self.is_home, self.states):
            wanted = ["unread"] if self.items[k] is None else []
            wanted += [] if k in self.trails or self._is_replaced(k) else ["second"]
            for kind in wanted:
                offsets[kind, k] = end
                end = end + aligned(self.types[k].nbytes)
        return offsets, end

    @property
    def scratch_bytes(self) -> Dim:
        return self.layout[1]

    def in_place(self, result: Node | None) -> set[int]:
        assert result is not None
        index = result.attrs["index"]
        if index in self.states:
            # What is copied in the end, or from the start, does not meet the operand in between.
            free = not self.is_home(index) or index in self.trails or self._is_replaced(index)
            return {index} if free else set()
        slot = self.slots[index]
        if slot is None:
            return set()
        slices = self.body.graph.inputs
        width = self.body.graph.outputs[slot].type.nbytes
        return {i for i in self.sequences if slices[i].type.nbytes == width and self.body.may_share(i, slot)}

    def outline(self) -> list[str]:
        order = " backwards" if self.node.attrs["reverse"] else ""
        return [f"for step < {self.length}{order}:", *_indented(self.body)]

    def emit(self, w: Writer, name: str) -> None:
        _Loop(self, w).run(f"{name}.body0")


def _trails(body: Graph, states: int, taken: Sequence[int]) -> dict[int, int]:
    """The states whose old values are stacked, each with that stack, unless their new values are stacked as well."""
    new, written = body.outputs[:states], {body.outputs[i] for i in taken}
    trails: dict[int, int] = {}
    for i in taken:
        if body.outputs[i] in body.inputs[:states]:
            k = body.inputs.index(body.outputs[i])
            if new.count(new[k]) == 1 and new[k] not in written:
                trails.setdefault(k, i)
    return trails


class _Loop:
    """The loop of one call in the open function."""

    def __init__(self, call: LoopCall, w: Writer) -> None:
        b, sizes = w.b, w.sizes
        self.call = call
        self.w = w
        self.b = b
        self.scratch = w.address(call.scratch) if call.scratch is not None else b.null()
        self.given = [w.address_of(operand) for operand in call.operands]
        self.into = {i: w.address_of(item) for i, item in enumerate(call.items) if item is not None}
        self.length = sizes.value(call.length)
        self.last = b.isub(self.length, b.const(1, "int64"))
        self.arguments = _Arguments(w, call.body)
        # Where the present slices of sequences, stacks and trails lie, and how far it is to the next.
        self.slices: dict[tuple[str, int], Value] = {}
        self.strides: dict[tuple[str, int], Value] = {}
        for i in call.sequences:
            self._move("sequence", i, self.given[i], call.body.graph.inputs[i].type)
        for i in call.stacks:
            self._move("stack", i, self.into[i], call.body.graph.outputs[call.slots[i] or 0].type)
        for k, i in call.trails.items():
            self._move("trail", k, self.into[i], call.types[k])
        # Where the states go that are not stacked: always to the same place, or to two places by turns.
        self.fixed: dict[int, Value] = {}
        self.turns: dict[int, tuple[Value, Value]] = {}
        for k in filter(call.is_home, call.states):
            slot = call.slots[k] or 0
            target = self.into[k] if k in self.into else self._offset("unread", k)
            if ("second", k) not in call.layout[0]:
                self.fixed[slot] = target
                continue
            second = self._offset("second", k)
            odd = b.icmp("ne", b.and_(self.last, b.const(1, "int64")), b.const(0, "int64"))
            self.turns[slot] = b.select(odd, second, target), b.select(odd, target, second)

    def _offset(self, kind: str, state: int) -> Value:
        return self.b.byte_offset(self.scratch, self.w.sizes.value(self.call.layout[0][kind, state]))

    def _move(self, kind: str, index: int, pointer: Value, slice: TensorType) -> None:
        b, stride = self.b, self.w.sizes.value(slice.nbytes)
        if self.call.node.attrs["reverse"]:
            pointer, stride = b.byte_offset(pointer, b.imul(self.last, stride)), b.ineg(stride)
        self.slices[kind, index] = pointer
        self.strides[kind, index] = stride

    def run(self, function: str) -> None:
        call, b = self.call, self.b
        self._prepare()
        before = [self.slices["trail", k] if k in call.trails else self.given[k] for k in call.states]
        turns = [place for pair in self.turns.values() for place in pair]

        def step(index: Value, *carried: Value) -> list[Value]:
            at = iter(carried)
            slices = {key: next(at) for key in self.slices}
            turns = {slot: (next(at), next(at)) for slot in self.turns}
            following = {key: b.byte_offset(p, self.strides[key]) for key, p in slices.items()}
            targets = self._targets(index, slices, following, {slot: place for slot, (place, _) in turns.items()})
            for k, pointer in zip(call.states, at):
                self.arguments.set_input(k, pointer)
            for i in call.sequences:
                self.arguments.set_input(i, slices["sequence", i])
            for slot, pointer in targets.items():
                if pointer is not self.fixed.get(slot):
                    self.arguments.set_output(slot, pointer)
            self.w.call_body(function, call.body, self.arguments.memory, self.scratch)
            swapped = [place for pair in turns.values() for place in reversed(pair)]
            return [*following.values(), *swapped, *[targets[call.slots[k] or 0] for k in call.states]]

        carried = [*self.slices.values(), *turns, *before]
        ends = b.loop(b.const(0, "int64"), self.length, 1, step, carried, hint="step")
        self._finish(ends[len(ends) - len(before) :])

    def _prepare(self) -> None:
        """What stays the same in all steps, and the first of the old values that are stacked."""
        call = self.call
        self.arguments.bind()
        for i in range(call.sequences.stop, len(self.given)):
            self.arguments.set_input(i, self.given[i])
        for slot, target in self.fixed.items():
            self.arguments.set_output(slot, target)
        for k in call.trails:
            self._copy_if("sgt", k, self.given[k], self.slices["trail", k])

    def _targets(
        self,
        index: Value,
        slices: Mapping[tuple[str, int], Value],
        following: Mapping[tuple[str, int], Value],
        turns: Mapping[int, Value],
    ) -> dict[int, Value]:
        """Where each output of the body goes in a step."""
        call, b = self.call, self.b
        targets = {**self.fixed, **turns}
        for i in call.stacks:
            targets[call.slots[i] or 0] = slices["stack", i]
        for k in call.trails:
            slot, end = call.slots[k] or 0, b.icmp("eq", index, self.last)
            targets[slot] = b.select(end, self.fixed[slot], following["trail", k])
        return targets

    def _finish(self, states: Sequence[Value]) -> None:
        """Bring states to where their results belong."""
        call = self.call
        for k, pointer in zip(call.states, states):
            if k not in call.copies or k not in self.into:
                continue
            if call.is_home(k):
                self._copy_if("sle", k, self.given[k], self.into[k])
            else:
                self.w.call_kernel(call.copies[k], [pointer, self.into[k]])

    def _copy_if(self, order: str, state: int, source: Value, target: Value) -> None:
        """Copy a state where the number of steps compares so with 0."""
        call, b = self.call, self.b
        if isinstance(call.length, int):
            if (call.length > 0) is (order == "sgt"):
                self.w.call_kernel(call.copies[state], [source, target])
            return
        test = b.icmp(order, self.length, b.const(0, "int64"))
        b.branch(test, lambda: self.w.call_kernel(call.copies[state], [source, target]))


# ---------------------------------------------------------------------------------------------- branches
@dataclass(frozen=True, eq=False)
class BranchCall(ControlCall):
    """A cond: the first operand decides which body fills the results."""

    @staticmethod
    def make(node: Node, operands: tuple[Node, ...], items: Items, plan: Callable[[Graph], Program]) -> BranchCall:
        """The call for a fused cond; arguments as those of `LoopCall.make`."""
        taken = [i for i, item in enumerate(items) if item is not None]
        sides: list[Graph] = [node.attrs["then"], node.attrs["other"]]
        programs = [plan(replace(side, outputs=tuple([side.outputs[i] for i in taken]), _order=None)) for side in sides]
        return BranchCall(node, operands, items, tuple(programs))

    @property
    def scratch_bytes(self) -> Dim:
        return maximum(*[body.memory.total for body in self.bodies])

    def in_place(self, result: Node | None) -> set[int]:
        return set()

    def outline(self) -> list[str]:
        then, other = self.bodies
        return ["if condition:", *_indented(then), "else:", *_indented(other)]

    def emit(self, w: Writer, name: str) -> None:
        b = w.b
        scratch = w.address(self.scratch) if self.scratch is not None else b.null()
        test, *given = [w.address_of(operand) for operand in self.operands]
        into = [w.address_of(item) for item in self.results]
        arguments = [_Arguments(w, body) for body in self.bodies]

        def side(place: int) -> None:
            arguments[place].bind()
            for i, pointer in enumerate(given):
                arguments[place].set_input(i, pointer)
            for i, pointer in enumerate(into):
                arguments[place].set_output(i, pointer)
            w.call_body(f"{name}.body{place}", self.bodies[place], arguments[place].memory, scratch)

        b.branch(b.load(test, "bool"), lambda: side(0), lambda: side(1))
