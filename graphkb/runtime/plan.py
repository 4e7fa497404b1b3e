"""The plan: how one specialization of a function runs, as native kernels, interpreted nodes, or both."""

from __future__ import annotations

import ctypes
import importlib.util
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from graphkb.codegen.entry_words import ANY_SIZE
from graphkb.codegen.lock import Lock
from graphkb.ir.dims import Symbol, substitute
from graphkb.ir.graph import Graph, bodies
from graphkb.ir.leaves import Array, aligned_empty
from graphkb.ir.node import Node, make
from graphkb.ops.control import Step, is_control, items
from graphkb.ops.leaf import placeholder
from graphkb.runtime.interpreter import Program as Interpreted
from graphkb.runtime.interpreter import control_step, leaving, meaning, owned, raise_located, write
from graphkb.runtime.options import Options
from graphkb.runtime.packed_copies import PackedCopy, copy_of, packed_constant
from graphkb.runtime.progress import tell
from graphkb.runtime.report import Report, ReportStep, estimate, interpreted_step, origin_lines, result_type
from graphkb.runtime.state_lock import state_lock

if TYPE_CHECKING:
    from graphkb.codegen.builder import Builder
    from graphkb.codegen.engine import Engine
    from graphkb.codegen.packed_weights import Packing
    from graphkb.codegen.program import Program
    from graphkb.codegen.target import Target
    from graphkb.codegen.timing import Watch
    from graphkb.runtime.call_spec import CallSpec

# Estimated scalar operations and bytes above which a call lets other Python threads run: some microseconds.
_LONG = 100_000


class _BadIndexError(Exception):
    """A kernel must not run, because an index is out of range: the interpreter finds it, and says so."""


class Plan:
    """A graph of known sizes, interpreted node by node. The native plans are its subclasses.

    Attributes: `graph`, as it was given; `fused`, the graph whose nodes are the steps.
    """

    loops = ""
    llvm = ""

    def __init__(self, graph: Graph, note: str = "") -> None:
        self.graph = graph
        self.fused = graph
        self._note = note
        self._interpreted: Interpreted | None = None

    @property
    def asm(self) -> str:
        """The machine code as text; empty where there is none."""
        return ""

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """The outputs, with all updates written, from arrays of the exact dtype and shape."""
        return self.interpret(inputs)

    def interpret(self, inputs: Sequence[Array]) -> list[Array]:
        """`run` without machine code."""
        if self._interpreted is None:
            self._interpreted = Interpreted(self.graph)
        return self._interpreted.run(inputs)

    def entry_spec(self) -> CallSpec | None:
        """What the native entry needs, where every step is native."""
        return None

    def widened(self, inputs: Sequence[Array]) -> CallSpec | None:
        """What the native entry needs from now on, where these inputs take more workspace than any before."""
        return None

    def step(self) -> Step:
        """The plan of a body as a function for loops and branches: what it returns may share memory with its inputs."""
        if self._interpreted is None:
            self._interpreted = Interpreted(self.graph)
        return self._interpreted.step

    def report(self) -> Report:
        """Which steps are native, and what they cost."""
        steps = [interpreted_step(node, self._reason(node)) for node in self.graph.nodes if node.op.kind != "leaf"]
        return Report(self.graph.name, self._input_types(), tuple(steps), note=self._note)

    def _reason(self, node: Node) -> str:
        return "not compiled"

    def _input_types(self) -> tuple[str, ...]:
        return tuple([repr(node.type) for node in self.graph.inputs])


class CompiledPlan(Plan):
    """A plan of which one call of machine code runs everything.

    Attributes: `engine`, the machine code.
    """

    engine: Engine
    _spec: CallSpec

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        from graphkb.runtime.native_call import DeclinedError, run_context

        try:
            return run_context(self._spec, [plain_array(array) for array in inputs])
        except DeclinedError:
            # Nothing has been written: the interpreter finds the index at fault, and says so.
            return self.interpret(inputs)

    def entry_spec(self) -> CallSpec | None:
        return self._spec

    def step(self) -> Step:
        from graphkb.runtime.native_call import NativeEntry

        entry = NativeEntry(self.run)
        entry.add(self._spec)
        return entry.callable


