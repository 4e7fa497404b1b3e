"""Graphs as JSON: versioned, one line per node, and read back exactly."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from graphkb.ir.dims import Apply, Atom, Dim, Expr, Symbol
from graphkb.ir.errors import GraphError
from graphkb.ir.export_json_read import FORMAT, VERSION, encode_bytes, from_json
from graphkb.ir.graph import Graph
from graphkb.ir.leaves import Array, Constant, PlaceholderKey, VariableCell
from graphkb.ir.node import Node
from graphkb.ir.origin import Origin
from graphkb.ir.types import TensorType, TupleType

__all__ = ["from_json", "to_json"]


def to_json(graph: Graph, values: bool = False) -> str:
    """The graph as a JSON text that `from_json` reads back.

    Everything is kept: names, types with their symbolic sizes, attributes, constants (base64 of the little-endian
    bytes in row-major order), the user's lines, updates, and the bodies of fused nodes, loops and branches. Equal
    graphs give equal texts.

    Args:
        values: whether the present values of variables are written too; otherwise only their names and types are.

    Raises:
        GraphError: an attribute is of a kind that JSON can not carry, such as a Python function.
    """
    return _Writer(values).write(graph)


class _Writer:
    """One text being written: every table maps an object to its row, in the order in which objects are met."""

    def __init__(self, values: bool) -> None:
        self.values = values
        self.symbols: dict[Symbol, int] = {}
        self.dims: dict[Expr, int] = {}
        self.dim_rows: list[Any] = []
        self.origins: dict[Origin, int] = {}
        self.constants: dict[Any, int] = {}
        self.constant_rows: list[Any] = []
        self.placeholders: dict[PlaceholderKey, int] = {}
        self.cells: dict[VariableCell, int] = {}
        self.graphs: dict[Graph, int] = {}

    def write(self, graph: Graph) -> str:
        bodies = []
        for body in _inner_first(graph):
            bodies.append(self.graph(body))
            self.graphs[body] = len(self.graphs)
        tables: dict[str, list[Any]] = {
            "symbols": [s.name for s in self.symbols],
            "dims": self.dim_rows,
            "origins": [list(o) for o in self.origins],
            "placeholders": [key.name for key in self.placeholders],
            "constants": self.constant_rows,
            "cells": [self.cell_row(cell) for cell in self.cells],
        }
        parts = [f'"format": "{FORMAT}"', f'"version": {VERSION}']
        parts += [f'"{name}": {_rows(map(_dump, rows))}' for name, rows in tables.items()]
        parts.append(f'"graphs": {_rows(bodies)}')
        return "{\n" + ",\n".join(parts) + "\n}\n"

    def graph(self, graph: Graph) -> str:
        position = {node: i for i, node in enumerate(graph.nodes)}
        head = {
            "name": graph.name,
            "inputs": [position[n] for n in graph.inputs],
            "outputs": [position[n] for n in graph.outputs],
            "updates": [[self.row(self.cells, cell), position[n]] for cell, n in graph.updates],
        }
        nodes = [_dump(self.node(node, position)) for node in graph.nodes]
        return f'{_dump(head)[:-1]}, "nodes": {_rows(nodes)}}}'

    def node(self, node: Node, position: dict[Node, int]) -> dict[str, Any]:
        row: dict[str, Any] = {
            "op": node.op.name,
            "inputs": [position[i] for i in node.inputs],
            "attrs": {name: self.value(node, name, value) for name, value in node.attrs.items()},
            "dtype": node.type.dtype,
            "shape": [self.dim(d) for d in node.type.shape],
        }
        if isinstance(node.type, TupleType):
            row["items"] = [[item.dtype, [self.dim(d) for d in item.shape]] for item in node.type.items]
        if node.origin is not None:
            row["origin"] = self.row(self.origins, node.origin)
        return row

    def value(self, node: Node, name: str, value: Any) -> Any:
        """An attribute's value: plain JSON where that says it all, else an object whose one key tells the kind."""
        match value:
            case None | bool() | str():
                return value
            case np.generic():
                return {"scalar": [value.dtype.name, encode_bytes(np.asarray(value))]}
            case int():
                return value
            case float():
                return value if math.isfinite(value) else {"float": repr(value)}
            case tuple():
                return [self.value(node, name, v) for v in value]
            case Expr():
                return self.dim(value)
            case Constant():
                return {"constant": self.constant(value)}
            case PlaceholderKey():
                return {"placeholder": self.row(self.placeholders, value)}
            case VariableCell():
                return {"cell": self.row(self.cells, value)}
            case TensorType():
                return {"type": [value.dtype, [self.dim(d) for d in value.shape]]}
            case Graph():
                return {"graph": self.graphs[value]}
            case _:
                raise GraphError(
                    f"to_json: {node.op.name} has the attribute {name} of type {type(value).__name__}, "
                    f"which JSON can not carry"
                )

    @staticmethod
    def row(table: dict[Any, int], item: Any) -> int:
        return table.setdefault(item, len(table))

    def constant(self, constant: Constant) -> int:
        known = self.constants.get(constant)
        if known is None:
            known = self.constants[constant] = len(self.constants)
            self.constant_rows.append(_array_row(constant.array))
        return known

    def cell_row(self, cell: VariableCell) -> dict[str, Any]:
        if self.values:
            return {"name": cell.name, **_array_row(cell.array)}
        return {"name": cell.name, "dtype": cell.type.dtype, "shape": list(cell.array.shape)}

    def dim(self, dim: Dim) -> Any:
        """An integer, or a reference into the table of expressions, whose rows refer only to earlier ones."""
        if not isinstance(dim, Expr):
            return int(dim)
        stack = [dim]
        while stack:
            top = stack[-1]
            if top in self.dims:
                stack.pop()
                continue
            inner = [a for atom in _atoms(top) if isinstance(atom, Apply) for a in atom.args]
            missing = [a for a in inner if isinstance(a, Expr) and a not in self.dims]
            if missing:
                stack.extend(reversed(missing))
                continue
            stack.pop()
            for atom in _atoms(top):
                if isinstance(atom, Symbol):
                    self.row(self.symbols, atom)
            rows = [[f, *sorted(([self.atom(a), p] for a, p in m), key=_dump)] for m, f in top.terms]
            self.dim_rows.append(sorted(rows, key=lambda row: _dump(row[1:])))
            self.dims[top] = len(self.dims)
        return {"dim": self.dims[dim]}

    def atom(self, atom: Atom) -> Any:
        if isinstance(atom, Symbol):
            return self.symbols[atom]
        return [atom.fn, *[a if isinstance(a, int) else {"dim": self.dims[a]} for a in atom.args]]


