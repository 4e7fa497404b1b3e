"""What kernels are made of: the families of ops by the part they can play, and what that takes of a node."""

from __future__ import annotations

from graphkb.ir.node import Node
from graphkb.passes.row_axes import Axes, result_axes

# Views whose index maps are affine.
AFFINE_VIEWS = {"transpose", "broadcast_to", "broadcast_like", "slice", "stop_gradient"}
# Reductions that kernels know; `unbroadcast` has become a sum by now.
REDUCTIONS = {"sum", "prod", "max", "min", "any", "all", "argmax", "argmin"}
# Those that can share their loops with others.
SHARED_REDUCTIONS = REDUCTIONS - {"argmax", "argmin"}
# Sums of products, which read their operands many times.
PRODUCTS = {"dot", "conv"}
# Reductions over sliding windows.
WINDOWS = {"window_sum", "window_max", "window_argmax"}
# Ops that only begin a kernel, as several nests that each write a part.
SCATTERED = {"pad", "pad_value", "concatenate", "interleave", "scatter_add", "cumsum", "cumprod"}
# Those among them whose nests each compute one operand, with a reduction or product of its own perhaps.
JOINED = {"pad", "pad_value", "concatenate", "interleave"}
# Reads at computed positions, and the mark of positions that are checked before.
INDIRECT = {"gather", "guard"}
# Rows up to this length are reduced several times in one kernel; longer ones would leave the cache in between.
LONGEST_ROW = 65536
# From so many channels on a convolution stores them side by side, whatever order the next kernel wants.
MANY_COLUMNS = 16
# Windows are read through padding; so are those of convolutions with a group for each few channels.
PADS = {"pad", "pad_value"}
# Leaves without memory of their own, which kernels compute.
INLINE_LEAVES = {"size", "iota", "positions"}


def is_inline_leaf(node: Node) -> bool:
    """Whether a kernel computes the leaf by itself."""
    if node.op.name == "constant":
        return node.type.size == 1
    return node.op.name in INLINE_LEAVES


def is_squeeze(node: Node) -> bool:
    """Whether a reshape only adds or removes axes of size 1."""
    return [n for n in node.inputs[0].shape if n != 1] == [n for n in node.shape if n != 1]


def is_inner(node: Node) -> bool:
    """Whether a node can stand anywhere in a kernel."""
    if node.op.name == "reshape":
        return is_squeeze(node)
    return node.op.kind == "elementwise" or node.op.name in AFFINE_VIEWS or node.op.name in INDIRECT


def is_core(node: Node) -> bool:
    """Whether a node is the one reduction or product of its kernel."""
    return node.op.name in REDUCTIONS or node.op.name in PRODUCTS or node.op.name in WINDOWS


def is_native(node: Node) -> bool:
    """Whether a kernel can begin with the node."""
    return is_inner(node) or is_core(node) or node.op.name in SCATTERED


def source_of(node: Node) -> Node:
    """The node that a view looks at."""
    while node.op.name in AFFINE_VIEWS or (node.op.name == "reshape" and is_squeeze(node)):
        node = node.inputs[0]
    return node


def is_smaller(node: Node, than: Node) -> bool:
    """Whether a node has so many fewer elements that reading it takes no time."""
    small, large = node.type.size, than.type.size
    return isinstance(small, int) and isinstance(large, int) and 16 * small <= large


def must_stand(node: Node, user: Node) -> bool:
    """Whether a user needs its operand in memory: products read theirs many times, gather at computed positions."""
    if user.op.name in PRODUCTS:
        return True
    # What guards others has to be known before they run.
    return (user.op.name == "gather" and node is user.inputs[0]) or (user.op.name == "guard" and node is user.inputs[1])


def slides_over(user: Node, node: Node) -> bool:
    """Whether a node is what windows of another slide over, which then reads it element by element."""
    if user.op.name == "conv":
        return node is user.inputs[0] and node is not user.inputs[1] and user.ndim > len(user.attrs["strides"]) + 2
    return user.op.name in ("window_sum", "window_max")


def is_around(pad: Node) -> bool:
    """Whether padding stands around elements that are neighbors, in numbers that are known."""
    x = pad.inputs[0]
    padded = [(n, start, total) for n, start, total in zip(x.shape, pad.attrs["starts"], pad.shape) if n != total]
    known = all(isinstance(size, int) for sizes in padded for size in sizes)
    return known and all(n > 0 for n, _, _ in padded) and all(s == 1 for s in pad.attrs.get("steps", ()))


def keeps_neighbors(view: Node, user: Node) -> bool:
    """Whether what lies side by side before a transpose is still rows, columns or channels of a convolution."""
    axis: int = view.attrs["axes"].index(view.ndim - 1)
    return axis == view.ndim - 1 or (axis == 0 and view is user.inputs[0] and view is not user.inputs[1])


def turns_columns(core: Node, axes: Axes, root: Node) -> bool:
    """Whether a convolution's channels would be stored apart: turning them over afterwards is faster."""
    if core.op.name != "conv" or axes[-1:] == result_axes(root)[-1:]:
        return False
    columns = core.shape[-1]
    return isinstance(columns, int) and columns >= MANY_COLUMNS
