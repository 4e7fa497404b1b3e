"""Graphs in Graphviz' dot language."""

from __future__ import annotations

from graphkb.ir.export_style import RESULT, clip, details, family, hint, inline_value, title
from graphkb.ir.graph import Graph
from graphkb.ir.node import Node
from graphkb.ir.text import SymbolNames, body_names, format_type, inline_body, number, symbol_names

_RESULT = f'shape=oval, fillcolor="{RESULT.fill}", color="{RESULT.line}", fontcolor="#ffffff"'


def to_dot(graph: Graph) -> str:
    """The graph as a text for Graphviz' `dot`.

    Colors tell the families of ops, tooltips have each node's full line and the user's line, and a fused node is a
    cluster around the nodes of its body. Constants of one element are written into the nodes that read them.
    """
    lines = [
        f"digraph {_quote(graph.name)} {{",
        f'  graph [rankdir=TB, fontname="Helvetica", label={_quote(graph.name)}, labelloc=t, nodesep=0.3];',
        '  node [shape=box, style="rounded,filled", fontname="Helvetica", fontsize=11];',
        '  edge [color="#64748b", arrowsize=0.7];',
    ]
    ends = _emit(graph, number(graph), symbol_names(graph), "n", "  ", {}, lines)
    results = [(f"output {i}", node) for i, node in enumerate(graph.outputs)]
    results += [(f"update {cell.name}", node) for cell, node in graph.updates]
    for i, (label, node) in enumerate(results):
        lines.append(f"  r{i} [label={_quote(label)}, {_RESULT}];")
        lines.append(f"  {ends[node]} -> r{i};")
    lines.append("}")
    return "\n".join(lines) + "\n"


def _emit(
    graph: Graph,
    names: dict[Node, str],
    symbols: SymbolNames,
    prefix: str,
    indent: str,
    bound: dict[Node, str],
    lines: list[str],
) -> dict[Node, str]:
    """Write the nodes and edges of a graph; the identifier at which each node's value can be picked up.

    `bound` holds the identifiers that stand for the placeholders of a body.
    """
    ends = dict(bound)
    roots = set(graph.roots)
    for i, node in enumerate(graph.nodes):
        if node in bound or (node not in roots and inline_value(node) is not None):
            continue
        identifier = f"{prefix}{i}"
        look = family(node)
        body = inline_body(node)
        if body is not None:
            label = f"{names[node]} {node.op.name}  {format_type(node.type, symbols)}"
            lines.append(f"{indent}subgraph cluster_{identifier} {{")
            lines.append(
                f'{indent}  style="rounded,filled"; fillcolor="{look.fill}"; color="{look.line}"; '
                f"label={_quote(label)}; tooltip={_quote(hint(node, names, symbols))};"
            )
            inner = {p: ends[operand] for p, operand in zip(body.inputs, node.inputs) if operand in ends}
            inside = _emit(body, body_names(node, body, names), symbols, f"{identifier}_", indent + "  ", inner, lines)
            ends[node] = inside.get(body.outputs[0], identifier)
            lines.append(f"{indent}}}")
            continue
        text = "\n".join([f"{names[node]} {title(node)}", format_type(node.type, symbols), *details(node, symbols)])
        shape = ", shape=oval" if node.op.kind == "leaf" else ""
        lines.append(
            f'{indent}{identifier} [label={_quote(text)}, fillcolor="{look.fill}", color="{look.line}"{shape}, '
            f"tooltip={_quote(hint(node, names, symbols))}];"
        )
        ends[node] = identifier
        lines.extend(f"{indent}{ends[operand]} -> {identifier};" for operand in node.inputs if operand in ends)
    return ends


def _quote(text: str) -> str:
    r"""A dot string: quotes and backslashes escaped, line ends as \n, control characters replaced."""
    kept = "".join(c if c.isprintable() or c == "\n" else "\ufffd" for c in clip(text, 4000))
    escaped = kept.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'
