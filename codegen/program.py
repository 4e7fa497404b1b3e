"""The program: a fused graph as kernel calls over planned memory, shared by the JIT and the ahead-of-time compiler."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import TypeAlias

from graphkb.codegen.builder import Builder, Value, type_of
from graphkb.codegen.call_groups import CallGroup
from graphkb.codegen.calls import Call, Place, Writer, stop_if
from graphkb.codegen.chain_calls import ChainCall
from graphkb.codegen.control_calls import BranchCall, ControlCall
from graphkb.codegen.emit import Sizes
from graphkb.codegen.kernels import Kernels
from graphkb.codegen.loop_calls import LoopCall
from graphkb.codegen.packed_weights import Packing, count_version, emit_due, version_of
from graphkb.codegen.parts import plain_reads
from graphkb.codegen.threads import parallel_region
from graphkb.ir.dims import Symbol
from graphkb.ir.graph import Graph, bodies, graph_symbols
from graphkb.ir.node import Node
from graphkb.ir.types import TupleType
from graphkb.ops.control import is_control, items
from graphkb.passes.plan_memory import MemoryPlan

# Calls in one function: LLVM's effort grows faster than a function's length.
_CHUNK = 64


Step: TypeAlias = Call | CallGroup | LoopCall | BranchCall | ChainCall


def is_alias(node: Node) -> bool:
    """Whether a node is another shape of memory that another node fills."""
    return node.op.name == "reshape"


def base_of(node: Node) -> Node:
    """The node whose memory holds the value of a node."""
    while is_alias(node):
        node = node.inputs[0]
    return node


def has_call(node: Node) -> bool:
    """Whether a node is a step of its own."""
    return node.op.kind == "fused" or is_control(node)


def interpreted_nodes(graph: Graph) -> list[Node]:
    """The nodes of a fused graph, and of the bodies inside it, that have no kernel."""
    found: list[Node] = []
    for node in graph.nodes:
        if is_control(node):
            for _, body in bodies(node):  # as deep as bodies nest
                found += interpreted_nodes(body)
        elif node.op.kind not in ("leaf", "fused") and node.op.name != "item" and not is_alias(node):
            found.append(node)
    return found


def results_of(node: Node) -> tuple[Node, ...]:
    """The values that a fused node stores: itself, or its items."""
    return items(node) if isinstance(node.type, TupleType) else (node,)


def checks_of(node: Node) -> list[Node]:
    """The values that must be False before a fused node may run: whether indices that it uses are out of range."""
    body = node.attrs["body"]
    outer = dict(zip(body.inputs, node.inputs))
    return [outer[inner.inputs[1]] for inner in body.nodes if inner.op.name == "guard"]


@dataclass
class Program:
    """Kernel calls, loops and branches in order, and where every value lies.

    Attributes:
        graph: the fused graph.
        outer: the unknown sizes that the program around a body is told; None for a program that stands by itself.
        often: whether it holds many products or runs again and again at once, so that threads are awake when it does.
        alone: whether each thread runs it by itself.
        calls: in the order in which they run.
        bound: the variables and constants that the caller hands over, after the inputs.
        packed: those whose packed copies the caller hands over, after these.
        counted: the variables whose new values it counts, because others may hold packed copies.
        cells: whether variables are those of the running process, and change behind a program's back.
        packs: whether kernels may read packed copies.
        places: the memory of every base node.
        memory: the plan of the workspace.
        symbols: unknown sizes, which the caller tells.
        checks: the bool scalars that tell whether indices are out of range; all stand before any write to a variable.
    """

    graph: Graph
    kernels: Kernels
    outer: tuple[Symbol, ...] | None = None
    often: bool = False
    alone: bool = False
    calls: list[Step] = field(default_factory=list)
    bound: list[Node] = field(default_factory=list)
    packed: list[Packing] = field(default_factory=list)
    counted: list[Node] = field(default_factory=list)
    cells: bool = False
    packs: bool = False
    places: dict[Node, Place] = field(default_factory=dict)
    memory: MemoryPlan = field(default_factory=lambda: MemoryPlan((), 0, 0))
    checks: frozenset[Node] = frozenset()

    @property
    def symbols(self) -> tuple[Symbol, ...]:
        if self.outer is not None:
            return self.outer
        return tuple(sorted(graph_symbols(self.graph), key=lambda s: s.name))

    @property
    def groups(self) -> list[CallGroup]:
        """The groups among the calls."""
        return [call for call in self.calls if isinstance(call, CallGroup)]

    @property
    def single_calls(self) -> Iterator[Call | LoopCall | BranchCall | ChainCall]:
        """The calls, those of groups one by one."""
        for call in self.calls:
            if isinstance(call, CallGroup):
                yield from call.calls
            else:
                yield call

    @property
    def loops(self) -> str:
        """The kernels in the loop language; where some run in groups, loops or branches, the order in which all run."""
        if all(isinstance(call, Call) for call in self.calls):
            return self.kernels.loops
        lines = [f"program {self.graph.name}", *[f"  {line}" for line in self.outline()]]
        return "\n".join([self.kernels.loops, *lines, ""])

    def outline(self) -> list[str]:
        """The names of the kernels as they are called, those of bodies indented."""
        return [line for call in self.calls for line in call.outline()]

    @property
    def unread(self) -> set[Node]:
        """The bound values of which only packed copies are read."""
        read = {base_of(output) for output in self.graph.outputs}
        read |= {base_of(value) for _, value in self.graph.updates}
        for call in self.single_calls:
            if not isinstance(call, Call):
                read |= set(call.bound)
            places = plain_reads(call.kernel) if isinstance(call, Call) and call.packed else range(len(call.operands))
            read |= {call.operands[i] for i in places if i < len(call.operands)}
        return set(self.bound) - read

    @property
    def may_stop(self) -> bool:
        """Whether it can find an index out of range."""
        return any(map(self.stops, self.calls))

    def stops(self, call: Step) -> bool:
        """Whether the program may end with a call."""
        return call.may_stop or any(result in self.checks for result in call.results)

    def may_share(self, input: int, output: int) -> bool:
        """Whether an output may be written over an input: each element is read only before, or where it is written."""
        parameter, place = self.graph.inputs[input], Place("output", output)
        read = max([at for at, call in enumerate(self.calls) if parameter in call.operands], default=-1)
        for at, call in enumerate(self.calls):
            copied = isinstance(call, Call) and call.target == place
            written: list[Node | None] = [None] if copied else []
            written += [result for result in call.results if self.places[result] == place]
            if written and at <= read:
                places = {i for i, operand in enumerate(call.operands) if operand is parameter}
                return at == read and places <= call.in_place(written[0])
        return True

    def emit(self, b: Builder, name: str, linkage: str = "") -> None:
        """Append the kernels and `i32 name(ptr args, ptr workspace, i64 size...)`.

        `args` holds the addresses of the inputs, the bound values, the packed ones and the outputs. The function
        returns 0, or 1 where an index is out of range, or packed copies should be made anew: then no variable has been
        written, and the outputs hold anything.
        """
        self.kernels.emit(b)
        self.emit_function(b, name, linkage)

    def emit_function(self, b: Builder, name: str, linkage: str = "internal") -> None:
        """Append the function alone, and those of the bodies inside it."""
        for position, call in enumerate(self.calls):
            if isinstance(call, ControlCall):
                call.emit_bodies(b, f"{name}.step{position}")
        params = [("args", "ptr"), ("workspace", "ptr")]
        params += [(f"s{i}", "int64") for i in range(len(self.symbols))]
        starts = range(0, len(self.calls), _CHUNK)
        if len(starts) <= 1:
            with b.function(name, params, "int32", linkage) as values:
                self._emit_calls(b, name, 0, values)
            return
        for start in starts:
            with b.function(f"{name}.{start}", params, "int32", "internal") as values:
                self._emit_calls(b, name, start, values)
        with b.function(name, params, "int32", linkage) as values:
            operands = ", ".join(f"{type_of(v)} {v.name}" for v in values)
            for start in starts:
                status = b.fresh(f"call i32 @{name}.{start}({operands})", "int32")
                asks = start == 0 and any(packing.varies for packing in self.packed)
                if asks or any(map(self.stops, self.calls[start : start + _CHUNK])):
                    stop_if(b, b.icmp("ne", status, b.const(0, "int32")))
            b.ret(b.const(0, "int32"))

    def _emit_calls(self, b: Builder, name: str, start: int, values: Sequence[Value]) -> None:
        """The calls from `start` on, as many as one function takes."""
        w = _ProgramWriter(self, b, *values)
        if start == 0:
            w.ask_for_packing()
        for position, call in enumerate(self.calls[start : start + _CHUNK], start):
            step = f"{name}.step{position}"
            with b.watch.around(b, step, call) if b.watch is not None else nullcontext():
                call.emit(w, step)
            for check in self.checks.intersection(call.results):
                stop_if(b, b.load(w.address_of(check), "bool"))
        if start + _CHUNK >= len(self.calls):
            for variable in self.counted:
                count_version(b, w.address_of(variable))
        b.ret(b.const(0, "int32"))


class _ProgramWriter(Writer):
    """The open function of a program."""

    def __init__(self, program: Program, b: Builder, args: Value, workspace: Value, *sizes: Value) -> None:
        super().__init__(b, Sizes(b, dict(zip(program.symbols, sizes))), sizes)
        self._program = program
        self._args = args
        self._workspace = workspace
        bound = len(program.graph.inputs)
        packed = bound + len(program.bound)
        self._starts = {"input": 0, "bound": bound, "packed": packed, "output": packed + len(program.packed)}
        self._loaded: dict[Place, Value] = {}

    def address_of(self, node: Node) -> Value:
        return self.address(self._program.places[base_of(node)])

    def address(self, place: Place) -> Value:
        if place not in self._loaded:
            self._loaded[place] = self._find(place)
        return self._loaded[place]

    def _find(self, place: Place) -> Value:
        if place.kind == "workspace":
            return self.b.byte_offset(self._workspace, self.sizes.value(place.offset))
        address = self._argument(place)
        packing = self._program.packed[place.index] if place.kind == "packed" else None
        if packing is None or not packing.varies:
            return address
        old = self.b.icmp("ne", version_of(self.b, self.address_of(packing.leaf)), version_of(self.b, address))
        return self.b.select(old, self.b.null(), address)

    def _argument(self, place: Place) -> Value:
        return self.b.load(self.b.gep(self._args, self._starts[place.kind] + place.index, "ptr"), "ptr")

    def share(self, name: str, parts: Sequence[Callable[[Writer], None]]) -> None:
        b, held = self.b, (self._args, self._workspace, *self.told)
        params = [(f"a{i}", value.dtype) for i, value in enumerate(held)]

        def some(captured: Sequence[Value], begin: Value, end: Value) -> None:
            operands = ", ".join(f"{type_of(v)} {v.name}" for v in captured)
            for at in range(len(parts)):
                place, call = b.const(at, "int64"), f"call void @{name}.part{at}({operands})"
                mine = b.and_(b.icmp("sle", begin, place), b.icmp("slt", place, end))
                b.branch(mine, partial(b.line, call))

        for at, write in enumerate(parts):
            b.outline(f"{name}.part{at}", params, partial(self._write, write))
        parallel_region(b, b.const(len(parts), "int64"), b.const(1, "int64"), held, some)

    def _write(self, write: Callable[[Writer], None], *held: Value) -> None:
        write(_ProgramWriter(self._program, self.b, *held))

    def ask_for_packing(self) -> None:
        """Stop where some copies are older than values that have been read several times."""
        varying = [(i, packing) for i, packing in enumerate(self._program.packed) if packing.varies]
        if varying:
            pairs = [(self.address_of(p.leaf), self._argument(Place("packed", i))) for i, p in varying]
            stop_if(self.b, emit_due(self.b, pairs))
