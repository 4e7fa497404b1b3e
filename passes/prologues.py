"""Prologues: element-wise operands of matrix products that the product's kernel computes, each element once."""

from __future__ import annotations

from graphkb.ir.dims import Dim, product
from graphkb.ir.node import Node
from graphkb.ir.types import FLOATS, NUMPY_DTYPE
from graphkb.passes.kernel_ops import JOINED, PRODUCTS, is_core, is_inner
from graphkb.passes.row_axes import reduces_last_axis

# So few elements are computed before all else; more only where the other matrix has no more bytes than these, so that
# it stays in the second-level cache while rows pass by.
FEW_ELEMENTS, _CACHED = 16384, 1 << 20
# What an unknown size counts as.
_UNKNOWN = 128
# Nodes that are looked at.
_MOST = 48


def is_prologue(node: Node, user: Node) -> bool:
    """Whether a node is an operand that a product had better compute by itself, provided that nobody else reads it.

    The other operand then meets some rows at a time, which lie in the cache just so long.
    """
    if (
        user.op.name not in PRODUCTS
        or node.op.kind != "elementwise"
        or node.dtype != user.dtype
        or user.dtype not in FLOATS
    ):
        return False
    sizes = _sizes(user)
    if sizes is None or user.inputs[0] is not node or user.inputs[1] is node:
        return False
    rows, depth, columns = sizes
    if depth in (0, 1):
        return False
    elements = rows * depth
    few = isinstance(elements, int) and elements <= FEW_ELEMENTS
    size = NUMPY_DTYPE[user.dtype].itemsize
    return (few or columns == 1 or _guess(depth) * _guess(columns) * size <= _CACHED) and _is_made_of_memory(node)


def _sizes(user: Node) -> tuple[Dim, Dim, Dim] | None:
    """Rows of the first operand, products in a sum and columns of the second; None where there are more axes."""
    x, y = user.inputs
    if user.op.name == "conv":
        if user.ndim != len(user.attrs["strides"]) + 2 or any(n != 1 for n in y.shape[:-2]):
            return None
        return product(user.shape[:-1]), x.shape[-1], user.shape[-1]
    contracted, batch = user.attrs["contract_x"], user.attrs["batch_x"]
    if len(contracted) != 1 or y.ndim > len(batch) + 2:
        return None
    depth = x.shape[contracted[0]]
    rows = product([n for axis, n in enumerate(x.shape) if axis not in (*batch, *contracted)])
    taken = (*user.attrs["batch_y"], *user.attrs["contract_y"])
    return rows, depth, product([n for axis, n in enumerate(y.shape) if axis not in taken])


def _is_made_of_memory(root: Node) -> bool:
    """Whether what lies in memory has as many elements, and no other kernel would compute a node more cheaply.

    The epilogue of a product and whatever shares its rows with a reduction cost no pass over memory there.
    """
    seen, stack, wide = {root}, [root], False
    while stack:
        for node in stack.pop().inputs:
            if node in seen:
                continue
            seen.add(node)
            if len(seen) > _MOST or node.op.name in JOINED:
                return False
            if is_core(node):
                if node.type.size == root.type.size or "axes" not in node.attrs or reduces_last_axis(node):
                    return False
            elif is_inner(node):
                stack.append(node)
            wide = wide or (node.type.size == root.type.size and not (is_inner(node) and node.op.name != "gather"))
    return wide


def _guess(size: Dim) -> int:
    return size if isinstance(size, int) else _UNKNOWN


__all__ = ["FEW_ELEMENTS", "is_prologue"]