class NativePlan(CompiledPlan):
    """A graph all of whose steps are kernels: one machine-code function runs it from end to end.

    Attributes: `sizes`, the values of unknown sizes for estimates.
    """

    sizes: Mapping[Symbol, int] = MappingProxyType({})

    def __init__(self, graph: Graph, fused: Graph, target: Target, options: Options) -> None:
        from graphkb.codegen.builder import Builder
        from graphkb.codegen.planner import make_program
        from graphkb.codegen.threads import shared_pool
        from graphkb.runtime.kernel_cache import compile_kernels

        super().__init__(graph)
        self.fused = fused
        self._target = target
        tell(f"scheduling the loops of {len(fused.nodes)} steps")
        self.program: Program = make_program(fused, target, cells=True, packs=options.pack_weights)
        b = Builder(target, parallel_for=shared_pool(target))
        self._emit(b)
        self.llvm = b.module()
        count = len(self.program.kernels.by_signature)
        tell(f"generating the code of {count} kernel{'s' * (count != 1)}")
        self.engine = compile_kernels(self.llvm, target, options)
        # Variables are used where they lie; constants are kept in aligned copies.
        self._bound = [bound_memory(node) for node in self.program.bound]
        self._packed = [packed_memory(packing) for packing in self.program.packed]
        self._spec = self._call_spec(options)

    def _emit(self, b: Builder) -> None:
        self.program.emit(b, "run")

    def timed(self, options: Options) -> tuple[CallSpec, Engine, Watch]:
        """The same program with a clock around every call, for profiles."""
        from graphkb.codegen.builder import Builder
        from graphkb.codegen.threads import shared_pool
        from graphkb.codegen.timing import Watch
        from graphkb.runtime.kernel_cache import compile_kernels

        b = Builder(self._target, parallel_for=shared_pool(self._target))
        b.watch = watch = Watch()
        self._emit(b)
        watch.finish(b)
        engine = compile_kernels(b.module(), self._target, options)
        spec = replace(self._spec, run=engine.address("run"), keepalive=(engine, self._bound, self._packed))
        if spec.sizes:
            spec = replace(spec, sizes=engine.address("sizes"))
        return spec, engine, watch

    def _call_spec(self, options: Options, **more: Any) -> CallSpec:
        from graphkb.runtime.call_spec import CallSpec

        steps = [node for node in self.fused.nodes if node.op.kind == "fused" or is_control(node)]
        work = sum(sum(estimate(node, self.sizes)) for node in steps)
        reads = any(node.op.name == "variable" for node in self.program.bound)
        return CallSpec(
            inputs=_signature(self.graph.inputs),
            outputs=_signature(self.graph.outputs),
            run=self.engine.address("run"),
            bound=(*map(address_of, self._bound), *map(memory_address, self._packed)),
            workspace_bytes=self._planned_bytes(),
            lock="exclusive" if self.graph.updates else "shared" if reads else "none",
            release_gil=work > _LONG,
            recycle=options.recycle,
            keepalive=(self.engine, self._bound, self._packed),
            copies=tuple([copy for copy in self._packed if isinstance(copy, PackedCopy)]),
            **more,
        )

    def _planned_bytes(self) -> int:
        total = substitute(self.program.memory.total, self.sizes)
        assert isinstance(total, int)
        return total

    @property
    def loops(self) -> str:  # type: ignore[override]
        return self.program.loops

    @property
    def asm(self) -> str:
        return self.engine.assembly()

    def report(self) -> Report:
        steps = tuple(native_steps(self.program, self.sizes))
        # Where sizes are left open, the plan does not know what is alive.
        alive = self.program.memory.lower_bound
        alive_bytes = alive if isinstance(alive, int) else None
        packed = sum(packing.layout.nbytes for packing in self.program.packed)
        return Report(
            self.graph.name, self._input_types(), steps, self._planned_bytes(), alive_bytes, self._note, packed
        )


