"""The op record: all that the compiler knows about one primitive, in one place."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import field
from typing import TYPE_CHECKING, Any

from graphkb.ir.record import record

if TYPE_CHECKING:
    from graphkb.ir.node import Node
    from graphkb.ir.types import TensorType

# A vjp takes the gradient of the output, the output, the inputs, and the attributes by keyword, and returns one
# gradient (or None: not connected) per input.
Vjp = Callable[..., "tuple[Node | None, ...]"]


def not_differentiable(g: Node, y: Node, *inputs: Node, **attrs: Any) -> tuple[None, ...]:
    """The vjp of ops whose output does not vary smoothly with any input (comparisons, round, argmax)."""
    return (None,) * len(inputs)


@record(eq=False, slots=True)
class Op:
    """One primitive: its name, type inference, NumPy meaning, gradient and traits.

    Args:
        name: unique, as it stands in dumps.
        infer: `infer(*types, **attrs) -> TensorType`; raises ShapeError or DTypeError.
        numpy: `numpy(*arrays, **attrs) -> array`, the meaning of the op; None for leaves.
        vjp: the vector-Jacobian product; `not_differentiable` where there is none; None when it is missing,
            which is an error for whoever needs it.
        params: the attributes' names, in the order in which they print.
        kind: the family that passes and code generation tell apart: "leaf", "elementwise", "view", "move",
            "reduce", "dot", "index", "marker" or "other".
        commutative: whether two inputs may change places.
        cost: rough scalar operations per element; transcendental functions count 10 or more.
    """

    name: str
    infer: Callable[..., TensorType]
    numpy: Callable[..., Any] | None = None
    vjp: Vjp | None = None
    params: tuple[str, ...] = ()
    kind: str = "other"
    commutative: bool = False
    cost: int = 1
    doc: str = field(default="")

    def __repr__(self) -> str:
        return f"<op {self.name}>"

    def __reduce__(self) -> tuple[Callable[[str], Op], tuple[str]]:
        return find_op, (self.name,)


_OPS: dict[str, Op] = {}


def define(name: str, **facets: Any) -> Op:
    """Make an op record and enter it into the one table by name, where pickles and JSON files look it up."""
    if name in _OPS:
        raise AssertionError(f"op {name} is defined twice")
    op = Op(name, **facets)
    _OPS[name] = op
    return op


def find_op(name: str) -> Op:
    """The op of a name; KeyError when there is none."""
    if name not in _OPS:
        importlib.import_module("graphkb.ops")  # a pickle or a JSON file may be read before anything was built
    return _OPS[name]


def is_op(name: str) -> bool:
    """Whether an op of that name has been defined."""
    return name in _OPS


def all_ops() -> tuple[Op, ...]:
    """Every op, in the order of definition."""
    return tuple(_OPS.values())
