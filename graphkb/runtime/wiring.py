"""Changes to a graph's ends before it is compiled: values that show updates, computed inputs, counts of draws."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from graphkb.ir.graph import Graph, replace_nodes, toposort
from graphkb.ops.leaf import PLACEHOLDER, VARIABLE, placeholder
from graphkb.ops.random import draw_cells, next_call


def show_updates(graph: Graph, after: Sequence[bool]) -> Graph:
    """Let the outputs that are marked read the new values of updated variables, the others the old ones.

    Args:
        after: one flag for each output.
    """
    if not graph.updates or not any(after):
        return graph
    new_values = dict(graph.updates)
    marked = [output for output, flag in zip(graph.outputs, after) if flag]
    replacements = {
        node: new_values[node.attrs["cell"]]
        for node in toposort(marked)
        if node.op is VARIABLE and node.attrs["cell"] in new_values
    }
    shown = iter(replace_nodes(marked, replacements))
    return replace(
        graph, outputs=tuple([next(shown) if flag else o for o, flag in zip(graph.outputs, after)]), _order=None
    )


def feed(graph: Graph) -> Graph:
    """Replace inputs that are computed by placeholders of their types: their values are handed in instead."""
    fed = {node: node for node in graph.inputs if node.op is PLACEHOLDER}
    if len(fed) == len(graph.inputs):
        return graph
    for index, node in enumerate(graph.inputs):
        if node not in fed:
            fed[node] = placeholder(node.shape, node.dtype, f"input_{index}")
    replaced = graph.with_roots(replace_nodes(graph.roots, fed))
    return replace(replaced, inputs=tuple([fed[node] for node in graph.inputs]), _order=None)


def count_draws(graph: Graph) -> Graph:
    """Let every random draw of the graph be another one at the next call: an update counts its calls."""
    counted = {cell for cell, _ in graph.updates}
    calls = [(cell, next_call(cell)) for cell in draw_cells(graph) if cell not in counted]
    return replace(graph, updates=(*graph.updates, *calls), _order=None) if calls else graph
