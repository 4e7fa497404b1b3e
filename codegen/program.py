"""The program: a fused graph as kernel calls over planned memory, shared by the JIT and the ahead-of-time compiler."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from graphkb.codegen.builder import Builder, Value, type_of
from graphkb.codegen.emit import Sizes
from graphkb.codegen.loops import Affine, Buffer, For, Kernel, Load, NativeKernel, Store, Var, affine
from graphkb.codegen.lower import lower
from graphkb.codegen.target import Target
from graphkb.ir.dims import Dim, Symbol
from graphkb.ir.graph import Graph, graph_symbols
from graphkb.ir.leaves import VariableCell
from graphkb.ir.node import Node
from graphkb.ir.types import TensorType, TupleType
from graphkb.ops.control import items
from graphkb.passes.plan_memory import MemoryPlan, Request, plan_memory

# Calls in one function: LLVM's effort grows faster than a function's length.
_CHUNK = 64


@dataclass(frozen=True)
class Place:
    """Where a value lies: argument `index` of the call, or `offset` bytes into the workspace."""

    kind: Literal["input", "bound", "output", "workspace"]
    index: int = 0
    offset: Dim = 0


@dataclass(frozen=True)
class Call:
    """One kernel with the values that it reads and those that it writes."""

    kernel: NativeKernel
    operands: tuple[Node, ...]
    results: tuple[Node, ...]
    # Copies name their memory outright.
    source: Node | None = None
    target: Place | None = None
    scratch: Place | None = None


def is_alias(node: Node) -> bool:
    """Whether a node is another shape of memory that another node fills."""
    return node.op.name == "reshape"


def base_of(node: Node) -> Node:
    """The node whose memory holds the value of a node."""
    while is_alias(node):
        node = node.inputs[0]
    return node


def interpreted_nodes(graph: Graph) -> list[Node]:
    """The nodes of a fused graph that have no kernel."""
    # An item is part of the loop or branch that it is taken from.
    return [n for n in graph.nodes if n.op.kind not in ("leaf", "fused") and n.op.name != "item" and not is_alias(n)]


def results_of(node: Node) -> tuple[Node, ...]:
    """The values that a fused node stores: itself, or its items."""
    return items(node) if isinstance(node.type, TupleType) else (node,)


def checks_of(node: Node) -> list[Node]:
    """The values that must be False before a fused node may run: whether indices that it uses are out of range."""
    body = node.attrs["body"]
    outer = dict(zip(body.inputs, node.inputs))
    return [outer[inner.inputs[1]] for inner in body.nodes if inner.op.name == "guard"]


class Kernels:
    """The distinct kernels of one module: equal ones are compiled once."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.by_signature: dict[str, NativeKernel] = {}
        self._lowered: dict[Hashable, NativeKernel] = {}
        self._callers: set[str] = set()

    def of(self, node: Node) -> NativeKernel:
        """The kernel of a fused node, with the function's name that equal kernels share."""
        body = node.attrs["body"]
        key = _structure(body)
        kernel = self._lowered.get(key)
        if kernel is None:
            kernel = self._lowered[key] = self._share(lower(body, _kernel_name(body), self.target))
        return kernel

    def copy(self, type: TensorType) -> NativeKernel:
        """The kernel that copies a value."""
        source, target = (Buffer(i, n, type.dtype, type.size, bool(i)) for i, n in enumerate(("in0", "out")))
        var = Var("i0", type.size)
        lanes = max(1, self.target.lanes(type.dtype)) * 2
        store = Store(target, affine(var), Load(source, affine(var)))
        body = For(var, (store,), lanes) if type.size != 1 else Store(target, Affine(), Load(source, Affine()))
        return self._share(Kernel("copy", (source, target), (body,)))

    def _share(self, kernel: NativeKernel) -> NativeKernel:
        signature = kernel.signature
        known = self.by_signature.get(signature)
        if known is None:
            known = self.by_signature[signature] = kernel.renamed(f"{kernel.name}.{len(self.by_signature)}")
        return known

    @property
    def loops(self) -> str:
        """The kernels in the loop language."""
        return "\n".join(str(k) for k in self.by_signature.values())

    def emit(self, b: Builder) -> None:
        """Append the function of every kernel."""
        for kernel in self.by_signature.values():
            kernel.emit(b)

    def emit_call(self, b: Builder, kernel: NativeKernel) -> None:
        """Append `void call.name(ptr args, ptr scratch)`, which runs one kernel of known sizes."""
        name = f"call.{kernel.name}"
        if name in self._callers:
            return
        self._callers.add(name)
        with b.function(name, [("args", "ptr"), ("scratch", "ptr")]) as (args, scratch):
            pointers = [b.load(b.gep(args, i, "ptr"), "ptr") for i in range(len(kernel.buffers))]
            pointers += [scratch] if kernel.scratch != 0 else []
            operands = ", ".join(f"ptr {p.name}" for p in pointers)
            b.line(f"call void @{kernel.name}({operands})")
            b.ret()

    def scratch(self, kernel: NativeKernel) -> int:
        """The bytes of working memory that a kernel of known sizes needs."""
        assert isinstance(kernel.scratch, int)
        return kernel.scratch


