"""Size guards: the conditions on unknown sizes under which a program is valid, for code that serves many sizes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from graphkb.ir.dims import Apply, Dim, Expr, Symbol, sole_atom, substitute
from graphkb.ir.errors import OpenSizeError
from graphkb.ir.graph import Graph, all_nodes, graph_symbols
from graphkb.ir.node import Node
from graphkb.ir.record import record
from graphkb.ir.types import parts
from graphkb.passes.equal_sizes import equal_sizes, is_told


@record
class SizeGuards:
    """What code for unknown sizes relies on. Sizes that break it take other code, or are refused with an error.

    Attributes:
        positive: each is at least 1, the symbols themselves first: where something is empty or does not fit, code
            that knows all sizes decides.
        equal: pairs that must be equal; that one of them is 1 and broadcasts does not do.
    """

    positive: tuple[Dim, ...]
    equal: tuple[tuple[Dim, Dim], ...]

    def hold(self, sizes: Mapping[Symbol, int]) -> bool:
        """Whether these sizes satisfy all conditions."""

        def value(dim: Dim) -> Dim:
            return substitute(dim, sizes)

        try:
            # The symbols come first, so nothing divides by 0.
            return all(_known(value(d)) >= 1 for d in self.positive) and all(
                value(a) == value(b) for a, b in self.equal
            )
        except ValueError:
            return False


def _known(dim: Dim) -> int:
    assert isinstance(dim, int)
    return dim


def size_guards(graph: Graph) -> SizeGuards:
    """The guards of a graph as the user built it, with sizes that must agree already unified.

    Raises:
        OpenSizeError: what an operation demands of its sizes is not known, or the inputs do not tell a size.
    """
    symbols = sorted(graph_symbols(graph), key=lambda s: s.name)
    _refuse_untold(graph, symbols)
    told = {dim: None for node in graph.inputs for dim in node.shape if isinstance(sole_atom(dim), Symbol)}
    positive: dict[Dim, None] = dict(told)
    equal: dict[tuple[Dim, Dim], None] = {}

    def demand(*dims: Dim) -> None:
        positive.update(dict.fromkeys([d for d in dims if not _surely_positive(d)]))

    for node in all_nodes(graph):
        if _is_open(node):
            for dim in _dims(node):
                demand(*_divisors(dim))
            demand(*[dim for part in parts(node.type) for dim in part.shape], *_bounds(node))
            if not is_told(node):
                raise OpenSizeError(f"what {node.op.name} demands of its sizes is known only when it runs")
            equal |= dict.fromkeys([(a, b) for a, b in equal_sizes(node) if a != b])
    for cell, value in graph.updates:
        equal |= dict.fromkeys([(a, b) for a, b in zip(value.shape, cell.type.shape) if a != b])
    return SizeGuards(tuple(positive), tuple(equal))


def _refuse_untold(graph: Graph, symbols: list[Symbol]) -> None:
    told = {sole_atom(dim) for node in graph.inputs for dim in node.shape}
    missing = [s for s in symbols if s not in told]
    if missing:
        raise OpenSizeError(f"no input has {missing[0]} as the size of an axis")


def _dims(node: Node) -> Iterator[Dim]:
    """The sizes in the type and in the attributes of a node."""
    for part in parts(node.type):
        yield from part.shape
    for value in node.attrs.values():
        for one in value if isinstance(value, tuple) else (value,):
            if isinstance(one, Expr):
                yield one


def _divisors(dim: Dim) -> Iterator[Dim]:
    """What a size divides by; OpenSizeError where sizes broadcast in it."""
    stack = [dim]
    while stack:
        one = stack.pop()
        for monomial, _ in one.terms if isinstance(one, Expr) else ():
            for atom, _ in monomial:
                if isinstance(atom, Apply):
                    if atom.fn == "broadcast":
                        raise OpenSizeError(f"which of the sizes in {atom} is 1 is not known", lasting=False)
                    if atom.fn == "floordiv":
                        yield atom.args[1]
                    stack += atom.args


def _surely_positive(dim: Dim) -> bool:
    """Whether a dim is at least 1 wherever all symbols are."""
    if not isinstance(dim, Expr):
        return dim >= 1
    for monomial, factor in dim.terms:
        if factor < 0 or not all(isinstance(atom, Symbol) for atom, _ in monomial):
            return False
    return True


def _bounds(node: Node) -> Iterator[Dim]:
    """What must be at least 1 for slices to lie inside, and for padded operands to fit."""
    attrs = node.attrs
    match node.op.name:
        case "slice":
            for n, start, size, step in zip(node.inputs[0].shape, attrs["starts"], attrs["sizes"], attrs["steps"]):
                yield from _inside(n, start, size, step)
        case "pad":
            for n, start, step, total in zip(node.inputs[0].shape, attrs["starts"], attrs["steps"], attrs["shape"]):
                yield from _inside(total, start, n, step)
        case "pad_value":
            for n, start, total in zip(node.inputs[0].shape, attrs["starts"], attrs["shape"]):
                yield from _inside(total, start, n, 1)
        case "scan":
            yield attrs["length"]
        case _:
            pass


def _inside(whole: Dim, start: Dim, size: Dim, step: int) -> Iterator[Dim]:
    """0 <= start < whole and 0 <= last < whole, where the size is at least 1."""
    last = start + (size - 1) * step
    for index in (start, last):
        yield index + 1
        yield whole - index


def _is_open(node: Node) -> bool:
    """Whether any size that a node deals with is unknown."""
    return any(not part.is_static for x in (node, *node.inputs) for part in parts(x.type)) or any(
        isinstance(dim, Expr) for dim in _dims(node)
    )


__all__ = ["SizeGuards", "size_guards"]
