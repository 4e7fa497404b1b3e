"""Reading graphs from JSON, with every mistake of a text found and told."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from graphkb.ir.dims import Apply, Atom, Dim, Expr, Symbol
from graphkb.ir.errors import GraphError
from graphkb.ir.graph import Graph
from graphkb.ir.leaves import Array, Constant, PlaceholderKey, VariableCell
from graphkb.ir.node import Node, make
from graphkb.ir.op import find_op
from graphkb.ir.origin import Origin
from graphkb.ir.types import NUMPY_DTYPE, TensorType, tuple_type
from graphkb.ir.verify import verify

FORMAT = "graphkb-graph"
VERSION = 1

T = TypeVar("T")
_ARITY = {"floordiv": (2, 2), "max": (2, None), "min": (2, None), "broadcast": (2, None)}


def encode_bytes(array: Array) -> str:
    """The little-endian bytes of an array in row-major order, in base64."""
    return base64.b64encode(array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()).decode("ascii")


def decode_bytes(text: str, dtype: str, shape: tuple[int, ...]) -> Array:
    """The array of `encode_bytes`; ValueError when bytes and shape do not agree."""
    kind = NUMPY_DTYPE[dtype]
    data = base64.b64decode(text, validate=True)
    flat: Array = np.frombuffer(data, kind.newbyteorder("<")).astype(kind)
    if dtype == "bool" and data.strip(b"\0\1"):
        raise ValueError("a bool is neither 0 nor 1")
    return flat.reshape(shape)


def from_json(text: str, cells: Mapping[str, VariableCell] | None = None) -> Graph:
    """The graph of a text that `to_json` wrote.

    Placeholders and symbolic sizes are new ones. Types are inferred anew and compared with those in the text.

    Args:
        cells: variables to use, by name. Other variables are made anew, with the values in the text, or zeros when
            the text has none.

    Raises:
        GraphError: the text is not JSON, is of another format or version, or does not describe a valid graph.
    """
    try:
        document = json.loads(text)
    except (ValueError, RecursionError, TypeError) as error:
        raise GraphError(f"from_json: the text is not JSON: {error}") from None
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise GraphError(f'from_json: expected a JSON object with "format": "{FORMAT}", as to_json writes it')
    if document.get("version") != VERSION:
        raise GraphError(f"from_json: version {document.get('version')!r} is not known; this is version {VERSION}")
    reader = _Reader(cells or {})
    try:
        return reader.read(document)
    except Exception as error:  # an op's inference rule may raise anything on attributes of a wrong kind
        what = f"{error} is missing" if isinstance(error, KeyError) else str(error) or type(error).__name__
        raise GraphError(f"from_json: {reader.place}: {what}") from None


class _Reader:
    """One document being read; `place` says where, for errors."""

    def __init__(self, known_cells: Mapping[str, VariableCell]) -> None:
        self.known_cells = known_cells
        self.place = "document"
        self.symbols: list[Symbol] = []
        self.dims: list[Expr] = []
        self.origins: list[Origin] = []
        self.placeholders: list[PlaceholderKey] = []
        self.constants: list[Constant] = []
        self.cells: list[VariableCell] = []
        self.graphs: list[Graph] = []

    def read(self, document: Mapping[str, Any]) -> Graph:
        tables: tuple[tuple[str, Callable[[Any], Any], list[Any]], ...] = (
            ("symbols", lambda row: Symbol(_text(row)), self.symbols),
            ("dims", self.expression, self.dims),
            ("origins", lambda row: Origin(_text(row[0]), _count(row[1]), _text(row[2])), self.origins),
            ("placeholders", lambda row: PlaceholderKey(_text(row)), self.placeholders),
            ("constants", lambda row: Constant(self.array(row)), self.constants),
            ("cells", self.cell, self.cells),
            ("graphs", self.graph, self.graphs),
        )
        for name, read_row, table in tables:
            self.place = "document"
            for i, row in enumerate(_list(document[name])):
                self.place = f"{name}[{i}]"
                table.append(read_row(row))
        if not self.graphs:
            raise ValueError("there is no graph")
        return self.graphs[-1]

    def expression(self, rows: Any) -> Expr:
        terms = {}
        for factor, *powers in _list(rows):
            monomial = {self.atom(atom): _integer(power) for atom, power in powers}
            key = frozenset(monomial.items())
            if _integer(factor) == 0 or min(monomial.values(), default=1) < 1 or len(monomial) < len(powers):
                raise ValueError(f"{rows} is not in canonical form")
            if key in terms:
                raise ValueError(f"{rows} has one term twice")
            terms[key] = factor
        if not any(terms):
            raise ValueError(f"{rows} holds no unknown size")
        return Expr(frozenset(terms.items()))

    def atom(self, row: Any) -> Atom:
        if isinstance(row, int):
            return _at(self.symbols, row)
        fn, *args = _list(row)
        least, most = _ARITY[fn]
        if len(args) < least or (most is not None and len(args) > most):
            raise ValueError(f"{fn} takes {least} sizes{'' if most else ' or more'}, not {len(args)}")
        return Apply(fn, tuple([self.dim(a) for a in args]))

    def dim(self, value: Any) -> Dim:
        if isinstance(value, dict):
            return _at(self.dims, value["dim"])
        return _integer(value)

    def shape(self, value: Any) -> tuple[Dim, ...]:
        dims = tuple([self.dim(d) for d in _list(value)])
        if any(isinstance(d, int) and d < 0 for d in dims):
            raise ValueError(f"a shape with a negative size: {dims}")
        return dims

    def type(self, row: Mapping[str, Any]) -> TensorType:
        if "items" in row:
            return tuple_type([TensorType(_dtype(dtype), self.shape(shape)) for dtype, shape in _list(row["items"])])
        return TensorType(_dtype(row["dtype"]), self.shape(row["shape"]))

    def array(self, row: Mapping[str, Any]) -> Array:
        return decode_bytes(_text(row["data"]), _dtype(row["dtype"]), tuple(map(_count, _list(row["shape"]))))

    def cell(self, row: Mapping[str, Any]) -> VariableCell:
        name = _text(row["name"])
        expected = TensorType(_dtype(row["dtype"]), tuple(map(_count, _list(row["shape"]))))
        known = self.known_cells.get(name)
        if known is not None:
            if known.type != expected:
                raise ValueError(f"the variable {name!r} is {known.type!r}, the text expects {expected!r}")
            return known
        if "data" in row:
            return VariableCell(self.array(row), name)
        return VariableCell(np.zeros(expected.shape, NUMPY_DTYPE[expected.dtype]), name)

    def graph(self, row: Mapping[str, Any]) -> Graph:
        place = self.place
        nodes: list[Node] = []
        for i, node in enumerate(_list(row["nodes"])):
            self.place = f"{place}, node %{i}"
            nodes.append(self.node(node, nodes))
        self.place = place
        graph = Graph(
            tuple([_at(nodes, i) for i in _list(row["inputs"])]),
            tuple([_at(nodes, i) for i in _list(row["outputs"])]),
            tuple([(_at(self.cells, c), _at(nodes, i)) for c, i in _list(row["updates"])]),
            _text(row["name"]),
        )
        if any(node.op.name != "placeholder" for node in graph.inputs):
            raise ValueError("an input is not a placeholder")
        verify(graph)
        return graph

    def node(self, row: Mapping[str, Any], nodes: Sequence[Node]) -> Node:
        name = _text(row["op"])
        try:
            op = find_op(name)
        except KeyError:
            raise ValueError(f"there is no op {name!r}") from None
        attrs = {key: self.value(value) for key, value in row["attrs"].items()}
        if tuple(attrs) != op.params:
            raise ValueError(f"{name} has the attributes {op.params}, not {tuple(attrs)}")
        inputs = tuple([_at(nodes, i) for i in _list(row["inputs"])])
        origin = _at(self.origins, row["origin"]) if "origin" in row else None
        type = self.type(row)
        body = attrs.get("body")
        if op.kind == "fused" and isinstance(body, Graph) and [p.type for p in body.inputs] != [i.type for i in inputs]:
            raise ValueError(f"the operands of {name} are not of the types that its body takes")
        inferred = op.infer(*[i.type for i in inputs], **attrs)
        if inferred != type:
            raise ValueError(f"{name} gives {inferred!r}, the text says {type!r}")
        return make(op, inputs, attrs, inferred, origin)

    def value(self, value: Any) -> Any:
        match value:
            case list():
                return tuple([self.value(v) for v in value])
            case dict():
                ((kind, content),) = value.items()
                return self.special(kind, content)
            case _:
                return value

    def special(self, kind: str, content: Any) -> Any:
        match kind:
            case "float":
                return float(content)
            case "scalar":
                return decode_bytes(_text(content[1]), _dtype(content[0]), ())[()]
            case "dim":
                return _at(self.dims, content)
            case "constant":
                return _at(self.constants, content)
            case "placeholder":
                return _at(self.placeholders, content)
            case "cell":
                return _at(self.cells, content)
            case "type":
                return TensorType(_dtype(content[0]), self.shape(content[1]))
            case "graph":
                return _at(self.graphs, content)
            case _:
                raise ValueError(f"{kind!r} is not a kind of attribute")


def _at(table: Sequence[T], index: Any) -> T:
    row = _integer(index)
    if not 0 <= row < len(table):
        raise ValueError(f"there is no row {row}")
    return table[row]


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(f"expected a list, got {value!r:.60}")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"expected a text, got {value!r:.60}")
    return value


def _integer(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"expected an integer, got {value!r:.60}")
    return value


def _count(value: Any) -> int:
    if _integer(value) < 0:
        raise ValueError(f"expected 0 or more, got {value}")
    return int(value)


def _dtype(value: Any) -> str:
    if value not in NUMPY_DTYPE:
        raise ValueError(f"expected a dtype, got {value!r:.60}")
    return str(value)
