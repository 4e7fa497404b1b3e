"""How operands of K functions become nodes of one dtype.

Two tensors promote as NumPy promotes them, except that a float tensor keeps its dtype beside an integer or bool one:
a float32 graph does not become float64 because an int32 tensor enters it. Everything that is not a tensor (Python
numbers, lists, NumPy scalars and arrays of any rank) is weak: it takes the dtype of the tensor beside it, as in Keras
on TensorFlow, unless it is of a wider kind. A float beside an integer or bool tensor gives `floatx()`; an integer that
the tensor's dtype can not hold widens it.
"""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np

from graphkb.backend import config
from graphkb.ir.errors import DTypeError, ShapeError, shown
from graphkb.ir.leaves import Array
from graphkb.ir.node import Node
from graphkb.ir.types import FLOATS, INTEGERS, NUMPY_DTYPE, SIGNED, dtype_name
from graphkb.ops import leaf, shape
from graphkb.ops.elementwise import cast

_PLAIN = frozenset((bool, int, float))


class Handle:
    """What the user holds: anything that stands for a node."""

    node: Node


def is_operand(value: Any) -> bool:
    """Whether an operator may take a value: a tensor, a number, a list or an array of numbers."""
    if isinstance(value, (Handle, bool, int, float, np.ndarray, np.generic)):
        return True
    return isinstance(value, (list, tuple))


def items(what: str, wanted: str, value: Any) -> list[Any]:
    """The items of a sequence, whatever they are; TypeError when it is none. `wanted` says what it should hold."""
    if not isinstance(value, (str, bytes, dict, set)):
        try:
            return list(value)
        except TypeError:
            pass
    raise TypeError(f"{what}: expected {wanted}, not {shown(value)}")


def operand(what: str, name: str, value: Any) -> Any:
    """The value of an argument if an operator takes it; DTypeError otherwise."""
    if not is_operand(value):
        raise DTypeError(f"{what}: expected a tensor or numbers as {name}, not {shown(value)}")
    return value


def to_array(value: Any) -> Array:
    """A Python or NumPy value as an array; TypeError when it does not hold numbers or bools, or ShapeError."""
    try:
        array: Array = np.asarray(value)
    except OverflowError:
        raise DTypeError(f"the integer {value} does not fit into any dtype: expected at most 64 bits") from None
    except ValueError:
        raise ShapeError(f"expected nested lists of equal lengths, not {shown(value)}") from None
    if array.dtype.kind not in "biuf" or array.dtype.itemsize > 8:
        if array.dtype.kind == "O" and any(isinstance(v, int) and not -(2**63) <= v < 2**64 for v in array.flat):
            raise DTypeError("an integer does not fit into any dtype: expected at most 64 bits")
        raise DTypeError(f"expected a tensor or numbers, not {shown(value)}")
    return array


