"""The verifier: what must be true of every graph after every pass."""

from __future__ import annotations

from graphkb.ir.errors import GraphError
from graphkb.ir.graph import Graph, bodies
from graphkb.ir.text import format_node, number


def verify(graph: Graph) -> None:
    """Check structure and types, also of bodies; GraphError with the node printed and the message under it.

    Placeholders that the roots need must be among the inputs; each node's type must be what its op infers;
    updates must fit their variables.
    """
    pending = [graph]
    while pending:
        top = pending.pop()
        _verify(top)
        pending += [body for node in top.nodes if node.op.kind == "control" for _, body in bodies(node)]


def _verify(graph: Graph) -> None:
    inputs = set(graph.inputs)
    if len(inputs) != len(graph.inputs):
        raise GraphError("a placeholder stands twice among the inputs of one graph")
    names = None
    for node in graph.nodes:
        problem = None
        if node.op.name == "placeholder":
            if node not in inputs:
                problem = "this placeholder is needed but is not among the inputs"
        elif node.op.kind != "leaf":
            try:
                inferred = node.op.infer(*[i.type for i in node.inputs], **node.attrs)
            except (ValueError, TypeError) as error:
                problem = str(error)
            else:
                if inferred != node.type:
                    problem = f"the type should be {inferred!r}"
        if problem is not None:
            names = names or number(graph)
            raise GraphError(f"{format_node(node, names)}\n  ^ {problem}")
    for cell, value in graph.updates:
        wrong = any(isinstance(n, int) and n != m for n, m in zip(value.shape, cell.type.shape))
        if value.type.dtype != cell.type.dtype or value.type.ndim != cell.type.ndim or wrong:
            raise GraphError(f"the update of {cell!r} has type {value.type!r}, the variable {cell.type!r}")
