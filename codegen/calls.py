"""Calls of kernels: what they read and write, where that lies, and the open function that they are written into."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal

from graphkb.codegen.builder import Builder, Value, type_of
from graphkb.codegen.loops import NativeKernel
from graphkb.ir.dims import Dim
from graphkb.ir.node import Node
from graphkb.ir.record import record

if TYPE_CHECKING:
    from graphkb.codegen.emit import Sizes
    from graphkb.codegen.program import Program


@record
class Place:
    """Where a value lies: argument `index` of the call, or `offset` bytes into the workspace."""

    kind: Literal["input", "bound", "packed", "output", "workspace"]
    index: int = 0
    offset: Dim = 0


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

    @abstractmethod
    def share(self, name: str, parts: Sequence[Callable[[Writer], None]]) -> None:
        """Append functions that the parts write, and a region in which threads share them out."""

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


@record
class Call:
    """One kernel with the values that it reads and those that it writes."""

    kernel: NativeKernel
    operands: tuple[Node, ...]
    results: tuple[Node, ...]
    # Copies name their memory outright.
    source: Node | None = None
    target: Place | None = None
    scratch: Place | None = None
    # Packed copies of operands, in the order in which the kernel takes them.
    packed: tuple[Place, ...] = ()

    @property
    def scratch_bytes(self) -> Dim:
        """The bytes of workspace that it works in."""
        return self.kernel.scratch

    @property
    def node(self) -> Node | None:
        """The fused node that it computes; None for copies."""
        if not self.results or self.source is not None:
            return None
        first = self.results[0]
        return first.inputs[0] if first.op.name == "item" else first

    @property
    def name(self) -> str:
        """How reports name it."""
        return self.kernel.name

    @property
    def named_bodies(self) -> list[tuple[str, Program]]:
        """The programs inside it: none."""
        return []

    @property
    def may_stop(self) -> bool:
        """Whether it can end the program by itself."""
        return False

    def in_place(self, result: Node | None) -> set[int]:
        """The operands whose memory a result may take; None stands for what a copy writes."""
        index = 0 if result is None else self.results.index(result)
        return self.kernel.in_place[len(self.operands) + index]

    def emit(self, w: Writer, name: str) -> None:
        """Append the call to the open function."""
        pointers = [w.address_of(n) for n in self.operands]
        pointers += [w.address(self.target)] if self.target else [w.address_of(n) for n in self.results]
        pointers += map(w.address, self.packed)
        pointers += [w.address(self.scratch)] if self.scratch else []
        w.call_kernel(self.kernel, pointers)

    def outline(self) -> list[str]:
        """The lines that show it in the text of a program."""
        return [self.kernel.name]
