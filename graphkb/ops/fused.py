"""The fused op: a whole sub-graph as one node, which becomes one kernel of one or several results."""

from __future__ import annotations

from typing import Any

from graphkb.ir.graph import Graph
from graphkb.ir.leaves import Array
from graphkb.ir.node import Node, make
from graphkb.ir.op import define
from graphkb.ir.types import TensorType, tuple_type


def _infer_fused(*types: TensorType, body: Graph) -> TensorType:
    results = [out.type for out in body.outputs]
    return results[0] if len(results) == 1 else tuple_type(results)


def _numpy_fused(*arrays: Array, body: Graph) -> Array | tuple[Array, ...]:
    """The body, node by node."""
    values: dict[Node, Any] = dict(zip(body.inputs, arrays))
    for node in body.nodes:
        if node not in values:
            assert node.op.numpy is not None
            values[node] = node.op.numpy(*[values[i] for i in node.inputs], **node.attrs)
    results: list[Array] = [values[out] for out in body.outputs]
    return results[0] if len(results) == 1 else tuple(results)


FUSED = define(
    "fused",
    kind="fused",
    params=("body",),
    infer=_infer_fused,
    numpy=_numpy_fused,
    doc="A sub-graph; the operands are its inputs, in order. Several outputs make a tuple, of which `item` takes one.",
)


def fused(inputs: tuple[Node, ...], body: Graph) -> Node:
    """The node that stands for the outputs of `body`, and carries the first one's provenance."""
    return make(FUSED, inputs, {"body": body}, None, body.outputs[0].origin)
