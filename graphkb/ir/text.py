"""The one text form of graphs, used by dumps, errors and golden tests."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from graphkb.ir.dims import Expr, Symbol, free_symbols, show_dim
from graphkb.ir.graph import Graph, bodies
from graphkb.ir.node import Node
from graphkb.ir.types import TensorType, TupleType, parts


def number(graph: Graph) -> dict[Node, str]:
    """The names `%0`, `%1` … of the nodes, in topological order."""
    return {node: f"%{i}" for i, node in enumerate(graph.nodes)}


SymbolNames = Mapping[Symbol, str]


def symbol_names(graph: Graph) -> dict[Symbol, str]:
    """A name of its own for every unknown size: the user's, with a number behind it where two share one."""
    names: dict[Symbol, str] = {}
    taken: set[str] = set()
    for node in _with_bodies(graph):
        for dim in [d for part in parts(node.type) for d in part.shape]:
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


def _with_bodies(graph: Graph) -> Iterator[Node]:
    """The nodes of a graph, then those of the bodies in it."""
    pending = [graph]
    while pending:
        top = pending.pop()
        for node in top.nodes:
            yield node
            pending += [body for _, body in bodies(node)]


def format_type(type: TensorType, symbols: SymbolNames | None = None) -> str:
    """`float32[batch, 4]`; the types of a tuple stand in parentheses."""
    if isinstance(type, TupleType):
        return f"({', '.join([format_type(item, symbols) for item in type.items])})"
    return f"{type.dtype}[{', '.join([show_dim(d, symbols) for d in type.shape])}]"


def format_attr(value: Any, symbols: SymbolNames | None = None) -> str:
    """An attribute as it prints: tuples in parentheses, graphs as the number of their nodes."""
    if isinstance(value, tuple):
        inner = ", ".join(format_attr(v, symbols) for v in value)
        return f"({inner},)" if len(value) == 1 else f"({inner})"
    if isinstance(value, Expr):
        return show_dim(value, symbols)
    if isinstance(value, Graph):
        return f"<{len(value.nodes)} nodes>"
    return repr(value)


def format_node(node: Node, names: Mapping[Node, str], symbols: SymbolNames | None = None) -> str:
    """`%3: float32[batch, 4] = mul(%1, %2)`, without the provenance."""
    parts = [names.get(i, "%?") for i in node.inputs]
    for key, value in node.attrs.items():
        if isinstance(value, Graph):
            continue  # its nodes follow, line by line
        text = format_attr(value, symbols)
        parts.append(text if node.op.kind == "leaf" else f"{key}={text}")
    return f"{names.get(node, '%?')}: {format_type(node.type, symbols)} = {node.op.name}({', '.join(parts)})"


def format_graph(graph: Graph, origins: bool = True) -> str:
    """The whole graph, one node a line, with the user's line behind each where `origins` is set.

    A fused node is followed by the nodes of its body, indented: `%4.0`, `%4.1` … of node `%4`. So are loops and
    conditions, with a head that names the parameters of each body and a line that says what it returns.
    """
    lines = [f"graph {graph.name}"]
    names, symbols = number(graph), symbol_names(graph)
    for node in graph.nodes:
        _format_line(node, names, symbols, lines, "  ", origins)
    for cell, value in graph.updates:
        lines.append(f"  update {cell!r} = {names[value]}")
    lines.append(f"  return {', '.join(names[o] for o in graph.outputs)}".rstrip())
    return "\n".join(lines) + "\n"


def _format_line(
    node: Node, names: Mapping[Node, str], symbols: SymbolNames, lines: list[str], indent: str, origins: bool
) -> None:
    text = indent + format_node(node, names, symbols)
    if origins and node.origin is not None:
        text = f"{text:<64}  # {node.origin.short}"
    lines.append(text)
    body = inline_body(node)
    if body is not None:
        inner = body_names(node, body, names)
        for member in body.nodes:
            if member.op.name != "placeholder":
                _format_line(member, inner, symbols, lines, indent + "    ", origins)
        if len(body.outputs) > 1:
            lines.append(f"{indent}    return {', '.join(inner[o] for o in body.outputs)}")
        return
    found = bodies(node)
    for label, body in found:
        prefix = names.get(node, "%?") + (f".{label}" if len(found) > 1 else "")
        inner = {member: f"{prefix}.{i}" for i, member in enumerate(body.nodes)}
        parameters = [f"{inner[p]}: {format_type(p.type, symbols)}" for p in body.inputs]
        lines.append(f"{indent}    {label}({', '.join(parameters)})")
        for member in body.nodes:
            if member.op.name != "placeholder":
                _format_line(member, inner, symbols, lines, indent + "      ", origins)
        lines.append(f"{indent}      return {', '.join(inner[o] for o in body.outputs)}".rstrip())


def inline_body(node: Node) -> Graph | None:
    """The body of a fused node, which reads as the node's own operands do; None for all others."""
    return node.attrs["body"] if node.op.kind == "fused" else None


def body_names(node: Node, body: Graph, names: Mapping[Node, str]) -> dict[Node, str]:
    """The names of a body's nodes: its inputs have those of the operands."""
    inner = {p: names.get(operand, "%?") for p, operand in zip(body.inputs, node.inputs)}
    members = [member for member in body.nodes if member not in inner]
    return {**inner, **{member: f"{names.get(node, '%?')}.{i}" for i, member in enumerate(members)}}
