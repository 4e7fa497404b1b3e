"""The canonical text of a graph: equal for graphs that run the same code, different for all others."""

from __future__ import annotations

import numpy as np
import pytest

from graphkb import backend as K
from graphkb.ir.graph import Graph
from graphkb.ir.leaves import VariableCell
from graphkb.ops import leaf, linalg, reduce
from graphkb.runtime.graph_key import GraphKey, OpaqueError

f32 = np.float32


def key(graph: Graph, **sizes: int) -> str:
    symbols = {}
    for node in graph.inputs:
        for dim in node.shape:
            if not isinstance(dim, int):
                ((((symbol, _),), _),) = [(tuple(m), c) for m, c in dim.terms]
                symbols[symbol] = sizes[symbol.name]
    return GraphKey(graph, symbols).text


def variants() -> dict[str, Graph]:
    """Graphs that differ in one thing each."""
    x, y = leaf.placeholder((4, 4), "float32", "x"), leaf.placeholder((4, 4), "float32", "y")
    z = leaf.placeholder((4, 4), "float64", "z")
    u, v = (VariableCell(np.zeros((4, 4), f32), name) for name in "uv")
    a, b = leaf.variable(u), leaf.variable(v)
    many = np.arange(100, dtype=f32)
    other = many.copy()
    other[50] = -1

    one = leaf.constant(f32(1))

    def table(values: np.ndarray) -> Graph:
        return Graph((x,), (x + reduce.reduce_sum(leaf.constant(values), (0,)),))

    def product(axis: int) -> Graph:
        return Graph((x,), (linalg.dot(x, x, (), (), (1,), (axis,)),))

    return {
        "sum": Graph((x, y), (x + y,)),
        "turned": Graph((y, x), (x + y,)),
        "difference": Graph((x, y), (x - y,)),
        "of itself": Graph((x, y), (x + x,)),
        "unused": Graph((x, y), (-x,)),
        "one": Graph((x,), (-x,)),
        "dtype": Graph((z,), (-z,)),
        "twice": Graph((x,), (-x, -x)),
        "rows": Graph((x,), (reduce.reduce_sum(x, (0,)),)),
        "columns": Graph((x,), (reduce.reduce_sum(x, (1,)),)),
        "kept": Graph((x,), (reduce.reduce_sum(x, (1,), True),)),
        "all": Graph((x,), (reduce.reduce_sum(x, (0, 1)),)),
        "product": product(0),
        "product with the transpose": product(1),
        "constant": Graph((x,), (x * leaf.constant(f32(2)),)),
        "zero": Graph((x,), (x * leaf.constant(f32(0)),)),
        "minus zero": Graph((x,), (x * leaf.constant(f32(-0.0)),)),
        "of another shape": Graph((x,), (x * leaf.constant(np.full(4, 2, f32)),)),
        "many": table(many),
        "many others": table(other),
        "many of two rows": Graph((x,), (x + reduce.reduce_sum(leaf.constant(many.reshape(2, 50)), (0, 1)),)),
        "a": Graph((x,), (x + a,)),
        "a and b": Graph((x,), (x + a + b,)),
        "a twice": Graph((x,), (x + a + a,)),
        "update": Graph((x,), (x + a,), ((u, x),)),
        "update of b": Graph((x,), (x + a,), ((v, x),)),
        "updates": Graph((x,), (x + one,), ((u, x), (v, -x))),
        "other updates": Graph((x,), (x + a,), ((u, -x), (v, x))),
    }


def test_whatever_differs_is_in_the_key() -> None:
    keys = {name: key(graph) for name, graph in variants().items()}
    for name, text in keys.items():
        assert [other for other in keys if keys[other] == text] == [name]


def test_names_lines_and_values_of_variables_are_not_in_the_key() -> None:
    first, second = variants(), variants()
    for name, graph in first.items():
        assert key(graph) == key(second[name])
    cell = VariableCell(np.ones((4, 4), f32), "another name")
    x = leaf.placeholder((4, 4), "float32", "another")
    assert key(Graph((x,), (x + leaf.variable(cell),), name="another")) == key(first["a"])


def test_unknown_sizes_count_with_their_values() -> None:
    x, y = K.placeholder((None, 3)), K.placeholder((None, 3))
    f = K.function([x, y], [K.sum(x) + K.mean(y)])
    graph = f.definition
    names = [node.shape[0].terms for node in graph.inputs]
    symbols = [next(iter(next(iter(terms))[0]))[0] for terms in names]
    known = K.placeholder((5, 3)), K.placeholder((7, 3))
    static = K.function(list(known), [K.sum(known[0]) + K.mean(known[1])]).definition

    def text(a: int, b: int) -> str:
        return GraphKey(graph, dict(zip(symbols, (a, b)))).text

    assert len({text(5, 7), text(7, 5), text(5, 5)}) == 3
    assert text(5, 7) == GraphKey(graph.bind(dict(zip(symbols, (5, 7)))), {}).text
    with pytest.raises(OpaqueError, match="not known"):
        GraphKey(graph, {})
    assert static.nodes
