"""The canonical text of a graph: what two graphs must have in common to become the same program."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from graphkb.ir.dims import Expr, Symbol, substitute
from graphkb.ir.graph import Graph, bodies
from graphkb.ir.leaves import Constant, PlaceholderKey, VariableCell
from graphkb.ir.node import Node
from graphkb.ops import BUILT_IN
from graphkb.ops.random import DRAWS

# Constants are part of the text by their digests; above this many bytes, making those costs more than it may save.
MOST_CONSTANTS = 64 * 2**20
_BY_VALUE = 64


class OpaqueError(Exception):
    """A graph holds something that has no canonical form."""


class GraphKey:
    """The canonical text of a graph for certain sizes: ops, attributes, wiring and the values of constants.

    Names and places in source files are not part of it, nor are the values of variables, and of seeds that are used
    as such only: what the passes and the code generator do depends on none of them.

    Attributes:
        text: equal for graphs that become the same program.
        cells: the variables, in the order in which the text numbers them.
        constants: the constants, likewise.
        seeds: those constants whose values are not part of the text.

    Raises:
        OpaqueError: it can not be told whether another graph is the same.
    """

    def __init__(self, graph: Graph, sizes: Mapping[Symbol, int]) -> None:
        self.cells: dict[VariableCell, int] = {}
        self.constants: dict[Constant, int] = {}
        self.seeds = frozenset(mere_seeds(graph))
        self._sizes = sizes
        self._dims: dict[Expr, str] = {}
        self._lines: list[str] = []
        self._known: dict[int, int] = {}  # bodies that stand in the text already, by identity
        self._left = MOST_CONSTANTS
        self._write(graph)
        self.text = "\n".join(self._lines)

    def _write(self, graph: Graph) -> None:
        position: dict[Node, int] = {}
        lines: list[str] = []
        for place, node in enumerate(graph.nodes):
            position[node] = place
            if node.op not in BUILT_IN:
                raise OpaqueError(f"the op {node.op.name} is not built in")
            operands = " ".join([str(position[i]) for i in node.inputs])
            attrs = " ".join([self._show(value) for value in node.attrs.values()])
            lines.append(f"{node.op.name}({operands}) {attrs}" if attrs else f"{node.op.name}({operands})")
        self._lines += lines  # behind those of bodies
        for nodes in (graph.inputs, graph.outputs):
            self._lines.append(" ".join([str(position[node]) for node in nodes]))
        self._lines.append(" ".join([f"{self._cell(cell)}={position[node]}" for cell, node in graph.updates]))

    def _show(self, value: object) -> str:
        """An attribute; the kinds differ in how they begin."""
        match value:
            case bool() | int() | float() | str() | None if type(value) in _PLAIN:
                return repr(value)
            case tuple():
                return f"({','.join(map(self._show, value))})"
            case Expr():
                return self._dim(value)
            case Constant():
                return self._constant(value)
            case VariableCell():
                return self._cell(value)
            case PlaceholderKey():
                return "_"
            case Graph():
                return self._body(value)
        raise OpaqueError(f"an attribute is a {type(value).__name__}")

    def _dim(self, dim: Expr) -> str:
        shown = self._dims.get(dim)
        if shown is None:
            size = substitute(dim, self._sizes)
            if not isinstance(size, int):
                raise OpaqueError(f"the size {dim!r} is not known")
            shown = self._dims[dim] = repr(size)
        return shown

    def _cell(self, cell: VariableCell) -> str:
        number = self.cells.get(cell)
        if number is not None:
            return f"v{number}"
        self.cells[cell] = number = len(self.cells)
        return f"v{number}:{cell.type.dtype}{cell.type.shape}"

    def _constant(self, constant: Constant) -> str:
        number = self.constants.get(constant)
        if number is not None:
            return f"c{number}"
        self.constants[constant] = number = len(self.constants)
        array = constant.array
        self._left -= array.nbytes
        if self._left < 0:
            raise OpaqueError("its constants are large")
        head = f"c{number}:{array.dtype.str}{array.shape}"
        if constant in self.seeds:
            return head
        data = array.tobytes() if array.nbytes <= _BY_VALUE else hashlib.sha256(array.data).digest()
        return f"{head}{data.hex()}"

    def _body(self, body: Graph) -> str:
        number = self._known.get(id(body))
        if number is None:
            self._write(body)  # as deep as bodies nest
            self._known[id(body)] = number = len(self._lines)
        return f"g{number}"


_PLAIN = {bool, int, float, str, type(None)}


def mere_seeds(graph: Graph) -> set[Constant]:
    """The constants that are read as seeds of draws that differ from call to call, and nowhere else."""
    seeds: set[Constant] = set()
    others: set[Constant] = set()
    for each in _all_graphs(graph):
        if not any(node.op.name in DRAWS for node in each.nodes):
            others.update(_constants(each.nodes))
            continue
        others.update(_constants(each.roots))
        for node in each.nodes:
            for place, operand in enumerate(node.inputs):
                if operand.op.name == "constant":
                    is_seed = node.op.name in DRAWS and place == 1 and node.inputs[2].op.name != "constant"
                    (seeds if is_seed else others).add(operand.attrs["value"])
    return seeds - others


def _constants(nodes: Sequence[Node]) -> Iterator[Constant]:
    return (node.attrs["value"] for node in nodes if node.op.name == "constant")


def _all_graphs(graph: Graph) -> Iterator[Graph]:
    """The graph and the bodies inside it, as deep as they nest."""
    found: list[Any] = [graph]
    for each in found:  # grows on the way
        found += [body for node in each.nodes for _, body in bodies(node)]
    return iter(found)


__all__ = ["GraphKey", "OpaqueError", "mere_seeds"]