def _structure(body: Graph) -> Hashable:
    """What two bodies must have in common to become the same kernel: ops, attributes, types and wiring."""
    position = {node: i for i, node in enumerate(body.nodes)}
    rows = [
        (
            node.op,
            () if node.op.name == "placeholder" else tuple(node.attrs.values()),
            tuple([position[i] for i in node.inputs]),
            node.type,
        )
        for node in body.nodes
    ]
    return (*rows, *[position[node] for node in (*body.inputs, *body.outputs)])


def _kernel_name(body: Graph) -> str:
    """A short name from the ops of a kernel, the last one first: `relu_add_dot`."""
    names = [n.op.name for n in reversed(body.nodes) if n.op.kind not in ("leaf", "view")]
    distinct = list(dict.fromkeys(names)) or [body.outputs[0].op.name]
    return "_".join(distinct[:4])


@dataclass
class Program:
    """Kernel calls in order, and where every value lies.

    Attributes:
        graph: the fused graph.
        calls: in the order in which they run.
        bound: the variables and constants that the caller hands over, after the inputs.
        places: the memory of every base node.
        memory: the plan of the workspace.
        symbols: unknown sizes, which the caller tells.
        checks: the bool scalars that tell whether indices are out of range; all stand before any write to a variable.
    """

    graph: Graph
    kernels: Kernels
    calls: list[Call] = field(default_factory=list)
    bound: list[Node] = field(default_factory=list)
    places: dict[Node, Place] = field(default_factory=dict)
    memory: MemoryPlan = field(default_factory=lambda: MemoryPlan((), 0, 0))
    checks: frozenset[Node] = frozenset()

    @property
    def symbols(self) -> tuple[Symbol, ...]:
        return tuple(sorted(graph_symbols(self.graph), key=lambda s: s.name))

    @property
    def loops(self) -> str:
        """The kernels in the loop language."""
        return self.kernels.loops

    def emit(self, b: Builder, name: str, linkage: str = "") -> None:
        """Append the kernels and `i32 name(ptr args, ptr workspace, i64 size...)`.

        `args` holds the addresses of the inputs, the bound values and the outputs. The function returns 0, or 1 where
        an index is out of range: then no variable has been written, and the outputs hold anything.
        """
        self.kernels.emit(b)
        params = [("args", "ptr"), ("workspace", "ptr")]
        params += [(f"s{i}", "int64") for i in range(len(self.symbols))]
        chunks = [self.calls[i : i + _CHUNK] for i in range(0, len(self.calls), _CHUNK)]
        if len(chunks) <= 1:
            with b.function(name, params, "int32", linkage) as (args, workspace, *sizes):
                self._emit_calls(b, self.calls, args, workspace, sizes)
            return
        for i, chunk in enumerate(chunks):
            with b.function(f"{name}.{i}", params, "int32", "internal") as (args, workspace, *sizes):
                self._emit_calls(b, chunk, args, workspace, sizes)
        with b.function(name, params, "int32", linkage) as values:
            operands = ", ".join(f"{type_of(v)} {v.name}" for v in values)
            for i, chunk in enumerate(chunks):
                status = b.fresh(f"call i32 @{name}.{i}({operands})", "int32")
                if any(self.checks.intersection(call.results) for call in chunk):
                    _stop_if(b, b.icmp("ne", status, b.const(0, "int32")))
            b.ret(b.const(0, "int32"))

    def _emit_calls(
        self, b: Builder, calls: Sequence[Call], args: Value, workspace: Value, sizes: Sequence[Value]
    ) -> None:
        evaluate = Sizes(b, dict(zip(self.symbols, sizes)))
        starts = {"input": 0, "bound": len(self.graph.inputs)}
        starts["output"] = starts["bound"] + len(self.bound)
        loaded: dict[Place, Value] = {}

        def address(place: Place) -> Value:
            if place not in loaded:
                if place.kind == "workspace":
                    loaded[place] = b.byte_offset(workspace, evaluate.value(place.offset))
                else:
                    slot = b.gep(args, starts[place.kind] + place.index, "ptr")
                    loaded[place] = b.load(slot, "ptr")
            return loaded[place]

        for call in calls:
            pointers = [address(self.places[base_of(n)]) for n in call.operands]
            targets = [call.target] if call.target else [self.places[n] for n in call.results]
            dims = [evaluate.symbols[s] for s in call.kernel.symbols]
            pointers += map(address, [*targets, *([call.scratch] if call.scratch else [])])
            operands = ", ".join(f"{type_of(v)} {v.name}" for v in (*pointers, *dims))
            b.line(f"call void @{call.kernel.name}({operands})")
            for check in self.checks.intersection(call.results):
                _stop_if(b, b.load(address(self.places[check]), "bool"))
        b.ret(b.const(0, "int32"))


