"""Chains as steps of a program: threads take some samples after another through all kernels of a batch."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

from graphkb.codegen.builder import Builder, Value
from graphkb.codegen.calls import Writer
from graphkb.codegen.control_calls import Arguments, ControlCall, Items, PartWriter, Plan, indented
from graphkb.codegen.emit_values import Sizes
from graphkb.codegen.threads import parallel_region
from graphkb.ir.dims import Dim, maximum
from graphkb.ir.graph import Graph
from graphkb.ir.node import Node
from graphkb.ir.record import record
from graphkb.ir.types import TensorType
from graphkb.passes.plan_memory import ALIGNMENT, aligned
from graphkb.passes.split_batch import split_samples

# Workspaces at most, one for each thread that takes part.
_MOST_SLOTS = 32


@record(eq=False)
class ChainCall(ControlCall):
    """Kernels that follow one another, for some samples at a time.

    The parts of the batch are counted; whoever is free takes the next one. What kernels leave to one another lies in
    one of a few workspaces, each of which a thread keeps until no part is left: it stays in that thread's cache.

    Attributes:
        sizes: for each body how many parts it computes, and how many samples each of them has.
    """

    sizes: tuple[tuple[int, int], ...]

    @staticmethod
    def make(node: Node, operands: tuple[Node, ...], items: Items, plan: Plan) -> ChainCall:
        """The call for a chain."""
        assert None not in items
        whole: Graph = node.attrs["body"]
        batch = whole.outputs[0].shape[0]
        assert isinstance(batch, int)
        count = -(-batch // node.attrs["samples"])
        samples, more = divmod(batch, count)
        sizes = tuple([size for size in ((more, samples + 1), (count - more, samples)) if size[0]])
        programs = [plan(split_samples(whole, node.attrs["varying"], each), False, True) for _, each in sizes]
        return ChainCall(node, operands, items, tuple(programs), sizes)

    @property
    def count(self) -> int:
        """The number of parts."""
        return sum([many for many, _ in self.sizes])

    @property
    def slots(self) -> int:
        """The number of workspaces."""
        return min(self.count, _MOST_SLOTS)

    @property
    def runs_at_once(self) -> bool:
        return True

    @property
    def scratch_each(self) -> Dim:
        """The bytes of one workspace."""
        return maximum(*[aligned(body.memory.total) for body in self.bodies])

    @property
    def scratch_bytes(self) -> Dim:
        # The first bytes count the parts.
        return ALIGNMENT + self.slots * self.scratch_each

    def in_place(self, result: Node | None) -> set[int]:
        assert result is not None
        index = result.attrs["index"]
        found = set(self.node.attrs["varying"])
        for body in self.bodies:
            width = body.graph.outputs[index].type.nbytes
            found = {i for i in found if body.graph.inputs[i].type.nbytes == width and body.may_share(i, index)}
        return found

    def outline(self) -> list[str]:
        lines = []
        for (many, samples), body in zip(self.sizes, self.bodies):
            lines += [f"for part < {many} of {samples} samples parallel:", *indented(body)]
        return lines

    def emit(self, w: Writer, name: str) -> None:
        b = w.b
        assert self.scratch is not None
        scratch = w.address(self.scratch)
        given = [w.address_of(operand) for operand in self.operands]
        into = [w.address_of(item) for item in self.results]
        leaves = list(dict.fromkeys(self.bound))
        captured = [scratch, *given, *into, *map(w.address_of, leaves), *w.told]
        zero, one = b.const(0, "int64"), b.const(1, "int64")
        b.store(zero, scratch, align=8)

        def some(held: Sequence[Value], begin: Value, end: Value) -> None:
            values = iter(held)
            counter = next(values)
            operands = [next(values) for _ in given]
            results = [next(values) for _ in into]
            places = {leaf: next(values) for leaf in leaves}
            told = list(values)
            inner = PartWriter(b, Sizes(b, dict(zip(w.sizes.symbols, told))), told, places)
            run = _Parts(self, inner, name, operands, results)

            def slot(at: Value) -> None:
                place = b.iadd(b.imul(at, inner.sizes.value(self.scratch_each)), b.const(ALIGNMENT, "int64"))
                memory = b.byte_offset(counter, place)

                def claim() -> Value:
                    return b.fresh(f"atomicrmw add ptr {counter.name}, i64 1 monotonic, align 8", "int64")

                def part(number: Value) -> list[Value]:
                    run.part(number, memory)
                    return [claim()]

                b.repeat(lambda number: b.icmp("slt", number, b.const(self.count, "int64")), part, [claim()], "part")

            b.loop(begin, end, 1, slot, hint="slot")

        parallel_region(b, b.const(self.slots, "int64"), one, captured, some)

    def emit_bodies(self, b: Builder, name: str) -> None:
        with b.watch.several() if b.watch is not None else nullcontext():
            super().emit_bodies(b, name)


class _Parts:
    """The calls of the bodies in the open function of a region."""

    def __init__(
        self, call: ChainCall, w: Writer, name: str, operands: Sequence[Value], results: Sequence[Value]
    ) -> None:
        self.call = call
        self.w = w
        self.name = name
        self.operands = operands
        self.results = results

    def part(self, number: Value, memory: Value) -> None:
        """Compute one part in a workspace."""
        b, sizes = self.w.b, self.call.sizes
        (many, samples), *rest = sizes
        if not rest:
            self._body(0, b.imul(number, b.const(samples, "int64")), memory)
            return
        ((_, fewer),) = rest

        def first() -> None:
            self._body(0, b.imul(number, b.const(samples, "int64")), memory)

        def second() -> None:
            # Each part of the first size begins by as many samples earlier as there are such parts.
            self._body(1, b.iadd(b.imul(number, b.const(fewer, "int64")), b.const(many, "int64")), memory)

        b.branch(b.icmp("slt", number, b.const(many, "int64")), first, second)

    def _body(self, place: int, sample: Value, memory: Value) -> None:
        call, w = self.call, self.w
        whole: Graph = call.node.attrs["body"]
        body = call.bodies[place]
        arguments = Arguments(w, body)
        arguments.bind()
        for i, (parameter, pointer) in enumerate(zip(whole.inputs, self.operands)):
            varies = i in call.node.attrs["varying"]
            arguments.set_input(i, self._moved(pointer, parameter.type, sample) if varies else pointer)
        for i, pointer in enumerate(self.results):
            arguments.set_output(i, self._moved(pointer, whole.outputs[i].type, sample))
        w.call_body(f"{self.name}.body{place}", body, arguments.memory, memory)

    def _moved(self, pointer: Value, type: TensorType, sample: Value) -> Value:
        """Where a sample lies in a value."""
        stride = self.w.sizes.value(type.with_shape(type.shape[1:]).nbytes)
        return self.w.b.byte_offset(pointer, self.w.b.imul(sample, stride))


__all__ = ["ChainCall"]
