"""What rules ask about nodes: constants seen through broadcasts, and facts about signs."""

from __future__ import annotations

import math

from graphkb.ir.node import Node
from graphkb.ir.types import FLOATS, UNSIGNED
from graphkb.ops.elementwise import CAST
from graphkb.ops.leaf import CONSTANT, constant
from graphkb.ops.shape import BROADCAST_TO, broadcast_to

Scalar = int | float | bool
# Bytes up to which results are folded; what is larger would only make the program longer.
BUDGET = 64 * 1024


def scalar(node: Node) -> Scalar | None:
    """The value that a constant has in every element, None for all else; broadcasts are looked through."""
    if node.op is BROADCAST_TO:
        node = node.inputs[0]
    if node.op is CONSTANT and not node.type.shape:
        value: Scalar = node.attrs["value"].array.item()
        return value
    return None


def is_constant(node: Node) -> bool:
    """Whether the node is a constant or a broadcast one, and small enough that a function of it is folded too."""
    if node.op is BROADCAST_TO:
        node = node.inputs[0]
    return node.op is CONSTANT and node.attrs["value"].array.nbytes <= BUDGET


def is_float(node: Node) -> bool:
    return node.type.dtype in FLOATS


def is_negative_zero(value: Scalar) -> bool:
    return value == 0 and math.copysign(1.0, value) < 0


def spread(x: Node, node: Node) -> Node:
    """`x` repeated to the shape of the node that it stands for."""
    return broadcast_to(x, node.type.shape)


def full(value: Scalar, node: Node) -> Node:
    """A constant in the place of a node."""
    return broadcast_to(constant(value, node.type.dtype), node.type.shape)


# Their results are +0 or more, or NaN: never -0.
_NEVER_NEGATIVE = frozenset(("abs", "exp", "exp2", "square", "sigmoid", "softplus", "cosh", "erfc"))


def never_negative(x: Node) -> bool:
    """Whether every element is known to be +0 or more, or NaN."""
    op = x.op
    if is_float(x):
        if op.name in _NEVER_NEGATIVE:
            return True
        if op is CAST:
            return x.inputs[0].dtype == "bool" or x.inputs[0].dtype in UNSIGNED
        value = scalar(x)
        return value is not None and math.copysign(1.0, value) > 0
    return x.dtype in UNSIGNED


def never_negative_zero(x: Node) -> bool:
    """Whether no element can be -0.0: a sum is -0.0 only where both of its terms are."""
    if never_negative(x):
        return True
    if x.op.name in ("add", "sub"):
        value = scalar(x.inputs[1])
        return value is not None and (value != 0 or is_negative_zero(value) == (x.op.name == "sub"))
    if x.op is CAST:
        return not is_float(x.inputs[0])
    return x.op.name == "sum"
