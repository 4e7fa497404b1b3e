"""The fused op: a whole sub-graph as one node, which becomes one kernel."""

from __future__ import annotations

from typing import Any

from graphkb.ir.graph import Graph
from graphkb.ir.leaves import Array
from graphkb.ir.node import Node, make
from graphkb.ir.op import define
from graphkb.ir.types import TensorType


def _numpy_fused(*arrays: Array, body: Graph) -> Array:
    """The body, node by node."""
    values: dict[Node, Any] = dict(zip(body.inputs, arrays))
    for node in body.nodes:
        if node not in values:
            assert node.op.numpy is not None
            values[node] = node.op.numpy(*[values[i] for i in node.inputs], **node.attrs)
    result: Array = values[body.outputs[0]]
    return result


FUSED = define(
    "fused",
    kind="fused",
    params=("body",),
    infer=lambda *types, body: body.outputs[0].type,
    numpy=_numpy_fused,
    doc="A sub-graph with one output; the operands are its inputs, in order.",
)


def fused(inputs: tuple[Node, ...], body: Graph) -> Node:
    """The node that stands for the output of `body`, and carries that output's provenance."""
    result: TensorType = body.outputs[0].type
    return make(FUSED, inputs, {"body": body}, result, body.outputs[0].origin)
