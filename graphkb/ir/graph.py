"""The graph: outputs and updates over shared nodes, and the walks that never recurse."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from graphkb.ir.dims import Dim, Expr, Symbol, free_symbols, substitute
from graphkb.ir.leaves import VariableCell
from graphkb.ir.node import Node, make, remake
from graphkb.ir.origin import set_override
from graphkb.ir.record import record

if TYPE_CHECKING:
    import networkx


def toposort(roots: Iterable[Node]) -> list[Node]:
    """Every node that the roots need, inputs before users, in a deterministic order."""
    order: list[Node] = []
    done: set[Node] = set()
    stack: list[tuple[Node, Iterator[Node]]] = []
    for root in roots:
        if root in done:
            continue
        done.add(root)
        stack.append((root, iter(root.inputs)))
        while stack:
            node, rest = stack[-1]
            for child in rest:
                if child not in done:
                    done.add(child)
                    stack.append((child, iter(child.inputs)))
                    break
            else:
                order.append(node)
                stack.pop()
    return order


@record(eq=False, repr=False)
class Graph:
    """A program: what goes in, what comes out, and which variables take which new values.

    Args:
        inputs: placeholder nodes, in the order of the call's arguments.
        outputs: the values to return.
        updates: `(cell, new value)`; all are computed from the old values, then applied together.
    """

    inputs: tuple[Node, ...]
    outputs: tuple[Node, ...]
    updates: tuple[tuple[VariableCell, Node], ...] = ()
    name: str = "graph"
    _order: list[Node] | None = None

    @property
    def roots(self) -> tuple[Node, ...]:
        """Outputs, then the new values of variables."""
        return self.outputs + tuple(node for _, node in self.updates)

    @property
    def nodes(self) -> Sequence[Node]:
        """All nodes in topological order: the placeholders first, needed or not."""
        if self._order is None:
            object.__setattr__(self, "_order", toposort(self.inputs + self.roots))
        assert self._order is not None
        return self._order

    def consumers(self) -> dict[Node, list[Node]]:
        """For each node the nodes that read it, once per use; roots count no consumer."""
        users: dict[Node, list[Node]] = {node: [] for node in self.nodes}
        for node in self.nodes:
            for child in node.inputs:
                users[child].append(node)
        return users

    def with_roots(self, roots: Sequence[Node]) -> Graph:
        """The graph with its outputs and new values replaced, in the order of `roots`."""
        count = len(self.outputs)
        updates = tuple((cell, new) for (cell, _), new in zip(self.updates, roots[count:]))
        return replace(self, outputs=tuple(roots[:count]), updates=updates, _order=None)

    def map(self, visit: Callable[[Node], Node | None]) -> Graph:
        """Rebuild bottom-up: `visit` sees each node on its new inputs and returns a replacement, or None to keep it.

        New nodes carry the provenance of the node that they replace.
        """
        new: dict[Node, Node] = {}
        previous = set_override(None)
        try:
            for node in self.nodes:
                inputs = tuple([new[i] for i in node.inputs])
                set_override(node.origin)
                made = remake(node, inputs)
                replacement = visit(made)
                new[node] = made if replacement is None else replacement
        finally:
            set_override(previous)
        graph = self.with_roots([new[r] for r in self.roots])
        return replace(graph, inputs=tuple(new[i] for i in self.inputs), _order=None)

    def bind(self, bindings: Mapping[Symbol, Dim]) -> Graph:
        """The graph with unknown sizes replaced, every type inferred anew; ShapeError where sizes do not fit."""
        return bind(self, bindings)

    def to_networkx(self) -> networkx.MultiDiGraph:
        """The graph as a `networkx.MultiDiGraph`: nodes are numbered as in the text form, edges carry `position`."""
        from graphkb.ir.export import to_networkx

        return to_networkx(self)

    def __reduce__(self) -> tuple[Any, ...]:
        from graphkb.ir.serialize import flatten_graph, unflatten_graph

        return unflatten_graph, (flatten_graph(self),)

    def __str__(self) -> str:
        from graphkb.ir.text import format_graph

        return format_graph(self)

    def __repr__(self) -> str:
        return f"<Graph {self.name}: {len(self.nodes)} nodes>"

    def _repr_svg_(self) -> str | None:
        from graphkb.ir.export import repr_svg

        return repr_svg(self)


def bind(graph: Graph, bindings: Mapping[Symbol, Dim]) -> Graph:
    """`Graph.bind`: replace symbols everywhere, in types and in attributes."""
    new: dict[Node, Node] = {}
    previous = set_override(None)
    try:
        for node in graph.nodes:
            inputs = tuple([new[i] for i in node.inputs])
            attrs = {k: bind_attr(v, bindings) for k, v in node.attrs.items()} if node.attrs else node.attrs
            if inputs == node.inputs and attrs == node.attrs and node.type.is_static:
                new[node] = node
                continue
            set_override(node.origin)
            try:
                new[node] = make(node.op, inputs, attrs, None, node.origin)
            except ValueError as error:
                raise type(error)(_located(str(error), node)) from None
    finally:
        set_override(previous)
    if all(node is kept for node, kept in new.items()):
        return graph
    bound = graph.with_roots([new[r] for r in graph.roots])
    return replace(bound, inputs=tuple(new[i] for i in graph.inputs), _order=None)


def bind_attr(value: Any, bindings: Mapping[Symbol, Dim]) -> Any:
    """An attribute with its symbolic sizes replaced, in bodies too."""
    if isinstance(value, Expr):
        return substitute(value, bindings)
    if isinstance(value, tuple):
        return tuple([bind_attr(v, bindings) for v in value])
    if isinstance(value, Graph):
        return bind(value, bindings)
    return value


def bodies(node: Node) -> list[tuple[str, Graph]]:
    """The graphs that a node holds as attributes, by name: the body of a loop, the branches of a condition."""
    return [(name, value) for name, value in node.attrs.items() if isinstance(value, Graph)]


def all_nodes(graph: Graph) -> Iterator[Node]:
    """The nodes of a graph and of the bodies inside it, as deep as bodies nest."""
    stack = [graph]
    while stack:
        for node in stack.pop().nodes:
            yield node
            stack += [body for _, body in bodies(node)]


def replace_nodes(roots: Sequence[Node], replacements: Mapping[Node, Node]) -> list[Node]:
    """The roots with some nodes replaced, all at once: the replacements themselves are taken as they are."""
    new: dict[Node, Node] = {}
    for node in toposort(roots):
        replacement = replacements.get(node)
        new[node] = remake(node, tuple([new[i] for i in node.inputs])) if replacement is None else replacement
    return [new[root] for root in roots]


def graph_symbols(graph: Graph) -> set[Symbol]:
    """The unknown sizes of the graph's placeholders."""
    found: set[Symbol] = set()
    for node in graph.inputs:
        for dim in node.type.shape:
            found |= free_symbols(dim)
    return found


def built_at(node: Node) -> str:
    """The last line of an error: `  built at train.py:35: y = x + w`, empty when the line is not known."""
    if node.origin is None:
        return ""
    text = node.origin.text
    return f"\n  built at {node.origin.short}" + (f": {text}" if text else "")


def _located(message: str, node: Node) -> str:
    return message if "\n  built at " in message else message + built_at(node)
