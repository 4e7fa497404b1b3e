"""Loops and branches as steps of a program: each body is a program of its own, in a function of its own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from graphkb.codegen.builder import Builder, Value, type_of
from graphkb.codegen.loops import NativeKernel
from graphkb.ir.dims import Dim, maximum
from graphkb.ir.graph import Graph
from graphkb.ir.node import Node
from graphkb.ir.types import TensorType
from graphkb.passes.plan_memory import aligned

if TYPE_CHECKING:
    from graphkb.codegen.emit import Sizes
    from graphkb.codegen.program import Place, Program

# What a call's memory holds for each result: the item of the graph that takes it, None where nobody does.
Items = tuple[Node | None, ...]


class Writer(ABC):
    """The open function of a program, as its steps see it.

    Attributes:
        b: the builder.
        sizes: evaluates dims.
        told: the function's parameters behind the arguments and the workspace; functions of bodies take the same.
    """

    def __init__(self, b: Builder, sizes: Sizes, told: Sequence[Value]) -> None:
        self.b = b
        self.sizes = sizes
        self.told = tuple(told)

    @abstractmethod
    def address_of(self, node: Node) -> Value:
        """Where a value lies."""

    @abstractmethod
    def address(self, place: Place) -> Value:
        """The address of a place."""

    def call_kernel(self, kernel: NativeKernel, pointers: Sequence[Value]) -> None:
        """Append the call of a kernel."""
        dims = [self.sizes.symbols[s] for s in kernel.symbols]
        operands = ", ".join(f"{type_of(v)} {v.name}" for v in (*pointers, *dims))
        self.b.line(f"call void @{kernel.name}({operands})")

    def call_body(self, name: str, body: Program, args: Value, workspace: Value) -> None:
        """Append the call of a body's function, which may end the program."""
        operands = ", ".join(f"{type_of(v)} {v.name}" for v in (args, workspace, *self.told))
        status = self.b.fresh(f"call i32 @{name}({operands})", "int32")
        if body.may_stop:
            stop_if(self.b, self.b.icmp("ne", status, self.b.const(0, "int32")))


