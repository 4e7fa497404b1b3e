"""The program: a fused graph as kernel calls over planned memory, shared by the JIT and the ahead-of-time compiler."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from graphkb.codegen.builder import Builder, Value, type_of
from graphkb.codegen.calls import Call, Place, Writer, stop_if
from graphkb.codegen.control_calls import BranchCall
from graphkb.codegen.emit import Sizes
from graphkb.codegen.kernels import Kernels
from graphkb.codegen.loop_calls import LoopCall
from graphkb.codegen.packed_weights import (
    PackedLayout,
    Packing,
    Reads,
    count_version,
    emit_due,
    may_be_packed,
    version_of,
)
from graphkb.codegen.parts import plain_reads
from graphkb.codegen.target import Target
from graphkb.ir.dims import Symbol
from graphkb.ir.graph import Graph, bodies, graph_symbols
from graphkb.ir.leaves import VariableCell
from graphkb.ir.node import Node
from graphkb.ir.types import TupleType
from graphkb.ops.control import is_control, items
from graphkb.passes.durations import product_picoseconds
from graphkb.passes.order_steps import Flow, order_steps
from graphkb.passes.plan_memory import MemoryPlan, Request, plan_memory

# Calls in one function: LLVM's effort grows faster than a function's length.
_CHUNK = 64
# Picoseconds of products one after another for whose sake threads stay awake.
_LIVELY = 24_000_000


Step: TypeAlias = Call | LoopCall | BranchCall


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
    def loops(self) -> str:
        """The kernels in the loop language; if some run inside loops or branches, then the order in which all run."""
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
        for call in self.calls:
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
            if not isinstance(call, Call):
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

    def ask_for_packing(self) -> None:
        """Stop where some copies are older than values that have been read several times."""
        varying = [(i, packing) for i, packing in enumerate(self._program.packed) if packing.varies]
        if varying:
            pairs = [(self.address_of(p.leaf), self._argument(Place("packed", i))) for i, p in varying]
            stop_if(self.b, emit_due(self.b, pairs))


def make_program(graph: Graph, target: Target, cells: bool = False, packs: bool = False) -> Program:
    """The program of a fused graph all of whose nodes have kernels; for the other arguments see `Program`."""
    program = Program(graph, Kernels(target), often=product_picoseconds(graph) >= _LIVELY, cells=cells, packs=packs)
    _Planner(program).run()
    return program


def _replaceable(call: Step, result: Node) -> list[Node]:
    """The operands of a call whose memory one of its results may take."""
    free = call.in_place(result)
    kept = {operand for i, operand in enumerate(call.operands) if i not in free}
    return [operand for operand in dict.fromkeys(call.operands) if operand not in kept]


class _Planner:
    """Chooses the memory of every value and the order of copies."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.graph = program.graph
        self.places = program.places
        self.first: list[Call] = []  # copies of values that kernels are about to overwrite
        self.last: list[Call] = []  # copies to outputs and variables that no kernel could write directly
        self.saved: dict[Node, Node] = {}
        self.present = set(self.graph.nodes)
        self.written = {cell for cell, _ in self.graph.updates}

    def run(self) -> None:
        program, graph = self.program, self.graph
        for i, node in enumerate(graph.inputs):
            self.places[node] = Place("input", i)
        for node in graph.nodes:
            if node.op.kind == "leaf" and node.op.name != "placeholder":
                self.places[node] = Place("bound", len(program.bound))
                program.bound.append(node)
        program.checks = frozenset(
            [check for node in graph.nodes if node.op.kind == "fused" for check in checks_of(node)]
        )
        calls = [self._call(node) for node in graph.nodes if has_call(node)]
        self._outputs()
        calls = self._checks_first(self._ordered(calls))
        self._updates(calls)
        program.calls = [*self.first, *calls, *self.last]
        self._workspace()

    def _call(self, node: Node) -> Step:
        """What computes a node; the leaves of bodies become bound like those of the graph."""
        operands = tuple(map(base_of, node.inputs))
        if node.op.kind == "fused":
            kernel = self.program.kernels.of(node, self.program.often, self._packed(operands))
            packed = tuple([self._pack(operands[position], layout) for position, layout in kernel.packed])
            return Call(kernel, operands, results_of(node), packed=packed)
        taken = tuple([item if item in self.present else None for item in items(node)])
        kind = LoopCall if node.op.name == "scan" else BranchCall
        call = kind.make(node, operands, taken, self._body)
        for leaf in call.bound:
            if leaf not in self.places:
                self.places[leaf] = Place("bound", len(self.program.bound))
                self.program.bound.append(leaf)
        return call

    def _packed(self, operands: Sequence[Node]) -> dict[int, Reads]:
        """How a kernel may read its operands: packed where they are known, or change outside of this program only."""
        if not self.program.packs:
            return {}
        found: dict[int, Reads] = {}
        for position, operand in enumerate(operands):
            if operand.op.name == "constant":
                found[position] = "packed"
            elif operand.op.name == "variable" and operand.attrs["cell"] not in self.written:
                found[position] = "either" if self.program.cells else "packed"
        return found

    def _pack(self, leaf: Node, layout: PackedLayout) -> Place:
        """The place of the packed copy of a leaf."""
        packing = Packing(leaf, layout, self.program.cells and leaf.op.name == "variable")
        packed = self.program.packed
        if packing not in packed:
            packed.append(packing)
        return Place("packed", packed.index(packing))

    def _ordered(self, calls: list[Step]) -> list[Step]:
        """The calls in an order that needs little memory, and lets new values of variables take the place of old."""
        sizes: dict[Hashable, int] = {}
        maker: dict[Node, int] = {}
        readers: dict[Node, list[int]] = {}
        for number, call in enumerate(calls):
            for operand in call.operands:
                readers.setdefault(operand, []).append(number)
            for result in call.results:
                maker[result] = number
                nbytes = result.type.nbytes
                if not isinstance(nbytes, int):
                    return calls
                if result not in self.places:
                    sizes[result] = nbytes
        after: dict[int, list[int]] = {}
        variables = {n.attrs["cell"]: n for n in self.program.bound if n.op.name == "variable"}
        for cell, value in self.graph.updates:
            base = base_of(value)
            sizes.pop(base, None)
            if cell in variables and base in maker:
                before = [n for n in readers.get(variables[cell], ()) if n < maker[base]]
                after.setdefault(maker[base], []).extend(before)
        flows = [Flow(c.operands, c.results, after.get(number, ())) for number, c in enumerate(calls)]
        return [calls[number] for number in order_steps(flows, sizes)]

    def _body(self, graph: Graph, often: bool) -> Program:
        """The program of a body."""
        program = Program(graph, self.program.kernels, self.program.symbols, often or self.program.often)
        _Planner(program).run()
        return program

    def _checks_first(self, calls: list[Step]) -> list[Step]:
        """The calls in an order that has all that may stop, and what they need, before everything else."""
        early: set[Node] = set()
        first: set[Step] = set()
        for call in reversed(calls):
            if self.program.stops(call) or not early.isdisjoint(call.results):
                first.add(call)
                early.update(call.operands)
        return [c for c in calls if c in first] + [c for c in calls if c not in first]

    def _copy(self, source: Node, target: Place) -> Call:
        kernel = self.program.kernels.copy(source.type)
        return Call(kernel, (source,), (), source, target)

    def _outputs(self) -> None:
        for i, node in enumerate(self.graph.outputs):
            base, place = base_of(node), Place("output", i)
            if base.op.kind == "leaf":
                self.first.append(self._copy(base, place))
            elif base in self.places:
                self.last.append(self._copy(base, place))
            else:
                self.places[base] = place

    def _updates(self, calls: list[Step]) -> None:
        readers: dict[Node, int] = {}  # the last call that reads a node
        written: dict[Node, int] = {}
        checked = -1
        for position, call in enumerate(calls):
            written.update(dict.fromkeys(call.results, position))
            readers.update(dict.fromkeys(call.operands, position))
            if self.program.stops(call):
                checked = position
        variables = {n.attrs["cell"]: n for n in self.program.bound if n.op.name == "variable"}
        final: list[Call] = []
        for cell, value in self.graph.updates:
            variable = variables[cell] if cell in variables else self._bind(cell, variables)
            base, place = base_of(value), self.places[variable]
            if base is variable:
                continue
            if self.program.cells and may_be_packed(cell.type):
                self.program.counted.append(variable)
            if base.op.name == "variable":
                final.append(self._copy(self._save(base), place))
            elif base.op.kind == "leaf" or base in self.places:
                final.append(self._copy(base, place))
            elif written[base] > checked and self._may_overwrite(
                variable, base, calls[written[base]], written[base], readers
            ):
                self.places[base] = place
            else:
                final.append(self._copy(base, place))
        self.last += final

    def _bind(self, cell: VariableCell, variables: dict[VariableCell, Node]) -> Node:
        """A variable that is written but not read."""
        from graphkb.ops.leaf import variable

        node = variables[cell] = variable(cell)
        self.places[node] = Place("bound", len(self.program.bound))
        self.program.bound.append(node)
        return node

    def _save(self, variable: Node) -> Node:
        """A copy of a variable's old value, made before anything runs."""
        if variable not in self.saved:
            from graphkb.ops.elementwise import stop_gradient

            held = self.saved[variable] = stop_gradient(variable)
            kernel = self.program.kernels.copy(variable.type)
            self.first.append(Call(kernel, (variable,), (held,)))
        return self.saved[variable]

    def _may_overwrite(self, variable: Node, base: Node, call: Step, position: int, readers: dict[Node, int]) -> bool:
        """Whether a kernel may write a variable's new value over the old one."""
        if base.type.size != variable.type.size or base.dtype != variable.dtype:
            return False
        last = readers.get(variable, -1)
        if last != position:
            return last < position
        return variable in _replaceable(call, base)

    def _workspace(self) -> None:
        """Places for all values that lie nowhere yet; a kernel may write over an operand that dies with it."""
        calls = self.program.calls
        born: dict[Node, int] = {}
        dies: dict[Node, int] = {}
        for position, call in enumerate(calls):
            for operand in call.operands:
                dies[operand] = position
            for result in call.results:
                if result not in self.places:
                    born[result] = position
                    dies.setdefault(result, position)
        heir: dict[Node, Node] = {}  # a value that takes over an operand's memory
        for position, call in enumerate(calls):
            dying = {operand for operand in call.operands if operand in born and dies[operand] == position}
            for result in call.results:
                if result not in born:
                    continue
                for operand in _replaceable(call, result):
                    if operand in dying and operand.type.nbytes == result.type.nbytes:
                        heir[result] = heir.get(operand, operand)
                        dying.discard(operand)
                        break
        spans: dict[Node, list[int]] = {}
        for node in born:
            owner = heir.get(node, node)
            span = spans.setdefault(owner, [born[owner], dies[owner]])
            span[1] = max(span[1], dies[node])
        requests = [Request(node.type.nbytes, first, last) for node, (first, last) in spans.items()]
        working = [position for position, call in enumerate(calls) if call.scratch_bytes != 0]
        requests += [Request(calls[position].scratch_bytes, position, position) for position in working]
        self.program.memory = plan_memory(requests)
        for position, offset in zip(working, self.program.memory.offsets[len(spans) :]):
            calls[position] = replace(calls[position], scratch=Place("workspace", 0, offset))
        for node, offset in zip(spans, self.program.memory.offsets):
            self.places[node] = Place("workspace", 0, offset)
        for node, owner in heir.items():
            self.places[node] = self.places[owner]
