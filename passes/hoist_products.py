"""The pass that takes products out of loops: of sequences and constants before, of what they stack behind."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from functools import cached_property
from typing import ClassVar

from graphkb.ir.dims import Dim, product
from graphkb.ir.graph import Graph, bodies, replace_nodes, toposort
from graphkb.ir.node import Node, make, remake
from graphkb.ir.origin import set_override
from graphkb.ir.record import record
from graphkb.ir.types import TupleType
from graphkb.ops.control import ITEM, SCAN, is_control, item
from graphkb.ops.leaf import placeholder
from graphkb.ops.shape import broadcast_to, transpose
from graphkb.passes.share_batch import share_batch
from graphkb.passes.stack_steps import Value, can_stack, stack_step

# What costs this much an element is not computed again by every step if it never changes.
_COSTLY = 4
# From so many steps on a matrix is copied in the order in which their products read it.
_WORTH_TURNING = 2
# How many times as much as a result may be stacked to compute it behind the loop.
_MOST_STACKED = 4


@record
class HoistProducts:
    """Compute outside of a loop what its steps do not need one after the other.

    - The product of a slice and a constant becomes one product of the whole sequence, before the loop, with the
      element-wise work before and behind it; unless threads share the batch, each of whose parts has rows enough: then
      the matrix stays in the cache, and the product of the sequence need not go through memory.
    - What depends on constants alone is computed once; so is a copy of a matrix in the order in which the steps'
      products read it.
    - A stack that no state depends on is one value for all steps: of stacks that exist, or behind the loop.

    Args:
        many_rows: how many rows a product must have to be as fast within a step.
        enough_rows: the same for a product of the samples that one thread takes.
        most_bytes: how large a value may become that all steps share.
    """

    many_rows: int = 128
    enough_rows: int = 4
    most_bytes: int = 1 << 28
    name: ClassVar[str] = "hoist_products"

    def apply(self, graph: Graph) -> Graph:
        if not any(is_control(node) for node in graph.nodes):
            return graph
        new: dict[Node, Node] = {}
        values: dict[Node, list[Node]] = {}
        previous = set_override(None)
        try:
            for node in graph.nodes:
                set_override(node.origin)
                if node.op is ITEM and node.inputs[0] in values:
                    new[node] = values[node.inputs[0]][node.attrs["index"]]
                    continue
                made = remake(node, tuple([new[i] for i in node.inputs]))
                if is_control(node):
                    made = self._inside(made)
                hoisted = _Loop(made, self).run() if node.op is SCAN else None
                if hoisted is not None:
                    values[node] = hoisted
                new[node] = made
        finally:
            set_override(previous)
        roots = [new[r] for r in graph.roots]
        return graph if all(a is b for a, b in zip(roots, graph.roots)) else graph.with_roots(roots)

    def _inside(self, node: Node) -> Node:
        """The node with loops in its bodies treated."""
        better = {name: self.apply(body) for name, body in bodies(node)}  # as deep as bodies nest
        if all(better[name] is body for name, body in bodies(node)):
            return node
        return make(node.op, node.inputs, {**node.attrs, **better}, None, node.origin)


class _Loop:
    """One scan, and what can leave it."""

    def __init__(self, node: Node, settings: HoistProducts) -> None:
        self.node = node
        self.settings = settings
        self.length: Dim = node.attrs["length"]
        self.body: Graph = node.attrs["body"]
        if not isinstance(self.length, int) or self.length >= _WORTH_TURNING:
            self.body = _turned(self.body, node.attrs["states"] + node.attrs["sequences"])
        self.states: int = node.attrs["states"]
        self.sequences: int = node.attrs["sequences"]
        self.parameters = self.body.inputs
        self.users = self.body.consumers()
        # Which nodes are known without the states: whether they differ from step to step.
        self.known: dict[Node, bool] = {}

    def run(self) -> list[Node] | None:
        """The values of the loop; None where nothing can leave it."""
        if not self._fits():
            return None
        self._find_known()
        outputs = self.body.outputs[self.states :]
        ends = [out for out in outputs if self._leaves(out)]
        cuts = self._cuts(ends)
        stay = [out for out in outputs if out not in ends and out not in cuts]
        stay = list(dict.fromkeys([*stay, *[node for cut in cuts.values() for node in cut]]))
        front = self._front([*self.body.outputs[: self.states], *stay])
        if not front and not ends and not cuts:
            return None
        whole = self._stacked([*front, *ends], self._given())
        node = self._rebuilt(front, whole, stay)
        for i, out in enumerate(stay):
            whole[out] = Value(item(node, self.states + i), True)
        whole.update(self._stacked(list(cuts), {**self._given(), **whole}))
        return [*[item(node, i) for i in range(self.states)], *[self._spread(whole[out], out) for out in outputs]]

    def _fits(self) -> bool:
        """Whether all operands have exactly the sizes that the body is written for."""
        last = self.states + self.sequences
        for i, (operand, parameter) in enumerate(zip(self.node.inputs, self.parameters)):
            stacked = self.states <= i < last
            if operand.shape != ((self.length, *parameter.shape) if stacked else parameter.shape):
                return False
        return True

    def _given(self) -> dict[Node, Value]:
        """What is outside of the loop for each parameter that is no state."""
        last = self.states + self.sequences
        return {
            parameter: Value(operand, i < last)
            for i, (operand, parameter) in enumerate(zip(self.node.inputs, self.parameters))
            if i >= self.states
        }

    def _find_known(self) -> None:
        states = set(self.parameters[: self.states])
        slices = set(self.parameters[self.states : self.states + self.sequences])
        for node in self.body.nodes:
            if node in states:
                continue
            if node.op.kind == "leaf":
                self.known[node] = node in slices
            elif node.op.kind != "other" and all(i in self.known for i in node.inputs):
                varies = [self.known[i] for i in node.inputs]
                if not any(varies) or can_stack(node, varies):
                    self.known[node] = any(varies)

    # ------------------------------------------------------------------ before the loop
    def _front(self, outputs: Sequence[Node]) -> list[Node]:
        """The values that the steps take from outside instead of computing them, where they compute some outputs."""
        found: dict[Node, None] = {}
        for node in self.body.nodes:
            if node.op.kind == "leaf" or isinstance(node.type, TupleType) or node not in self.known:
                continue
            if self._is_few_rows(node, self.known) if self.known[node] else self._is_costly(node):
                end = self._extended(node)
                if self._is_small([node, end]):
                    found[end] = None
        # What only serves others that leave the loop needs no place of its own.
        read: set[Node] = set()
        stack = list(outputs)
        while stack:
            node = stack.pop()
            if node not in read:
                read.add(node)
                stack += () if node in found else node.inputs
        return [node for node in found if node in read]

    def _extended(self, node: Node) -> Node:
        """The end of the element-wise work that only a value's own users do on it."""
        while True:
            users = self.users[node]
            if len(users) != 1 or node in self.body.outputs:
                return node
            (user,) = users
            if (
                self.known.get(user) is not self.known[node]
                or user.op.kind != "elementwise"
                or user.shape != node.shape
            ):
                return node
            node = user

    def _is_few_rows(self, node: Node, varies: Mapping[Node, bool]) -> bool:
        """Whether a node is a product that is faster for all steps together."""
        if node.op.name == "conv":
            x, kernel = node.inputs
            rows = product(node.shape[:-1])
            return varies[x] and not varies[kernel] and not (isinstance(rows, int) and rows >= self.settings.many_rows)
        if node.op.name != "dot" or varies[node.inputs[0]] is varies[node.inputs[1]]:
            return False
        side = "x" if varies[node.inputs[0]] else "y"
        operand = node.inputs["xy".index(side)]
        taken = {*node.attrs[f"batch_{side}"], *node.attrs[f"contract_{side}"]}
        rows = product([n for axis, n in enumerate(operand.shape) if axis not in taken])
        if not isinstance(rows, int):
            return True
        return rows < self.settings.many_rows and rows * self._share < self.settings.enough_rows

    @cached_property
    def _share(self) -> Fraction:
        """The part of the batch that one thread takes for the whole loop; 0 where threads do not share it."""
        parts = share_batch(self.body, self.states, self.sequences, self.length)
        if not parts:
            return Fraction(0)
        return Fraction(parts[-1].samples, self.body.inputs[0].shape[0])

    def _is_costly(self, node: Node) -> bool:
        """Whether a value that never changes had better be computed once."""
        if node.op.kind in ("elementwise", "view", "marker"):
            cost = node.op.cost if node.op.kind == "elementwise" else 0
            return cost >= _COSTLY or any(
                user.op.name in ("dot", "conv") or is_control(user) for user in self.users[node]
            )
        return True

    def _is_small(self, nodes: Iterable[Node]) -> bool:
        """Whether there is room for values of all steps."""
        sizes = [self.length * node.type.nbytes for node in nodes if self.known.get(node, True)]
        return all(not isinstance(size, int) or size <= self.settings.most_bytes for size in sizes)

    # ------------------------------------------------------------------ behind the loop
    def _leaves(self, out: Node) -> bool:
        """Whether a stack can be computed from what is outside."""
        if out not in self.known:
            return False
        cone = [n for n in toposort([out]) if n.op.kind not in ("leaf", "elementwise", "view")]
        return self._is_small([*cone, out])

    def _cuts(self, ends: Sequence[Node]) -> dict[Node, list[Node]]:
        """The stacks that are better computed behind the loop, and for each the values of the steps that it needs."""
        inside = set(toposort(self.body.outputs[: self.states])) | set(self.parameters)
        stacked = {out for out in self.body.outputs[self.states :] if out in inside}
        found: dict[Node, list[Node]] = {}
        for out in self.body.outputs[self.states :]:
            if out in ends or out in inside or out in found:
                continue
            cone, cut = self._cone(out, inside)
            varies = {n: n in cone or n in cut or self.known.get(n, False) for m in cone for n in (m, *m.inputs)}
            if not any(self._is_few_rows(n, varies) for n in cone):
                continue
            if not all(can_stack(n, [varies[i] for i in n.inputs]) for n in cone):
                continue
            more: Dim = sum([n.type.nbytes for n in cut if n not in stacked], 0)
            if self._is_small([*cone, *cut]) and _is_at_most(more, out.type.nbytes * _MOST_STACKED):
                found[out] = cut
                stacked.update(cut)
        return found

    def _cone(self, out: Node, inside: set[Node]) -> tuple[set[Node], list[Node]]:
        """What only a stack needs, and the values of the steps that it is computed from."""
        cone: set[Node] = set()
        cut: dict[Node, None] = {}
        stack = [out]
        while stack:
            node = stack.pop()
            if node in self.known:
                continue
            if node in inside:
                cut[node] = None
            elif node not in cone:
                cone.add(node)
                stack += node.inputs
        return cone, list(cut)

    # ------------------------------------------------------------------ building
    def _stacked(self, ends: Sequence[Node], given: Mapping[Node, Value]) -> dict[Node, Value]:
        """Values outside of the loop; those that vary are stacked along a new first axis."""
        done = dict(given)
        pending = [(node, False) for node in reversed(ends)]
        while pending:
            node, ready = pending.pop()
            if node in done:
                continue
            if not ready:
                pending.append((node, True))
                pending += [(i, False) for i in node.inputs if i not in done]
                continue
            set_override(node.origin)
            done[node] = stack_step(node, [done[i] for i in node.inputs], self.length)
        return {node: done[node] for node in ends}

    def _spread(self, value: Value, out: Node) -> Node:
        return value.node if value.stacked else broadcast_to(value.node, (self.length, *out.shape))

    def _rebuilt(self, front: Sequence[Node], whole: Mapping[Node, Value], stay: Sequence[Node]) -> Node:
        """The loop that takes the front from outside and stacks what stays."""
        set_override(self.node.origin)
        handed = {n: placeholder(n.shape, n.dtype, f"h{i}") for i, n in enumerate(front)}
        slices = [n for n in front if whole[n].stacked]
        constants = [n for n in front if not whole[n].stacked]
        split = self.states + self.sequences

        def joined(old: Sequence[Node], new: Callable[[Node], Node]) -> tuple[Node, ...]:
            return (*old[:split], *map(new, slices), *old[split:], *map(new, constants))

        results = replace_nodes([*self.body.outputs[: self.states], *stay], handed)
        body = replace(
            self.body, inputs=joined(self.parameters, handed.__getitem__), outputs=tuple(results), _order=None
        )
        operands = joined(self.node.inputs, lambda n: whole[n].node)
        return make(SCAN, operands, {**self.node.attrs, "body": body, "sequences": self.sequences + len(slices)})


def _turned(body: Graph, first: int) -> Graph:
    """The body with matrices among its constants turned over whose columns products would have to collect.

    Args:
        first: where the constants begin among the parameters.
    """
    constants = set(body.inputs[first:])
    made: dict[Node, Node] = {}
    for node in body.nodes:
        inputs = tuple([made[i] for i in node.inputs])
        made[node] = remake(node, inputs)
        if node.op.name != "dot" or node.inputs[1] not in constants or node.attrs["batch_y"]:
            continue
        x, y = inputs
        contract = node.attrs["contract_y"]
        free = tuple([axis for axis in range(y.ndim) if axis not in contract])
        if free and y.ndim - 1 in contract:
            attrs = {**node.attrs, "contract_y": tuple(range(len(contract)))}
            made[node] = make(node.op, (x, transpose(y, (*contract, *free))), attrs, None, node.origin)
    return body.with_roots([made[out] for out in body.outputs])


def _is_at_most(a: Dim, b: Dim) -> bool:
    """Whether a size is known to be no larger than another; unknown ones are compared by their terms."""
    return a <= b if isinstance(a, int) and isinstance(b, int) else a == 0 or a == b
