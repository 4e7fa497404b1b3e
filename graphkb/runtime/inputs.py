"""The inputs of a call: values turned into arrays, checked against the placeholders, their sizes bound."""

from __future__ import annotations

import numbers
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from graphkb.ir.dims import ONE, Expr, Symbol, keras_shape, show_shape, sole_atom, substitute
from graphkb.ir.errors import InputError
from graphkb.ir.leaves import Array
from graphkb.ir.node import Node
from graphkb.ir.types import NUMPY_DTYPE
from graphkb.runtime.interpreter import evaluate

Shapes = tuple[tuple[int, ...], ...]


class Parameters:
    """The placeholders of a function, which take the values of a call one by one."""

    __slots__ = ("_owner", "dtypes", "names", "nodes")

    def __init__(self, nodes: Sequence[Node], owner: str) -> None:
        self.nodes = tuple(nodes)
        self.names = tuple([placeholder_name(node) for node in nodes])
        self.dtypes = tuple([node.dtype for node in nodes])
        self._owner = owner

    def convert(self, values: Any) -> list[Array]:
        """One array for each placeholder, of its dtype, C-contiguous and aligned; no copy where none is needed.

        Symbolic values are evaluated first; `as_array` tells the rules for all others.

        Raises:
            TypeError: `values` is neither a list nor a tuple.
            InputError: their count is wrong, or one does not fit its placeholder's dtype.
        """
        if not isinstance(values, (list, tuple)):
            raise TypeError(
                f"{self._owner}: expected a list or tuple of {len(self.nodes)} inputs, got {type(values).__name__}: "
                "call it as f([x, …])"
            )
        if len(values) != len(self.nodes):
            wanted = f"{len(self.nodes)} input{'' if len(self.nodes) == 1 else 's'}"
            known = f" ({', '.join(self.names)})" if self.names else ""
            raise InputError(f"{self._owner}: expected {wanted}{known}, got {len(values)}")
        return [as_array(value, dtype, name) for value, dtype, name in zip(values, self.dtypes, self.names)]

    def bind(self, shapes: Shapes) -> dict[Symbol, int]:
        """The sizes of all symbols when the inputs have these shapes.

        Raises:
            InputError: a shape does not fit its placeholder, or does not agree with another one's.
        """
        bindings: dict[Symbol, int] = {}
        source: dict[Symbol, str] = {}
        pending: list[_Unknown] = []
        for node, name, shape in zip(self.nodes, self.names, shapes):
            if len(shape) != node.ndim or any(isinstance(d, int) and d != n for d, n in zip(node.shape, shape)):
                raise InputError(f"{name}: expected shape {show_shape(node.shape)}, got {shape}")
            pending += [_Unknown(node, name, shape, a) for a, d in enumerate(node.shape) if isinstance(d, Expr)]
        # An expression over several symbols has to wait until the others are bound.
        while pending:
            waiting = [unknown for unknown in pending if not unknown.bind(bindings, source)]
            if len(waiting) == len(pending):
                unknown = waiting[0]
                raise InputError(
                    f"{unknown.name}: axis {unknown.axis} of the shape {show_shape(unknown.node.shape)} is "
                    f"{unknown.node.shape[unknown.axis]}, and the inputs do not tell these sizes"
                )
            pending = waiting
        return bindings

    def describe(self, shapes: Sequence[Sequence[int | None]]) -> str:
        """The inputs with their shapes: `x: (3, 4), y: (None,)`."""
        return ", ".join(f"{name}: {shape}" for name, shape in zip(self.names, shapes)) or "no inputs"


class _Unknown(NamedTuple):
    """One axis of an input whose size is a symbol, or an expression over symbols."""

    node: Node
    name: str
    shape: tuple[int, ...]
    axis: int

    def bind(self, bindings: dict[Symbol, int], source: dict[Symbol, str]) -> bool:
        """Bind the symbol, or check the size; False when too many symbols are not bound yet."""
        dim, size = self.node.shape[self.axis], self.shape[self.axis]
        value = substitute(dim, bindings)
        if isinstance(value, int):
            if value != size:
                raise InputError(self._disagreement(bindings, source))
            return True
        symbol, solution = _solve(value, size)
        if symbol is None:
            return False
        if solution is None or solution < 0:
            raise InputError(
                f"{self.name}: expected shape {show_shape(self.node.shape)}, got {self.shape}: "
                f"axis {self.axis} must be {dim} for some size {symbol}"
            )
        bindings[symbol] = solution
        source[symbol] = f"axis {self.axis} of {self.name}"
        return True

    def _disagreement(self, bindings: Mapping[Symbol, int], source: Mapping[Symbol, str]) -> str:
        shape = self.node.shape
        text = f"{self.name}: expected shape {keras_shape(tuple([substitute(d, bindings) for d in shape]))}"
        symbol = sole_atom(shape[self.axis])
        origin = source.get(symbol) if isinstance(symbol, Symbol) else None
        return f"{text}, got {self.shape}" + (f": axis {self.axis} has the size of {origin}" if origin else "")


