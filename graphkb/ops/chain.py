"""The chain op: kernels that follow one another over a batch, of which some samples go through all at a time."""

from __future__ import annotations

from typing import Any

from graphkb.ir.dims import Dim
from graphkb.ir.errors import DTypeError, ShapeError
from graphkb.ir.graph import Graph
from graphkb.ir.leaves import Array
from graphkb.ir.node import Node, make
from graphkb.ir.op import define
from graphkb.ir.types import TensorType, tuple_type


def _infer_chain(*types: TensorType, body: Graph, varying: tuple[int, ...], samples: Dim) -> TensorType:
    if [t.dtype for t in types] != [p.dtype for p in body.inputs]:
        raise DTypeError(f"chain: the operands {list(types)!r} are not what the body {body.name} takes")
    batches = {p.shape[:1] for p in (*[body.inputs[i] for i in varying], *body.outputs)}
    if [t.shape for t in types] != [p.shape for p in body.inputs] or len(batches) != 1:
        raise ShapeError(f"chain: the operands {list(types)!r} do not fit the body {body.name}, or its one batch")
    return tuple_type([out.type for out in body.outputs])


def _numpy_chain(*arrays: Array, body: Graph, varying: tuple[int, ...], samples: int) -> tuple[Array, ...]:
    """The body, node by node, for all samples at once."""
    values: dict[Node, Any] = dict(zip(body.inputs, arrays))
    for node in body.nodes:
        if node not in values:
            assert node.op.numpy is not None
            values[node] = node.op.numpy(*[values[i] for i in node.inputs], **node.attrs)
    return tuple([values[out] for out in body.outputs])


CHAIN = define(
    "chain",
    kind="control",
    params=("body", "varying", "samples"),
    infer=_infer_chain,
    numpy=_numpy_chain,
    doc="""The outputs of a body of kernels as a tuple. No sample, along the first axis of every output and of the
    operands at the places `varying`, depends on another one; the body is computed for about `samples` at a time.""",
)


def chain(inputs: tuple[Node, ...], body: Graph, varying: tuple[int, ...], samples: int) -> Node:
    """The node that stands for the outputs of `body`, and carries the last one's provenance."""
    attrs = {"body": body, "varying": varying, "samples": samples}
    return make(CHAIN, inputs, attrs, None, body.outputs[-1].origin)


__all__ = ["CHAIN", "chain"]
