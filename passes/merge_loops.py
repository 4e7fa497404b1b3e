"""The pass that joins loops which take the same steps: a loop, and the one that also stores what the way back needs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

from graphkb.ir.graph import Graph
from graphkb.ir.node import Node, make, remake
from graphkb.ops.control import ITEM, SCAN, item


@dataclass(frozen=True)
class MergeLoops:
    """Make one scan of those with the same operands, parameters and states; its body gives the outputs of all.

    Nodes are interned, so bodies that were built from one another hold the very same nodes. It stands before all that
    rewrites bodies.
    """

    name: ClassVar[str] = "merge_loops"

    def apply(self, graph: Graph) -> Graph:
        if sum(node.op is SCAN for node in graph.nodes) < 2:
            return graph
        new: dict[Node, Node] = {}
        groups: dict[tuple[Any, ...], list[Node]] = {}
        # Merging may make the operands of later loops equal, so the keys are those of the nodes as they become.
        for node in graph.nodes:
            made = remake(node, tuple([new[i] for i in node.inputs]))
            new[node] = made
            if made.op is SCAN and made not in (group := groups.setdefault(_steps(made), [])):
                group.append(made)
        merged: dict[Node, Node] = {}
        for loops in groups.values():
            if len(loops) > 1:
                merged.update(dict.fromkeys(loops, _merged(loops)))
        return _replace(graph, merged) if merged else graph


def _steps(loop: Node) -> tuple[Any, ...]:
    attrs = loop.attrs
    body: Graph = attrs["body"]
    states = attrs["states"]
    settings = (attrs["length"], states, attrs["sequences"], attrs["reverse"])
    return loop.inputs, body.inputs, body.outputs[:states], settings


def _merged(loops: list[Node]) -> Node:
    """The first loop with the outputs of all."""
    first = loops[0]
    outputs = dict.fromkeys([out for loop in loops for out in _outputs(loop)])
    states = first.attrs["states"]
    body: Graph = first.attrs["body"]
    body = replace(body, outputs=(*body.outputs[:states], *outputs), _order=None)
    return make(SCAN, first.inputs, {**first.attrs, "body": body}, None, first.origin)


def _outputs(loop: Node) -> tuple[Node, ...]:
    outputs: tuple[Node, ...] = loop.attrs["body"].outputs[loop.attrs["states"] :]
    return outputs


def _replace(graph: Graph, merged: dict[Node, Node]) -> Graph:
    """The graph with loops replaced, and the items of their results taken from their new places."""
    new: dict[Node, Node] = {}
    for node in graph.nodes:
        made = remake(node, tuple([new[i] for i in node.inputs]))
        loop = merged.get(made)
        if made.op is ITEM and node.inputs[0].op is SCAN:
            before = remake(node.inputs[0], tuple([new[i] for i in node.inputs[0].inputs]))
            if before in merged:
                made = item(merged[before], _place(before, merged[before], node.attrs["index"]))
        new[node] = made if loop is None else loop
    return graph.with_roots([new[r] for r in graph.roots])


def _place(before: Node, after: Node, index: int) -> int:
    states: int = before.attrs["states"]
    return index if index < states else states + _outputs(after).index(_outputs(before)[index - states])
