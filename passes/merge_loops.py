"""The pass that joins loops which take the same steps: a loop, and the one that also stores what the way back needs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

from graphkb.ir.graph import Graph
from graphkb.ir.node import Node, make, remake
from graphkb.ir.record import record
from graphkb.ops.control import ITEM, SCAN


@record
class MergeLoops:
    """Make one scan of those with the same operands, parameters and states; its body gives the outputs of all.

    Nodes are interned, so bodies that were built from one another hold the very same nodes. It stands before all that
    rewrites bodies.
    """

    name: ClassVar[str] = "merge_loops"

    def apply(self, graph: Graph) -> Graph:
        while True:
            groups: dict[tuple[Any, ...], list[Node]] = {}
            for node in graph.nodes:
                if node.op is SCAN:
                    groups.setdefault(_steps(node), []).append(node)
            bodies = {loop: _joined(loops) for loops in groups.values() if len(loops) > 1 for loop in loops}
            if not bodies:
                return graph
            graph = _merge(graph, bodies)  # later loops may have the same operands only now


def _steps(loop: Node) -> tuple[Any, ...]:
    """What two loops must have in common."""
    attrs = loop.attrs
    body: Graph = attrs["body"]
    states = attrs["states"]
    settings = (attrs["length"], states, attrs["sequences"], attrs["reverse"])
    return loop.inputs, body.inputs, body.outputs[:states], settings


def _joined(loops: list[Node]) -> tuple[Node, tuple[Node, ...]]:
    """The loop that stands for all of them, and what a step of it gives beside the states."""
    return loops[0], tuple(dict.fromkeys([out for loop in loops for out in _outputs(loop)]))


def _outputs(loop: Node) -> tuple[Node, ...]:
    outputs: tuple[Node, ...] = loop.attrs["body"].outputs[loop.attrs["states"] :]
    return outputs


def _merge(graph: Graph, bodies: dict[Node, tuple[Node, tuple[Node, ...]]]) -> Graph:
    """The graph with loops replaced, and the items of their results taken from their new places."""
    new: dict[Node, Node] = {}
    merged: dict[Node, Node] = {}
    for node in graph.nodes:
        inputs = tuple([new[i] for i in node.inputs])
        if node in bodies:
            first, outputs = bodies[node]
            if first not in merged:
                body: Graph = first.attrs["body"]
                body = replace(body, outputs=(*body.outputs[: first.attrs["states"]], *outputs), _order=None)
                merged[first] = make(SCAN, inputs, {**first.attrs, "body": body}, None, first.origin)
            new[node] = merged[first]
        elif node.op is ITEM and node.inputs[0] in bodies:
            loop = node.inputs[0]
            index, states = node.attrs["index"], loop.attrs["states"]
            if index >= states:
                index = states + bodies[loop][1].index(_outputs(loop)[index - states])
            new[node] = make(ITEM, inputs, {"index": index}, None, node.origin)
        else:
            new[node] = remake(node, inputs)
    return graph.with_roots([new[r] for r in graph.roots])
