"""The pass that takes out of bodies what nobody asks for: values, states, and operands that are not read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from graphkb.ir.graph import Graph, replace_nodes, toposort
from graphkb.ir.node import Node, make, remake
from graphkb.ir.record import record
from graphkb.ops.control import COND, ITEM, SCAN, item, stays_inside


@record
class PruneLoops:
    """Cut the results of loops and branches down to the items that are used, and their operands to those that matter.

    States that no step changes become constants, and operands that are constants move into the body.
    """

    name: ClassVar[str] = "prune_loops"

    def apply(self, graph: Graph) -> Graph:
        if not any(node.op is SCAN or node.op is COND for node in graph.nodes):
            return graph
        cuts = _decide(graph)
        new: dict[Node, Node] = {}
        for node in graph.nodes:
            if not all(i in new for i in node.inputs if node not in cuts):
                continue  # it was read by what has been cut
            cut = cuts.get(node)
            if cut is not None:
                if all(o in new for o in cut.operands):
                    new[node] = cut.build(node, [new[o] for o in cut.operands])
            elif node.op is ITEM and node.inputs[0] in cuts:
                source = node.inputs[0]
                fixed = cuts[source].unchanged.get(node.attrs["index"])
                place = cuts[source].places.get(node.attrs["index"])
                if fixed is not None:
                    new[node] = new[fixed]
                elif place is not None:
                    new[node] = item(new[source], place)
            else:
                new[node] = remake(node, tuple([new[i] for i in node.inputs]))
        roots = [new[r] for r in graph.roots]
        if all(a is b for a, b in zip(roots, graph.roots)):
            return graph
        return graph.with_roots(roots)


@dataclass(eq=False)
class _Cut:
    """What remains of one node.

    Attributes:
        operands: the operands, those of the old graph.
        bodies: the bodies, by the names of the attributes.
        counts: the other attributes that change.
        places: where the values that are used stand in the new result.
        unchanged: operands that are the results of states that no step changes.
    """

    operands: tuple[Node, ...]
    bodies: dict[str, Graph]
    counts: dict[str, int]
    places: dict[int, int]
    unchanged: dict[int, Node]

    def build(self, node: Node, operands: Sequence[Node]) -> Node:
        attrs = {**node.attrs, **self.bodies, **self.counts}
        if tuple(operands) == node.inputs and all(attrs[k] is v or attrs[k] == v for k, v in node.attrs.items()):
            return node
        return make(node.op, tuple(operands), attrs, None, node.origin)


def _decide(graph: Graph) -> dict[Node, _Cut]:
    """The cuts of all loops and branches that are needed, from the roots backwards."""
    live = set(graph.roots)
    wanted: dict[Node, set[int]] = {}
    cuts: dict[Node, _Cut] = {}
    for node in reversed(graph.nodes):
        if node not in live:
            continue
        if node.op is ITEM:
            wanted.setdefault(node.inputs[0], set()).add(node.attrs["index"])
        if (node.op is SCAN or node.op is COND) and node in wanted:
            cut = _cut_scan(node, wanted[node]) if node.op is SCAN else _cut_cond(node, wanted[node])
            cuts[node] = cut
            live.update(cut.operands, cut.unchanged.values())
        else:
            live.update(node.inputs)
    return cuts


def _cut_scan(node: Node, wanted: set[int]) -> _Cut:
    body: Graph = node.attrs["body"]
    states, sequences = node.attrs["states"], node.attrs["sequences"]
    parameters, results = body.inputs, body.outputs
    still = {k for k in range(states) if results[k] is parameters[k] and node.type.items[k] == node.inputs[k].type}  # type: ignore[attr-defined]
    kept = {i for i in wanted if i not in still}
    while True:
        read = set(toposort([results[i] for i in sorted(kept)]))
        more = {k for k in range(states) if k not in still and k not in kept and parameters[k] in read}
        if not more:
            break
        kept |= more
    order = [i for i in range(len(results)) if i in kept]
    constants = {
        parameters[i]: node.inputs[i]
        for i in (*sorted(still), *range(states + sequences, len(parameters)))
        if parameters[i] in read
    }
    inside = {p: operand for p, operand in constants.items() if stays_inside(operand)}
    front = [i for i in range(states + sequences) if i in kept and i < states]
    front += [i for i in range(states, states + sequences) if parameters[i] in read]
    handed = [p for p in constants if p not in inside]
    inputs = (*[parameters[i] for i in front], *handed)
    outputs = tuple([results[i] for i in order])
    if inside or inputs != parameters or outputs != results:
        body = replace(body, inputs=inputs, outputs=tuple(replace_nodes(outputs, inside)), _order=None)
    first = sum(i < states for i in front)
    return _Cut(
        (*[node.inputs[i] for i in front], *[constants[p] for p in handed]),
        {"body": body},
        {"states": first, "sequences": len(front) - first},
        {i: place for place, i in enumerate(order)},
        {k: node.inputs[k] for k in still if k in wanted},
    )


def _cut_cond(node: Node, wanted: set[int]) -> _Cut:
    test, *operands = node.inputs
    order = sorted(wanted)
    sides: list[tuple[str, Graph]] = [(name, node.attrs[name]) for name in ("then", "other")]
    read = [set(toposort([body.outputs[i] for i in order])) for _, body in sides]
    kept = [
        k
        for k, operand in enumerate(operands)
        if not stays_inside(operand) and any(body.inputs[k] in r for (_, body), r in zip(sides, read))
    ]
    bodies = {}
    for name, body in sides:
        inside = {p: operand for p, operand in zip(body.inputs, operands) if stays_inside(operand)}
        inputs = tuple([body.inputs[k] for k in kept])
        if inputs != body.inputs or len(order) < len(body.outputs):
            outputs = replace_nodes([body.outputs[i] for i in order], inside)
            body = replace(body, inputs=inputs, outputs=tuple(outputs), _order=None)
        bodies[name] = body
    return _Cut((test, *[operands[k] for k in kept]), bodies, {}, {i: place for place, i in enumerate(order)}, {})
