"""Evaluating graphs in tests: the bare meaning of the ops, and the errors of results in units in the last place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from graphkb.ir.dims import Dim, Expr, Symbol, sole_atom
from graphkb.ir.graph import Graph
from graphkb.ir.node import Node
from graphkb.ir.types import parts
from graphkb.ops import leaf
from graphkb.runtime.function import Function

Array = np.ndarray[Any, np.dtype[Any]]

BACKENDS = ("interpret", "native")


def interpret(
    graph: Graph, feeds: Sequence[Array], change: Callable[[Node, Array, Sequence[Array]], Array] | None = None
) -> list[Array]:
    """The outputs, then the new values of variables, by each op's NumPy meaning alone.

    `change(node, value, inputs)` may replace each value that is computed.
    """
    values: dict[Node, Array] = dict(zip(graph.inputs, feeds))
    with np.errstate(all="ignore"):
        for node in graph.nodes:
            if node in values:
                continue
            assert node.op.numpy is not None, f"{node.op.name} has no NumPy meaning"
            inputs = [values[i] for i in node.inputs]
            value = node.op.numpy(*inputs, **node.attrs)
            if isinstance(value, tuple):
                assert [(v.dtype, v.shape) for v in value] == [(t.dtype, t.shape) for t in parts(node.type)]
                values[node] = value  # type: ignore[assignment]
                continue
            value = np.asarray(value)
            if change is not None:
                value = change(node, value, inputs)
            assert value.dtype == node.dtype, f"{node!r} gave {value.dtype}"
            if node.type.is_static:
                assert value.shape == node.shape, f"{node!r} gave {value.shape}"
            values[node] = value
    return [values[root] for root in graph.roots]


def evaluate(graph: Graph, feeds: Sequence[Array], backend: str) -> list[Array]:
    """The graph's roots by one backend: "interpret" or "native"."""
    return interpret(graph, feeds) if backend == "interpret" else evaluate_native(graph, feeds)


def placeholders(arrays: Sequence[Array], prefix: str = "x") -> list[Node]:
    """One placeholder for each array, of its type."""
    return [leaf.placeholder(a.shape, a.dtype.name, f"{prefix}{i}") for i, a in enumerate(arrays)]


def atom_of(dim: Dim) -> Symbol:
    """The symbol that a dim made by `dims.symbol` consists of."""
    assert isinstance(dim, Expr)
    atom = sole_atom(dim)
    assert isinstance(atom, Symbol)
    return atom


def wrap(value: int, dtype: str) -> int:
    """An integer modulo the range of an integer dtype."""
    info = np.iinfo(dtype)
    span = info.max - info.min + 1
    return (value - info.min) % span + info.min


def ordinal(x: Array) -> Array:
    """Floats as integers in their order: neighbors differ by 1, both zeros are 0, infinity follows the largest."""
    bits = x.view(f"i{x.itemsize}").astype(object)
    return np.where(bits < 0, -(bits + (1 << (8 * x.itemsize - 1))), bits)


def ulp_error(actual: Array, reference: Array) -> Array:
    """The distance of floats from an extended-precision reference in units in the last place; 0 where both are NaN.

    Across infinity it counts representable numbers; a NaN on one side alone is infinitely wrong.
    """
    with np.errstate(all="ignore"):
        rounded = reference.astype(actual.dtype)
        finite = np.isfinite(actual) & np.isfinite(rounded)
        spacing = np.spacing(np.abs(np.where(finite, rounded, 0)).astype(actual.dtype)).astype(np.longdouble)
        error = np.abs(actual.astype(np.longdouble) - reference) / spacing
    steps = np.abs(ordinal(np.atleast_1d(actual)) - ordinal(np.atleast_1d(rounded))).astype(float).reshape(actual.shape)
    error = np.where(finite, error, steps)
    nan = np.isnan(actual), np.isnan(rounded)
    return np.where(nan[0] & nan[1], 0.0, np.where(nan[0] | nan[1], np.inf, error)).astype(float)


def describe(index: Any, inputs: Sequence[Array]) -> str:
    """The operands behind one element of an element-wise result, for the text of a failed assertion."""
    shape = np.broadcast_shapes(*[a.shape for a in inputs])
    return ", ".join(repr(np.broadcast_to(a, shape)[index]) for a in inputs)


def finite_differences(function: Callable[[Array], Array], x: Array, step: float) -> Array:
    """The gradient of a scalar function of one float64 array by central differences of the fourth order."""
    gradient = np.zeros(x.shape)
    for index in np.ndindex(x.shape):
        h = step * max(1.0, abs(float(x[index])))
        samples = []
        for k in (-2, -1, 1, 2):
            moved = x.copy()
            moved[index] += k * h
            samples.append(float(function(moved)))
        gradient[index] = (samples[0] - 8 * samples[1] + 8 * samples[2] - samples[3]) / (12 * h)
    return gradient


def evaluate_native(graph: Graph, feeds: Sequence[Array]) -> list[Array]:
    """The outputs by a function: the graph is optimized, and every kernel that can be native is."""
    return Function(graph, options={"mode": "native"})(list(feeds))
