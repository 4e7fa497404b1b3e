"""Groups of calls: small kernels that do not depend on one another, which threads share out."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import field, replace
from functools import partial
from itertools import count

from graphkb.codegen.calls import Call, Place, Writer
from graphkb.ir.dims import Dim
from graphkb.ir.node import Node
from graphkb.ir.record import record
from graphkb.passes.plan_memory import aligned


@record(eq=False)
class CallGroup:
    """Calls as one step: each runs as a whole on one thread, in any order.

    Attributes:
        parts: the calls that one thread takes at a time.
        scratch: the part of the workspace in which all of them work.
    """

    parts: tuple[tuple[Call, ...], ...]
    scratch: Place | None = field(default=None, kw_only=True)

    @property
    def calls(self) -> tuple[Call, ...]:
        """All calls."""
        return tuple([call for part in self.parts for call in part])

    @property
    def nodes(self) -> list[Node]:
        """The fused nodes that it computes."""
        return [call.node for call in self.calls if call.node is not None]

    @property
    def operands(self) -> tuple[Node, ...]:
        """What the calls read, one call's operands behind another's."""
        return tuple([operand for call in self.calls for operand in call.operands])

    @property
    def results(self) -> tuple[Node, ...]:
        """The values that the calls write."""
        return tuple([result for call in self.calls for result in call.results])

    @property
    def scratch_bytes(self) -> Dim:
        """The bytes of workspace that the calls work in, each in its own."""
        return sum([aligned(call.scratch_bytes) for call in self.calls], start=0)

    @property
    def may_stop(self) -> bool:
        """Whether it can end the program by itself."""
        return False

    def in_place(self, result: Node | None) -> set[int]:
        """The operands whose memory a result may take: those of its own call."""
        before = 0
        for call in self.calls:
            if result in call.results:
                return {before + position for position in call.in_place(result)}
            before += len(call.operands)
        raise AssertionError("not a result of this group")

    def emit(self, w: Writer, name: str) -> None:
        """Append the calls in functions of their own, which threads share out."""
        b, numbers = w.b, count()

        def write(inside: Writer, part: tuple[Call, ...]) -> None:
            for call in part:
                step = f"{name}.body0.step{next(numbers)}"
                with b.watch.around(b, step, call) if b.watch is not None else nullcontext():
                    call.emit(inside, step)

        with b.watch.several() if b.watch is not None else nullcontext():
            w.share(name, [partial(write, part=part) for part in self._placed()])

    def _placed(self) -> list[tuple[Call, ...]]:
        """The calls with the memory that each works in."""
        offset = self.scratch.offset if self.scratch is not None else 0
        placed = []
        for part in self.parts:
            own = []
            for call in part:
                if call.scratch_bytes != 0:
                    call = replace(call, scratch=Place("workspace", 0, offset))
                    offset = offset + aligned(call.scratch_bytes)
                own.append(call)
            placed.append(tuple(own))
        return placed

    def outline(self) -> list[str]:
        """The lines that show it in the text of a program."""
        lines = [f"for part < {len(self.parts)} parallel:"]
        for at, part in enumerate(self.parts):
            lines += [f"  part {at}:", *[f"    {call.kernel.name}" for call in part]]
        return lines


__all__ = ["CallGroup"]