def _atoms(dim: Expr) -> list[Atom]:
    """The atoms of an expression in an order that does not depend on addresses."""
    return sorted({atom for monomial, _ in dim.terms for atom, _ in monomial}, key=repr)


def _inner_first(graph: Graph) -> list[Graph]:
    """The graph behind all graphs that its nodes hold as attributes, each once, inner ones before outer ones."""
    order: list[Graph] = []
    done: set[Graph] = set()
    stack: list[tuple[Graph, Iterator[Graph]]] = [(graph, iter(_bodies(graph)))]
    while stack:
        top, rest = stack[-1]
        for body in rest:
            if body not in done:
                done.add(body)
                stack.append((body, iter(_bodies(body))))
                break
        else:
            order.append(top)
            stack.pop()
    return order


def _bodies(graph: Graph) -> list[Graph]:
    found = []
    for node in graph.nodes:
        for value in node.attrs.values():
            if isinstance(value, Graph):
                found.append(value)
            elif isinstance(value, tuple):
                found += [v for v in value if isinstance(v, Graph)]
    return found


def _array_row(array: Array) -> dict[str, Any]:
    return {"dtype": array.dtype.name, "shape": list(array.shape), "data": encode_bytes(array)}


def _dump(value: Any) -> str:
    return json.dumps(value, allow_nan=False)


def _rows(rows: Any) -> str:
    text = ",\n".join(rows)
    return f"[\n{text}\n]" if text else "[]"
