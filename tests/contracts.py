"""The contracts of all ops: sample operands, a reference independent of ours, the allowed error, the smooth inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from graphkb.ir.node import Node, make
from graphkb.ir.op import find_op
from graphkb.ir.types import DTYPES, FLOATS, INTEGERS

Array = np.ndarray[Any, np.dtype[Any]]
Rng = np.random.Generator


@dataclass(frozen=True)
class Case:
    """One application of an op: its operands, in their dtypes, and its attributes."""

    inputs: tuple[Array, ...]
    attrs: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Contract:
    """What is demanded of one op.

    Args:
        op: the op's name.
        cases: `cases(dtype, rng)` yields applications over a spread of shapes; attributes vary with them.
        reference: the right result from operands widened by `widen` (floats to extended precision, integers to
            Python's), with the attributes by keyword.
        dtypes: what the first operand may be; every other dtype must be refused.
        ulp: the error allowed to the interpreter, in units in the last place of the result, or of `scale`.
        scale: the magnitude that errors are measured against, where it is not the result: the sum of the absolute
            values of what is added up.
        smooth: the positions of the inputs whose gradient must equal finite differences; all others have none.
        special: whether the op is tried on all pairs of special values.
        zero_sign: whether the sign of a zero result is defined.
        build: makes what is tested of the operands, with the attributes by keyword; None applies the op itself.
    """

    op: str
    cases: Callable[[str, Rng], Iterator[Case]]
    reference: Callable[..., Any]
    dtypes: tuple[str, ...]
    ulp: float = 0.5
    scale: Callable[..., Any] | None = None
    smooth: tuple[int, ...] = ()
    special: bool = False
    zero_sign: bool = True
    build: Callable[..., Node] | None = None

    def apply(self, inputs: Sequence[Node], attrs: Mapping[str, Any] | None = None) -> Node:
        """The node that is held to the contract."""
        if self.build is not None:
            return self.build(*inputs, **(attrs or {}))
        return make(find_op(self.op), tuple(inputs), attrs)


def widen(x: Array) -> Array:
    """Floats in extended precision, integers as Python's, bools as they are."""
    if x.dtype.kind == "f":
        return x.astype(np.longdouble)
    return np.asarray(x).astype(object) if x.dtype.kind in "iu" else x


def sample(dtype: str, shape: tuple[int, ...], rng: Rng, low: float = -4, high: float = 4) -> Array:
    """Random values of a dtype: floats between the bounds, integers over their whole range, bools."""
    if dtype == "bool":
        return rng.integers(0, 2, shape).astype(bool)
    if dtype in INTEGERS:
        info = np.iinfo(dtype)
        small = rng.integers(max(info.min, -9), 10, shape).astype(dtype)
        return np.where(rng.random(shape) < 0.5, small, rng.integers(info.min, info.max, shape, dtype, endpoint=True))
    return np.asarray(rng.uniform(low, high, shape)).astype(dtype)


UNARY_SHAPES = ((), (0,), (1,), (7,), (3, 5), (2, 0, 3), (2, 3, 1, 5), (1031,))
PAIRS = (
    ((), ()),
    ((7,), (7,)),
    ((3, 1), (1, 5)),
    ((2, 3, 5), (3, 5)),
    ((3, 5), (3, 1)),
    ((0, 3), (3,)),
    ((1,), (0,)),
    ((2, 1, 3), (5, 1)),
    ((3, 5), ()),
    ((), (2, 3)),
    ((1,), (1031,)),
    ((1031,), (1031,)),
)


def unary(low: float, high: float) -> Callable[[str, Rng], Iterator[Case]]:
    """One operand, floats between the bounds."""

    def cases(dtype: str, rng: Rng) -> Iterator[Case]:
        for shape in UNARY_SHAPES:
            yield Case((sample(dtype, shape, rng, low, high),))
        yield Case((sample(dtype, (7, 5), rng, low, high)[::-2, ::3].T,))

    return cases


def binary(
    first: tuple[float, float] = (-4, 4), second: tuple[float, float] = (-4, 4)
) -> Callable[[str, Rng], Iterator[Case]]:
    """Two operands over all pairs of shapes, floats between the bounds."""

    def cases(dtype: str, rng: Rng) -> Iterator[Case]:
        for a, b in PAIRS:
            yield Case((sample(dtype, a, rng, *first), sample(dtype, b, rng, *second)))
        yield Case((sample(dtype, (3, 5), rng, *first).T, sample(dtype, (10, 6), rng, *second)[::-2, ::2]))

    return cases


def each(function: Callable[..., Any]) -> Callable[..., Array]:
    """A scalar function over arrays of Python objects."""
    return lambda *arrays: np.asarray(np.frompyfunc(function, len(arrays), 1)(*arrays))


def split(
    floats: Callable[..., Any], integers: Callable[..., int], bools: Callable[..., Any] | None = None
) -> Callable[..., Any]:
    """One reference for floats, one on Python's integers (wrapped to the dtype by the driver), one for bools."""

    def reference(*arrays: Array) -> Any:
        if arrays[0].dtype == object:
            return each(integers)(*arrays)
        return (bools or floats)(*arrays) if arrays[0].dtype == bool else floats(*arrays)

    return reference


def all_contracts() -> tuple[Contract, ...]:
    """Every contract there is, one for each op."""
    from contracts_control import CONTROL
    from contracts_conv import CONVOLUTIONS
    from contracts_elementwise import ELEMENTWISE
    from contracts_random import RANDOM
    from contracts_sparse import SPARSE
    from contracts_structure import STRUCTURE
    from contracts_values import VALUES

    return (*ELEMENTWISE, *STRUCTURE, *RANDOM, *SPARSE, *VALUES, *CONVOLUTIONS, *CONTROL)


__all__ = ["DTYPES", "FLOATS", "INTEGERS", "Case", "Contract", "all_contracts", "sample", "widen"]