def stop_if(b: Builder, bad: Value) -> None:
    """Return 1 where a condition holds."""
    fail, go_on = b.fresh_label("fail"), b.fresh_label("ok")
    b.cond_br(bad, fail, go_on, likely=False)
    b.start(fail)
    b.ret(b.const(1, "int32"))
    b.start(go_on)


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

    def emit_bodies(self, b: Builder, name: str) -> None:
        """Append the functions of the bodies, whose names begin with `name`."""
        for place, body in enumerate(self.bodies):
            body.emit_function(b, f"{name}.body{place}")


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

    A state that is also stacked is read from the stack, where the step before has left it. Any other is written over
    its old value where the body allows that; else two places take turns, such that the last step writes the result.

    Attributes:
        slots: the body's output that holds each result; None for stacks that nobody takes, which are not computed.
        copies: the kernels that copy states to where they belong in the end, by the states.
    """

    slots: tuple[int | None, ...]
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
        outputs = [body.outputs[i] for i in taken]
        for state in body.outputs[:states]:
            if state not in outputs:
                outputs.append(state)
        slots: list[int | None] = [outputs.index(state) for state in body.outputs[:states]]
        slots += [taken.index(i) if i in taken else None for i in range(states, len(items))]
        program = plan(replace(body, outputs=tuple(outputs), _order=None))
        call = LoopCall(node, operands, items, (program,), tuple(slots), {})
        copies = {k: program.kernels.copy(call.types[k]) for k in range(states) if call._is_copied(k)}
        return replace(call, copies=copies)

    @property
    def _body(self) -> Program:
        return self.bodies[0]

    @property
    def _length(self) -> Dim:
        length: Dim = self.node.attrs["length"]
        return length

    @property
    def _states(self) -> range:
        return range(self.node.attrs["states"])

    @property
    def _sequences(self) -> range:
        states: int = self.node.attrs["states"]
        return range(states, states + self.node.attrs["sequences"])

    @property
    def _stacks(self) -> list[int]:
        """The results that are stacked and taken."""
        return [i for i in range(len(self._states), len(self.items)) if self.slots[i] is not None]

    def _is_home(self, state: int) -> bool:
        """Whether a state lies where its result belongs: it is neither stacked nor equal to an earlier state."""
        return self.slots.index(self.slots[state]) == state and self.slots[state] not in [
            self.slots[i] for i in self._stacks
        ]

    def _is_copied(self, state: int) -> bool:
        """Whether the last value of a state may have to be brought to where the result belongs."""
        may_be_empty = not isinstance(self._length, int) or self._length == 0
        return self.items[state] is not None and (may_be_empty or not self._is_home(state))

    def _is_replaced(self, home: int) -> bool:
        """Whether a step may write a state over its old value."""
        slot = self.slots[home]
        assert slot is not None
        return all(self._body.may_share(k, slot) for k in self._states if self.slots[k] == slot)

    def _layout(self) -> tuple[dict[tuple[str, int], Dim], Dim]:
        """Places behind the body's workspace: results that nobody takes, and second places of states."""
        offsets: dict[tuple[str, int], Dim] = {}
        end: Dim = self._body.memory.total
        for k in self._states:
            if not self._is_home(k):
                continue
            wanted = ["unread"] if self.items[k] is None else []
            wanted += [] if self._is_replaced(k) else ["second"]
            for kind in wanted:
                offsets[kind, k] = end
                end = end + aligned(self.types[k].nbytes)
        return offsets, end

    @property
    def scratch_bytes(self) -> Dim:
        return self._layout()[1]

    def in_place(self, result: Node | None) -> set[int]:
        assert result is not None
        index = result.attrs["index"]
        if index in self._states:
            return {index} if not self._is_home(index) or self._is_replaced(index) else set()
        slot = self.slots[index]
        assert slot is not None
        slices = self._body.graph.inputs
        width = self._body.graph.outputs[slot].type.nbytes
        return {i for i in self._sequences if slices[i].type.nbytes == width and self._body.may_share(i, slot)}

    def emit(self, w: Writer, name: str) -> None:
        b, sizes, body = w.b, w.sizes, self._body
        offsets, _ = self._layout()
        scratch = w.address(self.scratch) if self.scratch is not None else b.null()
        given = [w.address_of(operand) for operand in self.operands]
        into = {i: w.address_of(item) for i, item in enumerate(self.items) if item is not None}
        length = sizes.value(self._length)
        last = b.isub(length, b.const(1, "int64"))
        arguments = _Arguments(w, body)
        arguments.bind()
        for i in range(self._sequences.stop, len(given)):
            arguments.set_input(i, given[i])

        moved: list[Value] = []  # where the slices of sequences and stacks lie
        strides: list[Value] = []
        graph = body.graph
        for pointer, slice in [
            *[(given[i], graph.inputs[i]) for i in self._sequences],
            *[(into[i], graph.outputs[self.slots[i] or 0]) for i in self._stacks],
        ]:
            stride = sizes.value(slice.type.nbytes)
            if self.node.attrs["reverse"]:
                pointer, stride = b.byte_offset(pointer, b.imul(last, stride)), b.ineg(stride)
            moved.append(pointer)
            strides.append(stride)

        fixed: dict[int, Value] = {}  # where each body's output goes, if that stays the same
        turns: dict[int, tuple[Value, Value]] = {}  # and if two places take turns: the next one, and the other
        for k in filter(self._is_home, self._states):
            slot = self.slots[k] or 0
            target = into[k] if k in into else b.byte_offset(scratch, sizes.value(offsets["unread", k]))
            if ("second", k) not in offsets:
                fixed[slot] = target
                arguments.set_output(slot, target)
                continue
            second = b.byte_offset(scratch, sizes.value(offsets["second", k]))
            odd = b.icmp("ne", b.and_(last, b.const(1, "int64")), b.const(0, "int64"))
            turns[slot] = b.select(odd, second, target), b.select(odd, target, second)

        def step(_: Value, *carried: Value) -> list[Value]:
            at = list(carried)
            slices = [at.pop(0) for _ in moved]
            places = {slot: (at.pop(0), at.pop(0)) for slot in turns}
            targets = {**fixed, **{slot: now for slot, (now, _) in places.items()}}
            targets.update({self.slots[i] or 0: p for i, p in zip(self._stacks, slices[len(self._sequences) :])})
            for k, pointer in zip(self._states, at):
                arguments.set_input(k, pointer)
            for i, pointer in zip(self._sequences, slices):
                arguments.set_input(i, pointer)
            for slot, pointer in targets.items():
                if slot not in fixed:
                    arguments.set_output(slot, pointer)
            w.call_body(f"{name}.body0", body, arguments.memory, scratch)
            after = [b.byte_offset(p, stride) for p, stride in zip(slices, strides)]
            after += [p for now, other in places.values() for p in (other, now)]
            return after + [targets[self.slots[k] or 0] for k in self._states]

        carried = [*moved, *[p for pair in turns.values() for p in pair], *[given[k] for k in self._states]]
        ends = b.loop(b.const(0, "int64"), length, 1, step, carried, hint="step")
        for k, pointer in zip(self._states, ends[len(ends) - len(self._states) :]):
            if k not in self.copies:
                continue
            if self._is_home(k):
                empty = b.icmp("eq", length, b.const(0, "int64"))
                b.branch(empty, lambda k=k, p=pointer: w.call_kernel(self.copies[k], [p, into[k]]))  # type: ignore[misc]
            else:
                w.call_kernel(self.copies[k], [pointer, into[k]])


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