class MixedPlan(Plan):
    """A graph some of whose steps are kernels: Python runs the steps in order.

    Loops and branches all of whose bodies are native have native plans, others are walked by Python, with a plan for
    each body.

    Attributes: `seconds` that each step took in the latest call.
    """

    def __init__(self, graph: Graph, fused: Graph, target: Target, options: Options) -> None:
        from graphkb.codegen.builder import Builder
        from graphkb.codegen.kernels import Kernels
        from graphkb.codegen.program import checks_of, interpreted_nodes
        from graphkb.codegen.threads import shared_pool
        from graphkb.runtime.kernel_cache import compile_kernels

        super().__init__(graph)
        self.fused = fused
        self.seconds: dict[Node, float] = {}
        self._kernels = Kernels(target)
        self._controls = {
            node: _control_plan(node, target, options)
            for node in fused.nodes
            if is_control(node) and not interpreted_nodes(Graph((), (node,)))
        }
        walked = [node for node in fused.nodes if is_control(node) and node not in self._controls]
        self._bodies = {body: make_plan(body, options) for node in walked for _, body in bodies(node)}
        native = [node for node in fused.nodes if node.op.kind == "fused"]
        b = Builder(target, parallel_for=shared_pool(target))
        for node in native:
            self._kernels.of(node)
        self._kernels.emit(b)
        for node in native:
            self._kernels.emit_call(b, self._kernels.of(node))
        module = b.module()
        self.llvm = "\n".join([module, *[plan.llvm for plan in self._inner() if plan.llvm]])
        self._engine: Engine = compile_kernels(module, target, options)
        self._checks = frozenset([check for node in native for check in checks_of(node)])
        self._steps = self._make_steps()
        self._reads = any(node.op.name == "variable" for node in fused.nodes)
        self._presets = {n: bound_memory(n) for n in fused.nodes if n.op.kind == "leaf" and n.op.name != "placeholder"}

    @property
    def loops(self) -> str:  # type: ignore[override]
        return "\n".join([self._kernels.loops, *[plan.loops for plan in self._inner() if plan.loops]])

    @property
    def asm(self) -> str:
        return "\n".join([self._engine.assembly(), *[plan.asm for plan in self._inner() if plan.asm]])

    def kernel_name(self, node: Node) -> str:
        """The name of the kernel of a fused node."""
        return self._kernels.of(node).name

    def is_native(self, node: Node) -> bool:
        """Whether a step is machine code as a whole."""
        return node.op.kind == "fused" or node in self._controls

    def _inner(self) -> Iterator[Plan]:
        """The plans of loops, branches and bodies."""
        yield from self._controls.values()
        yield from self._bodies.values()

    def _make_steps(self) -> list[tuple[Node, Callable[..., Any], tuple[Node, ...]]]:
        """Each node that is not a leaf, how it runs, and the values that die with it."""
        last: dict[Node, Node] = {}
        order = [node for node in self.fused.nodes if node.op.kind != "leaf"]
        for node in order:
            for i in node.inputs:
                last[i] = node
        keep = set(self.fused.roots)
        dying: dict[Node, list[Node]] = {}
        for value, reader in last.items():
            if value not in keep and value.op.kind != "leaf":
                dying.setdefault(reader, []).append(value)
        return [(node, self._call(node), tuple(dying.get(node, ()))) for node in order]

    def _call(self, node: Node) -> Callable[..., Any]:
        if node.op.kind == "fused":
            return self._native(node)
        if node in self._controls:
            plan = self._controls[node]
            return lambda *arrays: tuple(plan.run(arrays))
        if is_control(node):
            return control_step(node, lambda body: self._bodies[body].step())
        return meaning(node)

    def _native(self, node: Node) -> Callable[..., Array | tuple[Array, ...]]:
        from graphkb.codegen.program import results_of

        kernel = self._kernels.of(node)
        run = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p)(self._engine.address(f"call.{kernel.name}"))
        results = _signature(results_of(node))
        count = len(node.inputs) + len(results)
        scratch = self._kernels.scratch(kernel)

        def call(*arrays: Array) -> Array | tuple[Array, ...]:
            plain = [plain_array(array) for array in arrays]
            made = tuple([aligned_empty(shape, dtype) for dtype, shape in results])
            memory = aligned_empty((scratch,), "uint8")
            pointers = (ctypes.c_void_p * count)(*map(address_of, plain), *map(address_of, made))
            run(ctypes.addressof(pointers), address_of(memory))
            return made[0] if len(made) == 1 else made

        return call

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        try:
            if self.graph.updates or self._reads:
                return state_lock.run(Lock.EXCLUSIVE if self.graph.updates else Lock.SHARED, self._run, inputs)
            return self._run(inputs)
        except _BadIndexError:
            return super().run(inputs)

    def step(self) -> Step:
        interpreted = super().step()

        def compute(inputs: Sequence[Array]) -> list[Array]:
            try:
                values = self._compute(inputs)
            except _BadIndexError:
                return list(interpreted(inputs))
            return [values[output] for output in self.fused.outputs]

        return compute

    def _run(self, inputs: Sequence[Array]) -> list[Array]:
        values = self._compute(inputs)
        foreign = {id(_owner(array)) for array in (*self._presets.values(), *inputs)}
        outputs = []
        for output in self.fused.outputs:
            array = owned(leaving(output, np.array(values[output], copy=None)), foreign)
            foreign.add(id(_owner(array)))
            outputs.append(array)
        # A new value may be a view of another variable, so all are at hand before the first is written.
        new = [np.array(values[value]) for _, value in self.fused.updates]
        write([cell for cell, _ in self.fused.updates], new)
        return outputs

    def _compute(self, inputs: Sequence[Array]) -> dict[Node, Any]:
        """The values of all roots, some of them perhaps views of inputs, variables or one another."""
        values: dict[Node, Any] = {**self._presets, **dict(zip(self.fused.inputs, inputs))}
        node: Node | None = None
        try:
            with np.errstate(all="ignore"):
                for node, call, dead in self._steps:
                    start = time.perf_counter()
                    values[node] = call(*[values[i] for i in node.inputs])
                    self.seconds[node] = time.perf_counter() - start
                    if node in self._checks and values[node]:
                        raise _BadIndexError
                    for value in dead:
                        del values[value]
        except _BadIndexError:
            raise
        except Exception as error:
            assert node is not None
            raise_located(error, self.fused, node)
        return values

    def report(self) -> Report:
        steps = []
        for node in self.fused.nodes:
            if node.op.kind == "fused":
                steps.append(_native_step(node, self._kernels.of(node).name))
            elif node in self._controls:
                steps += self._controls[node].report().steps
            elif node.op.kind != "leaf" and node.op.name not in ("reshape", "item"):
                steps.append(interpreted_step(node, self._reason(node)))
                for name, body in bodies(node):
                    inner = self._bodies[body].report().steps
                    steps += [replace(step, name=f"{name}/{step.name}") for step in inner]
        return Report(self.graph.name, self._input_types(), tuple(steps))

    def _reason(self, node: Node) -> str:
        if node.op.name == "scan":
            return f"Python goes through the {node.attrs['length']} steps"
        if node.op.name == "cond":
            return "Python chooses the branch"
        return f"there is no kernel for {node.op.name}"


