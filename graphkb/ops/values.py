"""Ops that look at values when they run: checked integers, printing, and padding that is cut off at the end."""

from __future__ import annotations

import numpy as np

from graphkb.ir.dims import Dim
from graphkb.ir.errors import DTypeError
from graphkb.ir.leaves import Array
from graphkb.ir.node import Node, make
from graphkb.ir.op import define, not_differentiable
from graphkb.ir.types import INTEGERS, TensorType


# ---------------------------------------------------------------------------------------------- checked integers
def _infer_bounded(x: TensorType, what: str, low: Dim, high: Dim) -> TensorType:
    if x.dtype not in INTEGERS:
        raise DTypeError(f"bounded: expected integers, not {x.dtype}")
    return x


def _numpy_bounded(x: Array, what: str, low: int, high: int) -> Array:
    wrong = (x < low) | (x > high)
    if wrong.any():
        raise ValueError(f"{what}: expected integers from {low} to {high}, got {x[wrong].flat[0]}")
    return x


BOUNDED = define(
    "bounded",
    params=("what", "low", "high"),
    infer=_infer_bounded,
    numpy=_numpy_bounded,
    vjp=not_differentiable,
    doc="The operand; ValueError where an element lies outside of the bounds, which belong to the range.",
)


def bounded(x: Node, what: str, low: Dim, high: Dim) -> Node:
    """Integers that are checked when they are computed; `what` begins the text of the error."""
    return make(BOUNDED, (x,), {"what": what, "low": low, "high": high})


# ---------------------------------------------------------------------------------------------- padding
def _infer_trim(x: TensorType) -> TensorType:
    if x.dtype != "int64" or x.ndim != 2:
        raise DTypeError(f"trim: expected a matrix of int64, not {x!r}")
    return x


TRIM = define(
    "trim",
    infer=_infer_trim,
    numpy=lambda x: x,
    vjp=not_differentiable,
    doc="""Rows padded with -1. Inside a graph it is the operand; as an output of a function or in `eval` the last
    columns are cut off where all rows have -1.""",
)


def trim(x: Node) -> Node:
    """Rows of integers, padded with -1, whose common padding is cut off where they leave the graph."""
    return make(TRIM, (x,))


def trimmed(array: Array) -> Array:
    """Rows without the columns at the end that hold -1 in every row."""
    used = np.flatnonzero((array != -1).any(axis=0))
    return array[:, : used[-1] + 1 if used.size else 0]


# ---------------------------------------------------------------------------------------------- printing
def _numpy_print(x: Array, message: str) -> Array:
    print(message, x)
    return x


PRINT = define(
    "print",
    params=("message",),
    infer=lambda x, message: x,
    numpy=_numpy_print,
    vjp=lambda g, y, x, message: (g,),
    doc="The operand, which is printed behind the message whenever it is computed.",
)


def print_(x: Node, message: str) -> Node:
    """The node, printed whenever it is computed."""
    return make(PRINT, (x,), {"message": message})