def _holds_handle(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and any(isinstance(v, Handle) or _holds_handle(v) for v in value)


def default_dtype(value: Any, array: Array) -> str:
    """The dtype of a value without a tensor beside it: NumPy's own; `floatx()` and int32 for Python's numbers."""
    if isinstance(value, (np.ndarray, np.generic)) or array.dtype.kind == "b":
        return dtype_name(array.dtype)
    if array.dtype.kind == "f":
        return config.floatx()
    return "int32" if _fits(array, "int32") else "int64" if array.dtype.kind == "i" else "uint64"


def constant(array: Array, dtype: str) -> Node:
    """A constant node; a float that is too large becomes infinite without a warning."""
    try:
        with np.errstate(over="ignore"):
            return leaf.constant(array.astype(NUMPY_DTYPE[dtype], copy=False))
    except OverflowError:
        raise DTypeError(f"an integer is too large for {dtype}") from None


def as_node(value: Any, dtype: str | None = None) -> Node:
    """The node of a tensor, a number, an array, or a list of tensors and numbers (which is stacked).

    Args:
        value: anything `is_operand` allows.
        dtype: the dtype of the node; None keeps a tensor's and takes `default_dtype` of other values.
    """
    if isinstance(value, Handle):
        node = value.node
    elif _holds_handle(value):
        node = shape.stack(as_nodes(value), 0)
    else:
        array = to_array(value)
        return constant(array, default_dtype(value, array) if dtype is None else dtype)
    return node if dtype is None else cast(node, dtype)


def promote(a: str, b: str) -> str:
    """The dtype in which tensors of two dtypes meet."""
    if a == b or (a in FLOATS and b not in FLOATS):
        return a
    if b in FLOATS and a not in FLOATS:
        return b
    return dtype_name(np.result_type(NUMPY_DTYPE[a], NUMPY_DTYPE[b]))


def _fits(array: Array, dtype: str) -> bool:
    if array.dtype.kind == "b" or not array.size:
        return True
    info = np.iinfo(dtype)
    return int(array.min()) >= info.min and int(array.max()) <= info.max


def weak_dtype(array: Array, dtype: str) -> str:
    """The dtype in which a weak value meets a tensor of a dtype."""
    kind = array.dtype.kind
    if kind == "b" or (dtype in FLOATS):
        return dtype
    if kind == "f":
        return config.floatx()
    if dtype in INTEGERS:
        if _fits(array, dtype):
            return dtype
        least = next(name for name in (*SIGNED, "uint64") if _fits(array, name))
        return dtype_name(np.result_type(NUMPY_DTYPE[dtype], NUMPY_DTYPE[least]))
    return dtype_name(array.dtype)


def as_nodes(values: Any) -> list[Node]:
    """Values as nodes of one dtype: tensors promote, all else is weak beside them."""
    nodes: list[Node | None] = []
    weak: list[tuple[int, Any, Array]] = []
    dtype: str | None = None
    for i, value in enumerate(values):
        if isinstance(value, Handle) or _holds_handle(value):
            node = as_node(value)
            dtype = node.dtype if dtype is None else promote(dtype, node.dtype)
            nodes.append(node)
        else:
            weak.append((i, value, to_array(value)))
            nodes.append(None)
    if dtype is None:
        for _, value, array in weak:
            own = default_dtype(value, array)
            dtype = own if dtype is None else promote(dtype, own)
    else:
        for _, _, array in weak:
            dtype = weak_dtype(array, dtype)
    assert dtype is not None
    for i, _, array in weak:
        nodes[i] = constant(array, dtype)
    return [cast(node, dtype) for node in nodes if node is not None]


def _beside(value: float, node: Node) -> tuple[Node, Node] | None:
    """A Python number and the tensor beside it in one dtype, quickly; None where it takes a closer look."""
    dtype = node.type.dtype
    fits = dtype in FLOATS or isinstance(value, bool)
    if not fits and (isinstance(value, float) or dtype == "bool" or not 0 <= value < 128):
        return None
    key = (value.__class__, value, dtype)
    made = _scalars.get(key)
    if made is None:
        made = constant(np.asarray(value), dtype)
        if value:  # -0.0 and 0.0 are equal keys
            _scalars[key] = made
    return made, node


# Graphs are full of the same few numbers.
_scalars: weakref.WeakValueDictionary[tuple[type, float, str], Node] = weakref.WeakValueDictionary()


def pair(a: Any, b: Any) -> tuple[Node, Node]:
    """Two operands as nodes of one dtype."""
    if isinstance(a, Handle) and isinstance(b, Handle):
        x, y = a.node, b.node
        if x.type.dtype == y.type.dtype:
            return x, y
        dtype = promote(x.dtype, y.dtype)
        return cast(x, dtype), cast(y, dtype)
    if type(b) in _PLAIN and isinstance(a, Handle):
        found = _beside(b, a.node)
        if found is not None:
            return found[1], found[0]
    elif type(a) in _PLAIN and isinstance(b, Handle):
        found = _beside(a, b.node)
        if found is not None:
            return found
    x, y = as_nodes((a, b))
    return x, y


def to_float(node: Node) -> Node:
    """The node itself if it is a float, else cast to `floatx()`."""
    return node if node.dtype in FLOATS else cast(node, config.floatx())


def float_node(value: Any) -> Node:
    """A value as a node of a float dtype; integers and bools become `floatx()`."""
    return to_float(as_node(value))
