"""Planning programs: what computes each node of a fused graph, in which order, and where every value lies."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace

from graphkb.codegen.call_groups import CallGroup
from graphkb.codegen.calls import Call, Place
from graphkb.codegen.chain_calls import ChainCall
from graphkb.codegen.control_calls import BranchCall
from graphkb.codegen.kernels import Kernels
from graphkb.codegen.loop_calls import LoopCall
from graphkb.codegen.packed_weights import PackedLayout, Packing, Reads, may_be_packed
from graphkb.codegen.program import Program, Step, base_of, checks_of, has_call, results_of
from graphkb.codegen.target import Target
from graphkb.ir.graph import Graph
from graphkb.ir.leaves import VariableCell
from graphkb.ir.node import Node
from graphkb.ops.control import items
from graphkb.passes.durations import picoseconds, product_picoseconds
from graphkb.passes.gather_steps import gather_steps, share_out
from graphkb.passes.order_steps import Flow, order_steps
from graphkb.passes.plan_memory import Request, plan_memory

# Picoseconds of products one after another for whose sake threads stay awake.
_LIVELY = 24_000_000
# And of a kernel that threads share by itself.
_LONG = 16_000_000
_CONTROL: Mapping[str, type[LoopCall] | type[BranchCall] | type[ChainCall]] = {
    "scan": LoopCall,
    "cond": BranchCall,
    "chain": ChainCall,
}


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


def _small(call: Step) -> int | None:
    """About how many picoseconds a kernel takes, if it is too short for threads to share it by itself."""
    if not isinstance(call, Call) or call.node is None:
        return None
    body: Graph = call.node.attrs["body"]
    if not all(node.type.is_static for node in body.nodes):
        return None
    time = picoseconds(body)
    return time if time < _LONG else None


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
        calls = self._grouped(self._checks_first(self._ordered(calls)))
        self._updates(calls)
        program.calls = [*self.first, *calls, *self.last]
        self._workspace()

    def _call(self, node: Node) -> Step:
        """What computes a node; the leaves of bodies become bound like those of the graph."""
        operands = tuple(map(base_of, node.inputs))
        if node.op.kind == "fused":
            kernel = self.program.kernels.of(node, self.program.often, self._packed(operands), self.program.alone)
            packed = tuple([self._pack(operands[position], layout) for position, layout in kernel.packed])
            return Call(kernel, operands, results_of(node), packed=packed)
        taken = tuple([item if item in self.present else None for item in items(node)])
        call = _CONTROL[node.op.name].make(node, operands, taken, self._body)
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
        sizes = self._sizes(calls)
        return calls if sizes is None else [calls[number] for number in order_steps(self._flows(calls), sizes)]

    def _sizes(self, calls: Sequence[Step]) -> dict[Hashable, int] | None:
        """The bytes of the values that lie in the workspace; None where some are unknown."""
        new = {base_of(value) for _, value in self.graph.updates}
        sizes: dict[Hashable, int] = {}
        for result in (result for call in calls for result in call.results):
            nbytes = result.type.nbytes
            if not isinstance(nbytes, int):
                return None
            if result not in self.places and result not in new:
                sizes[result] = nbytes
        return sizes

    def _flows(self, calls: Sequence[Step]) -> list[Flow]:
        """What the calls read and write; what reads an old value of a variable stays before what writes the new one."""
        maker = {result: number for number, call in enumerate(calls) for result in call.results}
        readers: dict[Node, list[int]] = {}
        for number, call in enumerate(calls):
            for operand in call.operands:
                readers.setdefault(operand, []).append(number)
        after: dict[int, list[int]] = {}
        variables = {n.attrs["cell"]: n for n in self.program.bound if n.op.name == "variable"}
        for cell, value in self.graph.updates:
            base = base_of(value)
            if cell in variables and base in maker:
                before = [n for n in readers.get(variables[cell], ()) if n < maker[base]]
                after.setdefault(maker[base], []).extend(before)
        return [Flow(c.operands, c.results, after.get(number, ())) for number, c in enumerate(calls)]

    def _grouped(self, calls: list[Step]) -> list[Step]:
        """The calls, small ones that only write new values of variables in groups."""
        new = {base_of(value) for _, value in self.graph.updates}
        new -= {operand for call in calls for operand in call.operands}
        times = [_small(call) if new.issuperset(call.results) else None for call in calls]
        grouped: list[Step] = []
        for numbers in gather_steps(self._flows(calls), times, self._sizes(calls) or {}):
            members = [call for n in numbers if isinstance(call := calls[n], Call)]
            if len(numbers) == 1:
                grouped.append(calls[numbers[0]])
            else:
                parts = share_out([times[n] or 0 for n in numbers])
                grouped.append(CallGroup(tuple([tuple([members[i] for i in part]) for part in parts])))
        return grouped

    def _body(self, graph: Graph, often: bool, alone: bool = False) -> Program:
        """The program of a body."""
        often, alone = often or self.program.often, alone or self.program.alone
        program = Program(graph, self.program.kernels, self.program.symbols, often, alone)
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


__all__ = ["make_program"]
