"""A graph as Python code that builds it, to be pasted into a test."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from evaluate import Array

from graphkb.ir.dims import Dim, Expr, Symbol, free_symbols
from graphkb.ir.graph import Graph
from graphkb.ir.leaves import Constant, PlaceholderKey, VariableCell
from graphkb.ir.node import Node
from graphkb.ops import leaf

BLOCK = 251
"""The elements of a large array after which it repeats itself."""
DIM_CODE = {"floordiv": "floordiv", "max": "maximum", "min": "minimum"}


def to_code(graph: Graph, feeds: Sequence[Array], sizes: dict[Symbol, int]) -> str:
    """Python that builds the graph as `graph` and its feeds as `feeds`, to be pasted into a test."""
    names: dict[Node, str] = {}
    symbols = {s: f"{s.name}_{i}" for i, s in enumerate(sizes)}
    lines = [
        "import numpy as np",
        "from functools import reduce",
        "from graphkb.ir.dims import broadcast_dim, floordiv, maximum, minimum, symbol",
        "from graphkb.ir.graph import Graph",
        "from graphkb.ir.leaves import Constant, VariableCell",
        "from graphkb.ir.node import make",
        "from graphkb.ir.op import find_op",
        "from graphkb.ops import leaf",
        "nan, inf = np.nan, np.inf",
    ]
    lines += [f"{name} = symbol({s.name!r})  # {sizes[s]}" for s, name in symbols.items()]
    cells: dict[VariableCell, str] = {}
    read = [v for node in graph.nodes for v in node.attrs.values() if isinstance(v, VariableCell)]
    for cell in dict.fromkeys([*read, *[cell for cell, _ in graph.updates]]):
        cells[cell] = f"cell{len(cells)}"
        lines.append(f"{cells[cell]} = VariableCell({_literal(cell.array)}, {cell.name!r})")
    for node in graph.nodes:
        name = names[node] = f"a{len(names)}"
        if node.op is leaf.PLACEHOLDER:
            made = f"leaf.placeholder({_attr(node.shape, symbols, cells)}, {node.dtype!r}, {node.attrs['key'].name!r})"
        else:
            attrs = ", ".join(f"{k!r}: {_attr(v, symbols, cells)}" for k, v in node.attrs.items())
            inputs = "".join(f"{names[i]}, " for i in node.inputs)
            made = f"make(find_op({node.op.name!r}), ({inputs}), {{{attrs}}})"
        lines.append(f"{name} = {made}")
    roots = ", ".join(names[o] for o in graph.outputs)
    updates = "".join(f"({cells[c]}, {names[v]}), " for c, v in graph.updates)
    lines.append(f"graph = Graph(({''.join(names[i] + ', ' for i in graph.inputs)}), ({roots},), ({updates}))")
    lines.append(f"feeds = [{', '.join(_literal(a) for a in feeds)}]")
    return "\n".join(lines)


def _literal(array: Array) -> str:
    """An array with every bit kept; sizes of zero too."""
    if array.size > BLOCK:
        return f"np.resize({_literal(array.ravel()[:BLOCK])}, {array.shape})"
    return f"np.array({array.ravel().tolist()}, {array.dtype.name!r}).reshape({array.shape})"


def _attr(value: Any, symbols: dict[Symbol, str], cells: dict[VariableCell, str]) -> str:
    if isinstance(value, tuple):
        return f"({''.join(_attr(v, symbols, cells) + ', ' for v in value)})"
    if isinstance(value, Expr):
        return _dim(value, symbols)
    if isinstance(value, Constant):
        return f"Constant({_literal(value.array)})"
    if isinstance(value, VariableCell):
        return cells[value]
    assert not isinstance(value, PlaceholderKey)
    return repr(value)


def _dim(dim: Dim, symbols: dict[Symbol, str]) -> str:
    """A dim as the expression that builds it."""
    if not isinstance(dim, Expr):
        return str(dim)
    assert free_symbols(dim) <= set(symbols)
    terms = []
    for monomial, factor in dim.terms:
        parts = [str(factor)]
        for atom, power in monomial:
            if isinstance(atom, Symbol):
                text = symbols[atom]
            else:
                args = ", ".join(_dim(a, symbols) for a in atom.args)
                text = f"reduce(broadcast_dim, ({args}))" if atom.fn == "broadcast" else f"{DIM_CODE[atom.fn]}({args})"
            parts += [text] * power
        terms.append(" * ".join(parts))
    return " + ".join(terms)
