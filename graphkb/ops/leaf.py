"""Leaves: constants, placeholders, variables, sizes and counting vectors."""

from __future__ import annotations

from typing import Any

import numpy as np

from graphkb.ir.dims import Dim, Shape
from graphkb.ir.leaves import Array, Constant, PlaceholderKey, VariableCell
from graphkb.ir.node import Node, make
from graphkb.ir.op import define
from graphkb.ir.types import NUMPY_DTYPE, TensorType, dtype_name

CONSTANT = define(
    "constant",
    kind="leaf",
    params=("value",),
    infer=lambda value: TensorType(dtype_name(value.array.dtype), value.array.shape),
    numpy=lambda value: value.array,
    doc="A value known when the graph is built.",
)

PLACEHOLDER = define(
    "placeholder",
    kind="leaf",
    params=("key", "dtype", "shape"),
    infer=lambda key, dtype, shape: TensorType(dtype, shape),
    doc="A value handed in at every call.",
)

VARIABLE = define(
    "variable",
    kind="leaf",
    params=("cell",),
    infer=lambda cell: cell.type,
    numpy=lambda cell: cell.array,
    doc="The value that a variable holds when the call begins.",
)

SIZE = define(
    "size",
    kind="leaf",
    params=("dim", "dtype"),
    infer=lambda dim, dtype: TensorType(dtype, ()),
    numpy=lambda dim, dtype: np.asarray(dim, dtype),
    doc="A dimension as a scalar: a constant as soon as the sizes are bound.",
)

IOTA = define(
    "iota",
    kind="leaf",
    params=("size", "dtype"),
    infer=lambda size, dtype: TensorType(dtype, (size,)),
    numpy=lambda size, dtype: np.arange(size).astype(dtype),
    doc="0, 1, 2 … size - 1.",
)


def constant(value: Any, dtype: str | None = None) -> Node:
    """A constant node from an array or a number, with the dtype given or the array's own."""
    array: Array = np.asarray(value, None if dtype is None else NUMPY_DTYPE[dtype])
    name = dtype_name(array.dtype)
    if not array.dtype.isnative:
        array = array.astype(NUMPY_DTYPE[name])
    return make(CONSTANT, (), {"value": Constant(array)})


def placeholder(shape: Shape, dtype: str, name: str) -> Node:
    """A new placeholder; unknown dims are symbols of its shape."""
    return make(PLACEHOLDER, (), {"key": PlaceholderKey(name), "dtype": dtype, "shape": shape})


def variable(cell: VariableCell) -> Node:
    """The node that reads a cell."""
    return make(VARIABLE, (), {"cell": cell})


def size(dim: Dim, dtype: str = "int32") -> Node:
    """A dimension as a scalar node: a constant where it is known."""
    if isinstance(dim, int):
        return constant(dim, dtype)
    return make(SIZE, (), {"dim": dim, "dtype": dtype})


def iota(count: Dim, dtype: str = "int32") -> Node:
    """The vector 0 … count - 1."""
    return make(IOTA, (), {"size": count, "dtype": dtype})


def is_constant(node: Node, value: float | None = None) -> bool:
    """Whether the node is a constant, and (if a value is given) that value everywhere."""
    if node.op is not CONSTANT:
        return False
    if value is None:
        return True
    array = node.attrs["value"].array
    return bool(array.size) and bool((array == value).all())


def constant_value(node: Node) -> Array:
    """The array of a constant node."""
    array: Array = node.attrs["value"].array
    return array