def _stop_if(b: Builder, bad: Value) -> None:
    """Return 1 where a condition holds."""
    fail, go_on = b.fresh_label("fail"), b.fresh_label("ok")
    b.cond_br(bad, fail, go_on, likely=False)
    b.start(fail)
    b.ret(b.const(1, "int32"))
    b.start(go_on)


def make_program(graph: Graph, target: Target) -> Program:
    """The program of a fused graph all of whose nodes have kernels."""
    program = Program(graph, Kernels(target))
    _Planner(program).run()
    return program


def _replaceable(call: Call, result: Node) -> list[Node]:
    """The operands of a call whose memory one of its results may take."""
    kernel = call.kernel
    free = kernel.in_place[len(call.operands) + call.results.index(result)]
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

    def run(self) -> None:
        program, graph = self.program, self.graph
        for i, node in enumerate(graph.inputs):
            self.places[node] = Place("input", i)
        for node in graph.nodes:
            if node.op.kind == "leaf" and node.op.name != "placeholder":
                self.places[node] = Place("bound", len(program.bound))
                program.bound.append(node)
        nodes = [node for node in graph.nodes if node.op.kind == "fused"]
        program.checks = frozenset([check for node in nodes for check in checks_of(node)])
        calls = [
            Call(program.kernels.of(node), tuple(map(base_of, node.inputs)), results_of(node))
            for node in self._checks_first(nodes)
        ]
        self._outputs()
        self._updates(calls)
        program.calls = [*self.first, *calls, *self.last]
        self._workspace()

    def _checks_first(self, nodes: list[Node]) -> list[Node]:
        """The nodes in an order that has all checks, and what they need, before everything else."""
        early = set(self.program.checks)
        for node in reversed(nodes):
            if node in early:
                early.update([b.inputs[0] if b.op.name == "item" else b for b in map(base_of, node.inputs)])
        return [n for n in nodes if n in early] + [n for n in nodes if n not in early]

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

    def _updates(self, calls: list[Call]) -> None:
        readers: dict[Node, int] = {}  # the last call that reads a node
        written: dict[Node, int] = {}
        for position, call in enumerate(calls):
            for result in call.results:
                written[result] = position
            for operand in call.operands:
                readers[operand] = position
        checked = max([written[check] for check in self.program.checks], default=-1)
        variables = {n.attrs["cell"]: n for n in self.program.bound if n.op.name == "variable"}
        final: list[Call] = []
        for cell, value in self.graph.updates:
            variable = variables[cell] if cell in variables else self._bind(cell, variables)
            base, place = base_of(value), self.places[variable]
            if base is variable:
                continue
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

    def _may_overwrite(self, variable: Node, base: Node, call: Call, position: int, readers: dict[Node, int]) -> bool:
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
        working = [position for position, call in enumerate(calls) if call.kernel.scratch != 0]
        requests += [Request(calls[position].kernel.scratch, position, position) for position in working]
        self.program.memory = plan_memory(requests)
        for position, offset in zip(working, self.program.memory.offsets[len(spans) :]):
            calls[position] = replace(calls[position], scratch=Place("workspace", 0, offset))
        for node, offset in zip(spans, self.program.memory.offsets):
            self.places[node] = Place("workspace", 0, offset)
        for node, owner in heir.items():
            self.places[node] = self.places[owner]
