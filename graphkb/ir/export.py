"""Exports of graphs: networkx here; `to_dot`, `to_svg`, `to_json` and `from_json` from their own files."""

from __future__ import annotations

from typing import TYPE_CHECKING

from graphkb.ir.export_dot import to_dot
from graphkb.ir.export_json import from_json, to_json
from graphkb.ir.export_svg import to_svg

if TYPE_CHECKING:
    import networkx

    from graphkb.ir.graph import Graph

__all__ = ["from_json", "repr_svg", "to_dot", "to_json", "to_networkx", "to_svg"]

LARGEST_PICTURE = 2000
"""Nodes up to which pictures are made that nobody asked for."""


def repr_svg(graph: Graph) -> str | None:
    """The picture that a notebook shows; None, so that it shows the text, for graphs too large to be looked at."""
    return to_svg(graph) if len(graph.nodes) <= LARGEST_PICTURE else None


def to_networkx(graph: Graph) -> networkx.MultiDiGraph:
    """The graph for networkx' algorithms.

    Nodes are the integers of the text form: node 3 is what dumps call `%3`. Each carries `op` (the name), `type`
    (a TensorType), `attrs` (a dict), `origin` (an Origin or None) and `node` (the Node itself). There is one edge per
    operand, from the operand to its user, with its `position` among the user's inputs. The graph's own attributes are
    `name`, `inputs`, `outputs` (lists of numbers) and `updates` (pairs of a cell's name and a number).

    Returns:
        A `networkx.MultiDiGraph`; bodies of fused nodes stay what they are, a Graph among the `attrs`.

    Raises:
        ModuleNotFoundError: networkx is not installed.
    """
    import networkx

    number = {node: i for i, node in enumerate(graph.nodes)}
    result = networkx.MultiDiGraph(
        name=graph.name,
        inputs=[number[n] for n in graph.inputs],
        outputs=[number[n] for n in graph.outputs],
        updates=[(cell.name, number[n]) for cell, n in graph.updates],
    )
    for node, i in number.items():
        result.add_node(i, op=node.op.name, type=node.type, attrs=dict(node.attrs), origin=node.origin, node=node)
    for node, i in number.items():
        for position, operand in enumerate(node.inputs):
            result.add_edge(number[operand], i, position=position)
    return result
