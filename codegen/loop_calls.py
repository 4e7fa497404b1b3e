"""Loops as steps of a program: where states, slices and stacks lie, and what threads do of a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING

from graphkb.codegen.builder import Builder, Value
from graphkb.codegen.calls import Writer
from graphkb.codegen.control_calls import Arguments, ControlCall, Items, PartWriter, Plan, indented
from graphkb.codegen.emit_values import Sizes
from graphkb.codegen.loops import NativeKernel
from graphkb.codegen.threads import parallel_region
from graphkb.ir.dims import Dim, maximum
from graphkb.ir.graph import Graph
from graphkb.ir.node import Node
from graphkb.ir.record import record
from graphkb.ir.types import TensorType
from graphkb.passes.plan_memory import aligned
from graphkb.passes.share_batch import Parts, share_batch

if TYPE_CHECKING:
    pass


# Steps for whose sake threads stay awake.
_OFTEN = 16


@record(eq=False)
class LoopCall(ControlCall):
    """A scan.

    A state that is also stacked is read from the stack, where the step before has left it. Where its old values are
    stacked, each step writes the next one right there. Any other state is written over its old value where the body
    allows that; else two places take turns, such that the last step writes the result.

    Where the samples of a batch do not depend on one another, each thread runs the whole loop for some of them, and
    none waits for another in between.

    Attributes:
        slots: the body's output that holds each result; None for stacks that the body does not write.
        trails: for states whose old values are stacked, and whose new ones are not, that stack.
        copies: for each body the kernels that copy states to where they belong, by the states.
        parts: the samples that each body computes; empty where the one body computes all.
    """

    slots: tuple[int | None, ...]
    trails: Mapping[int, int]
    copies: tuple[Mapping[int, NativeKernel], ...]
    parts: tuple[Parts, ...]

    @staticmethod
    def make(node: Node, operands: tuple[Node, ...], items: Items, plan: Plan) -> LoopCall:
        """The call for a fused scan."""
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
        whole = replace(body, outputs=tuple(outputs), _order=None)
        parts = share_batch(whole, states, node.attrs["sequences"], node.attrs["length"])
        programs = tuple([plan(part.body.body, False) for part in parts])
        if not parts or any(program.may_stop for program in programs):
            length = node.attrs["length"]
            parts, programs = (), (plan(whole, not isinstance(length, int) or length >= _OFTEN),)
        call = LoopCall(node, operands, items, programs, tuple(slots), trails, (), parts)
        copies = [
            {k: program.kernels.copy(call.state_type(k, place)) for k in range(states) if call.is_copied(k)}
            for place, program in enumerate(programs)
        ]
        return replace(call, copies=tuple(copies))

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

    @property
    def runs_at_once(self) -> bool:
        return bool(self.parts)

    def state_type(self, state: int, place: int) -> TensorType:
        """The type of a state in one of the bodies."""
        return self.bodies[place].graph.inputs[state].type if self.parts else self.types[state]

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
        return all(body.may_share(k, slot) for body in self.bodies for k in self.states if self.slots[k] == slot)

    @cached_property
    def layouts(self) -> list[tuple[Mapping[tuple[str, int], Dim], Dim]]:
        """For each body the places behind its workspace and their end: results that nobody takes, and second places."""
        return [self._layout(place, body.memory.total) for place, body in enumerate(self.bodies)]

    def _layout(self, place: int, end: Dim) -> tuple[Mapping[tuple[str, int], Dim], Dim]:
        offsets: dict[tuple[str, int], Dim] = {}
        for k in filter(self.is_home, self.states):
            wanted = ["unread"] if self.items[k] is None else []
            wanted += [] if k in self.trails or self._is_replaced(k) else ["second"]
            for kind in wanted:
                offsets[kind, k] = end
                end = end + aligned(self.state_type(k, place).nbytes)
        return offsets, end

    @property
    def scratch_each(self) -> Dim:
        """The bytes of workspace of one part."""
        return maximum(*[aligned(end) for _, end in self.layouts])

    @property
    def scratch_bytes(self) -> Dim:
        return self.scratch_each * sum([part.count for part in self.parts]) if self.parts else self.layouts[0][1]

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
        found = set(self.sequences)
        for body in self.bodies:
            width = body.graph.outputs[slot].type.nbytes
            found = {i for i in found if body.graph.inputs[i].type.nbytes == width and body.may_share(i, slot)}
        return found.intersection(*[part.body.varying for part in self.parts])

    def outline(self) -> list[str]:
        order = " backwards" if self.node.attrs["reverse"] else ""
        loops = [[f"for step < {self.length}{order}:", *indented(body)] for body in self.bodies]
        if not self.parts:
            return loops[0]
        lines = []
        for part, loop in zip(self.parts, loops):
            lines += [f"for part < {part.count} of {part.samples} samples parallel:", *[f"  {line}" for line in loop]]
        return lines

    def emit(self, w: Writer, name: str) -> None:
        scratch = w.address(self.scratch) if self.scratch is not None else w.b.null()
        given = [w.address_of(operand) for operand in self.operands]
        into = {i: w.address_of(item) for i, item in enumerate(self.items) if item is not None}
        if self.parts:
            _Batch(self, w, scratch, given, into).run(name)
        else:
            _Loop(self, 0, w, scratch, given, into).run(f"{name}.body0")

    def emit_bodies(self, b: Builder, name: str) -> None:
        with b.watch.several() if b.watch is not None and self.parts else nullcontext():
            super().emit_bodies(b, name)


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


class _Batch:
    """The parts of one loop in the open function."""

    def __init__(
        self, call: LoopCall, w: Writer, scratch: Value, given: Sequence[Value], into: Mapping[int, Value]
    ) -> None:
        self.call = call
        self.w = w
        self.leaves = list(dict.fromkeys(call.bound))
        self.targets = list(into)
        self.captured = [scratch, *given, *into.values(), *map(w.address_of, self.leaves), *w.told]

    def run(self, name: str) -> None:
        b, call = self.w.b, self.call
        count = sum([part.count for part in call.parts])

        def some(held: Sequence[Value], begin: Value, end: Value) -> None:
            start = 0
            for place, part in enumerate(call.parts):
                first, last = b.const(start, "int64"), b.const(start + part.count, "int64")

                def one(at: Value, place: int = place, start: Value = first) -> None:
                    self._part(place, at, b.isub(at, start), held, f"{name}.body{place}")

                b.loop(b.maximum(begin, first), b.minimum(end, last), 1, one, hint="part")
                start += part.count

        parallel_region(b, b.const(count, "int64"), b.const(1, "int64"), self.captured, some)

    def _part(self, place: int, at: Value, index: Value, held: Sequence[Value], function: str) -> None:
        """Part `at` of all, which is number `index` of its size."""
        b, call = self.w.b, self.call
        whole: Graph = call.node.attrs["body"]
        part = call.parts[place]
        sample = b.iadd(b.imul(index, b.const(part.samples, "int64")), b.const(part.first, "int64"))

        def moved(pointer: Value, type: TensorType) -> Value:
            """Where the part begins in a value whose first axis are the samples."""
            stride = self.w.sizes.value(type.with_shape(type.shape[1:]).nbytes)
            return b.byte_offset(pointer, b.imul(sample, stride))

        values = iter(held)
        scratch = b.byte_offset(next(values), b.imul(at, self.w.sizes.value(call.scratch_each)))
        given = []
        for i, (operand, pointer) in enumerate(zip(whole.inputs, values)):
            given.append(moved(pointer, operand.type) if i in part.body.varying else pointer)
        into = {i: moved(next(values), whole.outputs[i].type) for i in self.targets}
        places = {leaf: next(values) for leaf in self.leaves}
        told = list(values)
        w = PartWriter(b, Sizes(b, dict(zip(self.w.sizes.symbols, told))), told, places)
        _Loop(call, place, w, scratch, given, into).run(function)


class _Loop:
    """The loop of one call, or of a part of it, in the open function."""

    def __init__(
        self,
        call: LoopCall,
        place: int,
        w: Writer,
        scratch: Value,
        given: Sequence[Value],
        into: Mapping[int, Value],
    ) -> None:
        b, sizes = w.b, w.sizes
        whole: Graph = call.node.attrs["body"]
        self.call = call
        self.body = call.bodies[place]
        self.copies = call.copies[place]
        self.offsets = call.layouts[place][0]
        self.w = w
        self.b = b
        self.scratch = scratch
        self.given = given
        self.into = into
        self.length = sizes.value(call.length)
        self.last = b.isub(self.length, b.const(1, "int64"))
        self.arguments = Arguments(w, self.body)
        # Where the present slices of sequences, stacks and trails lie, and how far it is to the next.
        self.slices: dict[tuple[str, int], Value] = {}
        self.strides: dict[tuple[str, int], Value] = {}
        for i in call.sequences:
            self._move("sequence", i, given[i], whole.inputs[i].type)
        for i in call.stacks:
            self._move("stack", i, into[i], whole.outputs[i].type)
        for k, i in call.trails.items():
            self._move("trail", k, into[i], whole.outputs[i].type)
        # Where the states go that are not stacked: always to the same place, or to two places by turns.
        self.fixed: dict[int, Value] = {}
        self.turns: dict[int, tuple[Value, Value]] = {}
        for k in filter(call.is_home, call.states):
            slot = call.slots[k] or 0
            target = self.into[k] if k in self.into else self._offset("unread", k)
            if ("second", k) not in self.offsets:
                self.fixed[slot] = target
                continue
            second = self._offset("second", k)
            odd = b.icmp("ne", b.and_(self.last, b.const(1, "int64")), b.const(0, "int64"))
            self.turns[slot] = b.select(odd, second, target), b.select(odd, target, second)

    def _offset(self, kind: str, state: int) -> Value:
        return self.b.byte_offset(self.scratch, self.w.sizes.value(self.offsets[kind, state]))

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
            self.w.call_body(function, self.body, self.arguments.memory, self.scratch)
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
            if k not in self.copies or k not in self.into:
                continue
            if call.is_home(k):
                self._copy_if("sle", k, self.given[k], self.into[k])
            else:
                self.w.call_kernel(self.copies[k], [pointer, self.into[k]])

    def _copy_if(self, order: str, state: int, source: Value, target: Value) -> None:
        """Copy a state where the number of steps compares so with 0."""
        call, b = self.call, self.b
        if isinstance(call.length, int):
            if (call.length > 0) is (order == "sgt"):
                self.w.call_kernel(self.copies[state], [source, target])
            return
        test = b.icmp(order, self.length, b.const(0, "int64"))
        b.branch(test, lambda: self.w.call_kernel(self.copies[state], [source, target]))
