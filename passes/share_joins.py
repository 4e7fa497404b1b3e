"""The pass that lets long concatenations begin or end with shorter ones of the same graph."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from graphkb.ir.graph import Graph
from graphkb.ir.node import Node, remake
from graphkb.ir.origin import set_override
from graphkb.ir.record import record
from graphkb.ops.shape import CONCATENATE, concatenate

# The most operands of a concatenation that could have fewer: a kernel has a loop nest for each.
MOST = 4

# The operands of a concatenation along an axis.
Operands = tuple[Node, ...]


@record
class ShareJoins:
    """concatenate(x, y, z) -> concatenate(concatenate(x, y), z) for many operands, where concatenate(x, y) is there.

    Rules have merged all concatenations of concatenations: kernels read a few operands where they lie, and nothing is
    copied. Layers that join their results to those of all layers before would make n squared loop nests of that.
    """

    name: ClassVar[str] = "share_joins"

    def apply(self, graph: Graph) -> Graph:
        if not any(node.op is CONCATENATE and len(node.inputs) > MOST for node in graph.nodes):
            return graph
        shorter = {
            (node.attrs["axis"], node.inputs): node
            for node in graph.nodes
            if node.op is CONCATENATE and len(node.inputs) > 1
        }
        operands = _operands(shorter)
        # A concatenation may come before the shorter one that it reads now.
        new: dict[Node, Node] = {}
        for root in graph.roots:
            stack = [root]
            while stack:
                node = stack[-1]
                if node in new:
                    stack.pop()
                    continue
                inputs = operands.get(node, node.inputs)
                missing = [i for i in inputs if i not in new]
                if missing:
                    stack.extend(missing)
                    continue
                stack.pop()
                if inputs is node.inputs:
                    new[node] = remake(node, tuple([new[i] for i in inputs]))
                else:
                    previous = set_override(node.origin)
                    new[node] = concatenate([new[i] for i in inputs], node.attrs["axis"])
                    set_override(previous)
        return replace(graph.with_roots([new[root] for root in graph.roots]), _order=None)


def _operands(joins: dict[tuple[int, Operands], Node]) -> dict[Node, Operands]:
    """What each concatenation that changes is to read: short ones first, on whose operands longer ones build."""
    found: dict[Node, Operands] = {}
    for (axis, inputs), node in sorted(joins.items(), key=lambda item: len(item[0][1])):
        if len(inputs) <= MOST:
            continue
        for count in range(len(inputs) - 1, 1, -1):
            first, last = joins.get((axis, inputs[:count])), joins.get((axis, inputs[-count:]))
            if first is not None:
                begin = found.get(first, first.inputs)
                found[node] = (*(begin if len(begin) + len(inputs) - count <= MOST else (first,)), *inputs[count:])
                break
            if last is not None:
                end = found.get(last, last.inputs)
                found[node] = (*inputs[:-count], *(end if len(end) + len(inputs) - count <= MOST else (last,)))
                break
    return found
