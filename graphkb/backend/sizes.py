"""Sizes that are tensors: scalar tensors turned back into exact dims, and shapes that mix integers and tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from graphkb.backend.promotion import Handle, items
from graphkb.ir import dims
from graphkb.ir.dims import Dim, Expr, Shape
from graphkb.ir.errors import ShapeError, shown
from graphkb.ir.graph import built_at
from graphkb.ir.leaves import Array
from graphkb.ir.node import Node
from graphkb.ir.types import FLOATS
from graphkb.ops import leaf, shape

_MOST_NODES = 10_000
_MOST_ELEMENTS = 1_000


def _elementwise(function: Callable[..., Any]) -> Callable[..., Array]:
    ufunc = np.frompyfunc(function, function.__code__.co_argcount, 1)
    return lambda *arrays: np.asarray(ufunc(*arrays), dtype=object)


def _mod(a: Dim, b: Dim) -> Dim:
    return a - dims.floordiv(a, b) * b


def _reduced(ufunc: Any) -> Callable[..., Array]:
    return lambda x, axes, keepdims: np.asarray(ufunc.reduce(x, axis=axes, keepdims=keepdims), dtype=object)


_product = np.frompyfunc(lambda a, b: a * b, 2, 1, identity=1)
_sum = np.frompyfunc(lambda a, b: a + b, 2, 1, identity=0)

# What the ops mean on arrays of dims. Any other op makes a value that is no dim.
_MEANING: dict[str, Callable[..., Array]] = {
    "add": _elementwise(lambda a, b: a + b),
    "sub": _elementwise(lambda a, b: a - b),
    "mul": _elementwise(lambda a, b: a * b),
    "neg": _elementwise(lambda a: -a),
    "square": _elementwise(lambda a: a * a),
    "floordiv": _elementwise(lambda a, b: dims.floordiv(a, b)),
    "mod": _elementwise(_mod),
    "maximum": _elementwise(lambda a, b: dims.maximum(a, b)),
    "minimum": _elementwise(lambda a, b: dims.minimum(a, b)),
    "prod": _reduced(_product),
    "sum": _reduced(_sum),
    "cast": lambda x, dtype: x,
    "stop_gradient": lambda x: x,
}
_MOVES = ("reshape", "transpose", "broadcast_to", "slice", "concatenate")


def as_dims(node: Node) -> Array | None:
    """An integer node as an object array of dims of the same shape, None where its value is not a matter of sizes.

    It sees through constants, sizes, integer arithmetic, and everything that only moves elements.
    """
    values: dict[Node, Array] = {}
    stack = [node]
    while stack:
        if len(values) + len(stack) > _MOST_NODES:
            return None
        top = stack[-1]
        if top in values:
            stack.pop()
            continue
        if not _may_be_dims(top):
            return None
        missing = [i for i in top.inputs if i not in values]
        if missing:
            stack.extend(missing)
            continue
        stack.pop()
        values[top] = _evaluate(top, [values[i] for i in top.inputs])
    return values[node]


def _may_be_dims(node: Node) -> bool:
    count = node.type.size
    if node.dtype in FLOATS or node.dtype == "bool" or not isinstance(count, int) or count > _MOST_ELEMENTS:
        return False
    name = node.op.name
    if name not in _MEANING and name not in _MOVES and node.op not in (leaf.CONSTANT, leaf.SIZE, leaf.IOTA):
        return False
    # A division by something that may be 0 has no exact dim.
    if name in ("floordiv", "mod"):
        divisor = node.inputs[1]
        return divisor.op is not leaf.CONSTANT or bool((leaf.constant_value(divisor) != 0).all())
    return True


def _evaluate(node: Node, inputs: list[Array]) -> Array:
    if node.op is leaf.CONSTANT:
        array = leaf.constant_value(node)
        result = np.empty(array.shape, object)
        result[...] = array.tolist() if array.ndim == 0 else array.astype(object)
        return result
    if node.op is leaf.SIZE:
        result = np.empty((), object)
        result[()] = node.attrs["dim"]
        return result
    if node.op is leaf.IOTA:
        return np.arange(node.attrs["size"]).astype(object)
    if node.op.name in _MOVES:
        assert node.op.numpy is not None
        return np.asarray(node.op.numpy(*inputs, **node.attrs), dtype=object)
    return _MEANING[node.op.name](*inputs, **node.attrs)


def as_dim(node: Node) -> Dim | None:
    """A scalar integer node as a dim, None where its value is not a matter of sizes."""
    if node.ndim != 0:
        return None
    values = as_dims(node)
    if values is None:
        return None
    value: Dim = values.item()
    return value


def to_dim(value: Any, what: str) -> Dim:
    """An integer or a scalar tensor as a dim.

    Raises:
        ShapeError: a tensor whose value depends on more than sizes. TypeError: no integer at all.
    """
    if isinstance(value, Expr):
        return value
    if isinstance(value, Handle):
        dim = as_dim(value.node)
        if dim is None:
            raise ShapeError(
                f"{what}: the size {value!r} depends on values, not only on shapes: "
                f"expected integers, or numbers computed from K.shape{built_at(value.node)}"
            )
        return dim
    try:
        return value.__index__()  # type: ignore[no-any-return]
    except (AttributeError, TypeError):
        if isinstance(value, np.ndarray) and value.ndim == 1:
            value = value.tolist()
        if isinstance(value, (list, tuple)) and len(value) == 1:
            return to_dim(value[0], what)
        raise TypeError(
            f"{what}: expected an integer or a scalar integer tensor as a size, not {shown(value)}"
        ) from None


def to_dims(value: Any, what: str) -> Shape:
    """A shape argument as dims: a sequence of integers and scalar tensors, an integer vector, or a tensor of one.

    Raises:
        ShapeError: a tensor whose values depend on more than sizes. TypeError: no integers at all.
    """
    if isinstance(value, Handle):
        if value.node.ndim != 1:
            raise ShapeError(f"{what}: expected a vector of sizes, not a tensor of rank {value.node.ndim}")
        values = as_dims(value.node)
        if values is None:
            raise ShapeError(
                f"{what}: the sizes {value!r} depend on values, not only on shapes: "
                f"expected integers, or numbers computed from K.shape{built_at(value.node)}"
            )
        return tuple(values.tolist())
    return tuple([to_dim(item, what) for item in size_list(value, what)])


def size_list(value: Any, what: str) -> list[Any]:
    """The items of a sequence of sizes, whatever they are; TypeError when it is none."""
    return items(what, "a sequence of sizes", value)


def check_sizes(what: str, sizes: Sequence[Dim]) -> None:
    """ShapeError when a size is known and negative."""
    if any(isinstance(size, int) and size < 0 for size in sizes):
        raise ShapeError(f"{what}: the shape {dims.show_shape(tuple(sizes))} has a negative size")


def to_count(what: str, name: str, value: Any, least: int = 0) -> int:
    """An integer from `least` on; TypeError or ValueError otherwise."""
    try:
        count: int = value.__index__()
    except (AttributeError, TypeError):
        raise TypeError(f"{what}: expected an integer as {name}, not {shown(value)}") from None
    if count < least:
        raise ValueError(f"{what}: expected {name} of {least} or more, not {count}")
    return count


def shape_node(sizes: Sequence[Dim]) -> Node:
    """An int32 vector node of sizes."""
    if dims.is_static(tuple(sizes)):
        return leaf.constant(np.asarray(sizes, np.int32).reshape(len(sizes)))
    return shape.stack([leaf.size(d) for d in sizes], 0)


def scalar_dim(value: Any) -> Dim | None:
    """The dim of an integer, or of a scalar tensor that is one; None for other tensors."""
    if isinstance(value, (int, np.integer)) and not isinstance(value, (bool, np.bool_)):
        return int(value)
    if isinstance(value, Handle) and value.node.ndim == 0:
        return as_dim(value.node)
    return None