def placeholder_name(node: Node) -> str:
    """The name of a placeholder."""
    return str(node.attrs["key"].name)


def as_array(value: Any, dtype: str, name: str) -> Array:
    """A value as a C-contiguous, aligned array of a dtype: what Keras and TensorFlow feed for it, or an error.

    Every number and bool goes into every dtype: floats lose precision silently, also to infinity; a float that goes
    into an integer is cut toward zero; anything but 0 is True. Values that an integer dtype can not hold, text,
    complex numbers and other objects are refused. A symbolic value is evaluated, a SciPy sparse matrix made dense.

    Args:
        value: an array, a number, nested lists, or a symbolic value.
        dtype: the name of the wanted dtype.
        name: what the value is for, which begins the text of an error.

    Raises:
        InputError: the value does not fit.
    """
    wanted = NUMPY_DTYPE[dtype]
    if type(value) is np.ndarray:
        flags = value.flags
        if value.dtype is wanted and flags.c_contiguous and flags.aligned:
            return value
    else:
        node = symbolic(value)
        if node is not None:
            value = evaluate([node])[0]
        elif hasattr(value, "toarray"):
            value = value.toarray()
    try:
        array = np.asarray(value)
    except (TypeError, ValueError) as error:
        raise InputError(f"{name}: expected values that form one {dtype} array: {error}") from None
    if array.dtype != wanted:
        array = _cast(array, dtype, name)
    if array.flags.c_contiguous and array.flags.aligned and array.dtype.isnative:
        return array
    return np.array(array, wanted, order="C", copy=True)


def symbolic(value: object) -> Node | None:
    """The node of a symbolic value, None for any other value."""
    if isinstance(value, Node):
        return value
    node = getattr(value, "node", None)
    return node if isinstance(node, Node) else None


def _cast(array: Array, dtype: str, name: str) -> Array:
    wanted = NUMPY_DTYPE[dtype]
    kind = array.dtype.kind
    if kind == "O" and array.size and all(isinstance(item, (numbers.Real, np.bool_)) for item in array.flat):
        # Python integers beyond 64 bits, and columns of mixed numbers.
        try:
            return array.astype(wanted)
        except (OverflowError, TypeError, ValueError) as error:
            raise InputError(f"{name}: expected values that fit {dtype}: {error}") from None
    if kind not in "biuf":
        raise InputError(f"{name}: expected numbers that can become {dtype}, got {_describe(array)}")
    if wanted.kind in "iu" and array.size and not np.can_cast(array.dtype, wanted):
        _check_range(array, dtype, name)
    with np.errstate(all="ignore"):
        return array.astype(wanted, order="C")


def _check_range(array: Array, dtype: str, name: str) -> None:
    low, high = array.min().item(), array.max().item()
    limits = np.iinfo(dtype)
    # NaN fails every comparison. A float is cut toward zero first, so -0.5 fits an unsigned integer.
    if not (low > limits.min - 1 and high < limits.max + 1):
        bad = high if low > limits.min - 1 else low
        raise InputError(f"{name}: expected values that fit {dtype}, {limits.min} to {limits.max}, got {bad}")


def _describe(array: Array) -> str:
    if array.dtype.kind == "O":
        return type(array.flat[0]).__name__ if array.size else "objects"
    return "text" if array.dtype.kind in "US" else str(array.dtype)


def _solve(dim: Expr, size: int) -> tuple[Symbol | None, int | None]:
    """The only symbol of `factor * symbol + offset` and its value when that is `size`; None where it is not so."""
    symbol, factor, offset = None, 0, 0
    for monomial, coefficient in dim.terms:
        if monomial == ONE:
            offset = coefficient
            continue
        ((atom, power), *rest) = monomial
        if symbol is not None or rest or power != 1 or not isinstance(atom, Symbol):
            return None, None
        symbol, factor = atom, coefficient
    if symbol is None or (size - offset) % factor:
        return symbol, None
    return symbol, (size - offset) // factor
