"""The pass that computes what is known already: functions of constants, and sizes that became known."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from graphkb.ir.graph import Graph
from graphkb.ir.node import Node
from graphkb.ir.record import record
from graphkb.ops import leaf
from graphkb.ops.leaf import CONSTANT
from graphkb.passes.patterns import BUDGET
from graphkb.passes.rewrite import of_kind, rewrite_graph, rule

# Bytes of operands up to which a function is worth computing while the program is compiled.
OPERANDS = 16 * 1024 * 1024
# A repeated constant stays a view: it takes no memory.
_REPEATING = ("broadcast_to", "broadcast_like")
_PURE = of_kind("elementwise", "view", "move", "reduce", "dot", "index")


@rule(*[name for name in _PURE if name not in _REPEATING])
def fold(node: Node) -> Node | None:
    """f(c, d) -> the value, for results of up to 64 KiB"""
    total = 0
    for each in node.inputs:
        if each.op is not CONSTANT:
            return None
        total += each.attrs["value"].array.nbytes
    nbytes = node.type.nbytes
    if not isinstance(nbytes, int) or nbytes > BUDGET or total > OPERANDS or node.op.numpy is None:
        return None
    try:
        with np.errstate(all="ignore"):
            value = node.op.numpy(*[i.attrs["value"].array for i in node.inputs], **node.attrs)
    except (IndexError, ValueError):
        return None  # the error belongs to the call: this node may never be asked for
    return leaf.constant(value)


@rule("size")
def fold_size(node: Node) -> Node | None:
    """size(n) -> n where n is known"""
    dim = node.attrs["dim"]
    return leaf.size(dim, node.dtype) if isinstance(dim, int) else None


FOLD = (fold, fold_size)


@record
class FoldConstants:
    """Compute nodes whose operands are all constants; variables and placeholders are never looked into."""

    name: ClassVar[str] = "fold_constants"

    def apply(self, graph: Graph) -> Graph:
        return rewrite_graph(graph, FOLD)
