"""About how long the ops of a graph take on one thread, for decisions about threads."""

from __future__ import annotations

from collections.abc import Iterator

from graphkb.ir.dims import Dim
from graphkb.ir.graph import Graph
from graphkb.ir.node import Node

# Picoseconds of a multiply-add, and of an operation or a move of one element, in vectors.
_MULTIPLY_ADD, _OPERATION = 20, 25
_PRODUCTS = ("dot", "conv")


def picoseconds(graph: Graph) -> int:
    """About how long all ops of a graph of known sizes take; loops and branches do not count."""
    return sum(map(_time, inner_ops(graph)))


def product_picoseconds(graph: Graph) -> int:
    """About how long the products of a graph take, as far as their sizes are known."""
    products = [node for node in inner_ops(graph) if node.op.name in _PRODUCTS]
    return sum(_time(node) for node in products if all(n.type.is_static for n in (node, *node.inputs)))


def inner_ops(graph: Graph) -> Iterator[Node]:
    """What a graph computes, inside kernels as well, but not inside loops and branches."""
    for node in graph.nodes:
        if node.op.kind == "fused":
            yield from inner_ops(node.attrs["body"])  # kernels do not nest
        elif node.op.kind not in ("leaf", "control"):
            yield node


def _time(node: Node) -> int:
    match node.op.name:
        case "dot":
            x = node.inputs[0]
            depth = 1
            for axis in node.attrs["contract_x"]:
                depth *= _known(x.shape[axis])
            return _length(node) * depth * _MULTIPLY_ADD
        case "conv":
            kernel = node.inputs[1]
            return _length(node) * (_length(kernel) // max(1, _known(kernel.shape[-1]))) * _MULTIPLY_ADD
        case _:
            cost = node.op.cost if node.op.kind == "elementwise" else 0
            return max([_length(i) for i in (node, *node.inputs)]) * (cost + 1) * _OPERATION


def _length(node: Node) -> int:
    return _known(node.type.size)


def _known(dim: Dim) -> int:
    assert isinstance(dim, int)
    return dim


__all__ = ["inner_ops", "picoseconds", "product_picoseconds"]