def obstacle(options: Options) -> str:
    """Why nothing is compiled; empty where things are."""
    if options.mode == "interpret":
        return 'mode="interpret": nothing is compiled'
    if importlib.util.find_spec("llvmlite") is None:
        return "llvmlite is not installed: nothing is compiled"
    return ""


def make_plan(graph: Graph, options: Options) -> Plan:
    """The plan of an optimized graph whose sizes are all known."""
    if reason := obstacle(options):
        return Plan(graph, reason)
    from graphkb.codegen.program import interpreted_nodes
    from graphkb.passes.pipeline import FUSION, optimize
    from graphkb.runtime.kernel_cache import find_target

    target = find_target(options)
    fused = optimize(graph, FUSION)
    if not interpreted_nodes(fused):
        return NativePlan(graph, fused, target, options)
    if any(node.op.kind == "fused" or is_control(node) for node in fused.nodes):
        return MixedPlan(graph, fused, target, options)
    return Plan(graph, "no step of it has a kernel")


def _control_plan(node: Node, target: Target, options: Options) -> NativePlan:
    """The plan of one fused loop or branch whose values are the outputs."""
    operands = tuple([placeholder(i.shape, i.dtype, f"in{k}") for k, i in enumerate(node.inputs)])
    alone = make(node.op, operands, node.attrs, node.type, node.origin)
    graph = Graph(operands, items(alone), name=node.op.name)
    return NativePlan(graph, graph, target, options)


def native_steps(program: Program, sizes: Mapping[Symbol, int] | None = None) -> Iterator[ReportStep]:
    """The kernels, loops and branches of a program as its graph lists them, and behind each what it consists of."""
    calls = {call.node: call for call in program.single_calls if call.node is not None}
    grouped = {node for group in program.groups for node in group.nodes}
    for node in program.graph.nodes:
        call = calls.get(node)
        if call is None:
            continue
        yield _native_step(node, f"group/{call.name}" if node in grouped else call.name, sizes)
        for name, body in call.named_bodies:  # as deep as bodies nest
            yield from (replace(step, name=f"{name}/{step.name}") for step in native_steps(body, sizes))


def _native_step(node: Node, name: str, sizes: Mapping[Symbol, int] | None = None) -> ReportStep:
    flops, nbytes = estimate(node, sizes)
    return ReportStep(name, True, "", result_type(node), origin_lines([node]), flops, nbytes)


def _signature(nodes: Sequence[Node]) -> tuple[tuple[str, tuple[int, ...]], ...]:
    return tuple([(node.dtype, tuple([d if isinstance(d, int) else ANY_SIZE for d in node.shape])) for node in nodes])


def bound_memory(leaf: Node) -> Array:
    """The array that a leaf stands for: a variable's own, a constant's in C order."""
    numpy = leaf.op.numpy
    assert numpy is not None
    array = numpy(**leaf.attrs)
    return array if leaf.op.name == "variable" else plain_array(np.asarray(array))


def packed_memory(packing: Packing) -> PackedCopy | Array:
    """The packed copy of a leaf."""
    if packing.varies:
        return copy_of(packing.leaf.attrs["cell"], packing.layout)
    return packed_constant(bound_memory(packing.leaf), packing.layout)


def memory_address(packed: PackedCopy | Array) -> int:
    """Where a packed copy lies."""
    return address_of(packed.array if isinstance(packed, PackedCopy) else packed)


def plain_array(array: Array) -> Array:
    """The array, C-contiguous and aligned."""
    return np.require(array, requirements=["C_CONTIGUOUS", "ALIGNED"])


def _owner(array: Array) -> Array:
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array


def address_of(array: Array) -> int:
    return int(array.__array_interface__["data"][0])
