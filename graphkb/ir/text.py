"""The one text form of graphs, used by dumps, errors and golden tests."""

from __future__ import annotations

from typing import Any

from graphkb.ir.dims import Dim, Expr, Symbol, free_symbols
from graphkb.ir.graph import Graph
from graphkb.ir.node import Node
from graphkb.ir.types import TensorType


def number(graph: Graph) -> dict[Node, str]:
    """The names `%0`, `%1` … of the nodes, in topological order."""
    return {node: f"%{i}" for i, node in enumerate(graph.nodes)}


def symbol_names(graph: Graph) -> dict[Symbol, str]:
    """A name of its own for every unknown size, the user's where that is unique."""
    names: dict[Symbol, str] = {}
    taken: set[str] = set()
    for node in graph.nodes:
        for dim in node.type.shape:
            for symbol in sorted(free_symbols(dim), key=lambda s: s.name) if isinstance(dim, Expr) else ():
                if symbol in names:
                    continue
                name, count = symbol.name, 1
                while name in taken:
                    count += 1
                    name = f"{symbol.name}.{count}"
                names[symbol] = name
                taken.add(name)
    return names


def format_dim(dim: Dim) -> str:
    return str(dim)


def format_type(type: TensorType) -> str:
    return repr(type)


def format_attr(value: Any) -> str:
    """An attribute as it prints: tuples in parentheses, graphs as the number of their nodes."""
    if isinstance(value, tuple):
        inner = ", ".join(format_attr(v) for v in value)
        return f"({inner},)" if len(value) == 1 else f"({inner})"
    if isinstance(value, Graph):
        return f"<{len(value.nodes)} nodes>"
    return repr(value)


def format_node(node: Node, names: dict[Node, str]) -> str:
    """`%3: float32[batch, 4] = mul(%1, %2)`, without the provenance."""
    parts = [names.get(i, "%?") for i in node.inputs]
    parts += [format_attr(v) if node.op.kind == "leaf" else f"{k}={format_attr(v)}" for k, v in node.attrs.items()]
    return f"{names.get(node, '%?')}: {format_type(node.type)} = {node.op.name}({', '.join(parts)})"


def format_graph(graph: Graph, origins: bool = True) -> str:
    """The whole graph, one node a line, with the user's line behind each where `origins` is set.

    A fused node is followed by its body, indented.
    """
    lines = [f"graph {graph.name}"]
    _format_body(graph, lines, "  ", origins, {})
    return "\n".join(lines) + "\n"


def _format_body(graph: Graph, lines: list[str], indent: str, origins: bool, outer: dict[Node, str]) -> None:
    names = number(graph)
    for node in graph.nodes:
        text = indent + format_node(node, names)
        if origins and node.origin is not None:
            text = f"{text:<64}  # {node.origin.short}"
        lines.append(text)
        body = node.attrs.get("body")
        if isinstance(body, Graph):
            _format_body(body, lines, indent + "    ", origins, names)
    for cell, value in graph.updates:
        lines.append(f"{indent}update {cell!r} = {names[value]}")
    lines.append(f"{indent}return {', '.join(names[o] for o in graph.outputs)}".rstrip())
